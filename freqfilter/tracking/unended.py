"""Runs that the store calls RUNNING, and what is true of them."""

from __future__ import annotations

import getpass
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
from mlflow.utils.mlflow_tags import MLFLOW_SOURCE_NAME, MLFLOW_SOURCE_TYPE, MLFLOW_USER

import freqfilter
from freqfilter.tracking.stored import RunRecord, stored_runs

AT_WORK, ELSEWHERE, DIED, NEVER_BEGUN, NOT_OURS = "at work", "elsewhere", "died", "never begun", "not ours"
LAUNCHING_S = 3600.0  # what making an environment may take; on a server others may be at it


def unended_runs(*, on_server: bool) -> Iterator[tuple[RunRecord, str]]:
    """Every run that is RUNNING, and whether somebody works on it.

    ``mlflow run`` makes its run before it looks for conda or the program's parameters, and leaves it RUNNING where it
    fails at that (``mlflow.projects.backend.local``, 3.17.2). Such a run names no process of ours. It is known by the
    folder of this project, its user, and that no `mlflow run` as old as it is still there.

    Args:
        on_server: Whether the store is one that other machines write to.
    """
    launchers = _launchers()
    for run in stored_runs(having="attributes.status = 'RUNNING'"):
        if run.worker is not None:
            alive = run.worker.is_alive
            yield run, ELSEWHERE if alive is None else AT_WORK if alive else DIED
        elif not _launched_from_here(run):
            yield run, NOT_OURS
        elif any(began <= run.started_ms / 1000 + 1 for began in launchers):
            yield run, AT_WORK
        elif on_server and time.time() - run.started_ms / 1000 < LAUNCHING_S:
            yield run, ELSEWHERE
        else:
            yield run, NEVER_BEGUN


def _launched_from_here(run: RunRecord) -> bool:
    root = Path(freqfilter.__file__).resolve().parents[1]
    source = run.tags.get(MLFLOW_SOURCE_NAME, "").removeprefix("file://")
    is_project = run.tags.get(MLFLOW_SOURCE_TYPE) == "PROJECT" and bool(source)
    return is_project and Path(source) == root and run.tags.get(MLFLOW_USER) == getpass.getuser()


def _launchers() -> list[float]:
    """When each `mlflow run` of this machine began, seconds since 1970."""
    found = []
    for process in psutil.process_iter(["cmdline", "create_time"]):
        words = process.info["cmdline"] or []
        if "run" in words and any(Path(word).name == "mlflow" for word in words):
            found.append(process.info["create_time"])
    return found
