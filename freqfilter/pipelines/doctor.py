"""Checks of installation and store; runs of dead processes are closed."""

from __future__ import annotations

import logging
import os
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from importlib.metadata import requires, version
from pathlib import Path

from packaging.requirements import Requirement

from freqfilter.atomic_io import remove_stale_temp_files, writable_folder
from freqfilter.config import Params
from freqfilter.errors import UserError
from freqfilter.tracked_names import CHECKPOINTS
from freqfilter.tracking.aliases import registered_models
from freqfilter.tracking.client import open_store
from freqfilter.tracking.locations import moved_files
from freqfilter.tracking.owner import is_locked
from freqfilter.tracking.queries import (
    DIED,
    NEVER_STARTED,
    RUNNING_ELSEWHERE,
    RUNNING_HERE,
    end_run,
    folder_run,
    run_folders,
    stale_runs,
    stored_run,
)
from freqfilter.tracking.ui_views import resume_command

logger = logging.getLogger(__name__)

MIN_FREE_BYTES = 1_000_000_000  # bytes; a run of the default recipe takes 20 million
OK, FIXED, PROBLEM = "ok", "fixed", "PROBLEM"


def check_installation(params: Params) -> None:
    """Report the state of installation and store, close runs of dead processes, and remove their temporary files.

    Args:
        params: Parameters with the folder of runs.

    Raises:
        UserError: If there is a problem that the user has to fix.
    """
    problems = []
    run_dir = Path(params.tracking.run_dir)
    for status, line in (*_check_packages(), *_check_machine(), *_check_space(run_dir), *_check_store(run_dir)):
        logger.info(f"{status:8} {line}")
        if status == PROBLEM:
            problems.append(line)
    if problems:
        prefix = f"{len(problems)} problems found; first: " if len(problems) > 1 else ""
        raise UserError(prefix + problems[0])


def _check_packages() -> Iterator[tuple[str, str]]:
    lines, required = [], []
    for requirement in map(Requirement, requires("freqfilter") or []):
        if requirement.marker:  # of an extra
            continue
        found = version(requirement.name)
        if not requirement.specifier.contains(found, prereleases=True):
            required.append(f"{requirement.name}{requirement.specifier}")
            lines.append(f"{requirement.name} {found} where {requirement.specifier} is required")
    if required:
        yield PROBLEM, f"installation: {'; '.join(lines)}; {_install_remedy(required)}"
    else:
        yield OK, f"installation: freqfilter {version('freqfilter')}, the versions of all dependencies are as required"
    telemetry_off = os.environ.get("MLFLOW_DISABLE_TELEMETRY", "").lower() in ("true", "1")
    yield OK, f"MLflow telemetry: {'off' if telemetry_off else 'on, set by MLFLOW_DISABLE_TELEMETRY'}"


def _install_remedy(required: list[str]) -> str:
    if (Path(__file__).parents[2] / "constraints.txt").is_file():  # a clone of the project
        return "run make install or pip install -c constraints.txt -e ."
    return f"run pip install {shlex.join(required)}"


def _check_machine() -> Iterator[tuple[str, str]]:
    # Not every system has sched_getaffinity.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = os.environ.get("OMP_NUM_THREADS", "")  # PyTorch's default is one for each core
    if threads.isdigit() and int(threads) > cores:
        line = f"threads: OMP_NUM_THREADS={threads} exceeds the {cores} available cores"
        yield PROBLEM, f"{line}; set OMP_NUM_THREADS={cores}, or train with threads={cores}"
    else:
        yield OK, f"threads: {threads or cores} on {cores} available cores"
    if (load := os.getloadavg()[0]) > cores:
        yield OK, f"load: {load:.1f} running processes on {cores} cores; training takes longer"
    yield OK, f"CUDA: {', '.join(_cuda_devices()) or 'no devices; training uses the CPU'}"


def _cuda_devices() -> list[str]:
    """Return the names of the CUDA devices from nvidia-smi, since importing PyTorch takes seconds."""
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        output = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in output.splitlines() if line.strip()]


def _check_space(run_dir: Path) -> Iterator[tuple[str, str]]:
    try:
        free = shutil.disk_usage(writable_folder(run_dir)).free
    except UserError as error:
        yield PROBLEM, f"run_dir: {error}"
        return
    line = f"disk: {free / 1e9:.1f} GB free for {run_dir}"
    yield (PROBLEM, f"{line}; delete files") if free < MIN_FREE_BYTES else (OK, line)
    for folder in (run_dir, *run_dir.rglob("*/")):
        remove_stale_temp_files(folder)


def _check_store(run_dir: Path) -> Iterator[tuple[str, str]]:
    try:
        uri = open_store()
        yield OK, f"store: {uri} is reachable"
        models = registered_models()
    except UserError as error:
        yield PROBLEM, str(error)
        return
    yield OK, f"registry: {', '.join(models) or 'no models yet'}"
    yield from ((PROBLEM, line) for line in moved_files())
    yield from _check_runs(on_server=uri.startswith("http"))
    yield from _check_folders(run_dir)


def _check_runs(*, on_server: bool) -> Iterator[tuple[str, str]]:
    for run, condition in stale_runs(on_server=on_server):
        if condition == RUNNING_HERE:
            yield OK, f"run {run.run_id} ({run.name}) is running"
        elif condition == RUNNING_ELSEWHERE:
            owner = run.owner or "another machine"
            yield OK, f"run {run.run_id} ({run.name}) is RUNNING in {owner}; its folder is not visible here"
        elif condition == DIED and run.owner:
            end_run(run.run_id, "KILLED")
            has_checkpoint = any((run.owner.folder(run.run_id) / CHECKPOINTS).glob("*.pt"))
            remedy = f"; resume with: {resume_command(run.run_id)}" if has_checkpoint else ""
            yield FIXED, f"run {run.run_id} ({run.name}): process is gone, marked KILLED{remedy}"
        elif condition == NEVER_STARTED:
            end_run(run.run_id, "FAILED")
            yield FIXED, f"run {run.run_id} ({run.name}): `mlflow run` failed before the program started, marked FAILED"


def _check_folders(run_dir: Path) -> Iterator[tuple[str, str]]:
    for folder in run_folders(run_dir):
        try:
            run = folder_run(folder)
        except UserError as error:
            yield PROBLEM, f"{error}; save the intact files, then remove the folder"
            continue
        if run.target_experiment is not None:
            if not is_locked(folder):
                yield OK, f"run {run.run_id} ({run.name}) is offline; deliver it with: python -m freqfilter sync"
            continue
        try:
            status = stored_run(run.run_id).status
        except UserError:
            yield OK, f"{run.folder}: its run is not in this store; remove the folder if it is in no other store"
            continue
        if status == "FINISHED":
            yield OK, f"run {run.run_id} has finished but its folder remains; remove it with: python -m freqfilter sync"
