"""Resumption of an interrupted training."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from freqfilter.config import Params
from freqfilter.config.load import DEFAULT_RECIPE, changed_parameters
from freqfilter.errors import UserError
from freqfilter.pipelines.setup import ResumePoint
from freqfilter.tracked_names import CHECKPOINTS, OUTBOX
from freqfilter.tracking.client import open_store
from freqfilter.tracking.queries import RunRecord, download, folder_run, run_folders, stored_run, stored_runs
from freqfilter.training.checkpoint import Checkpoint, Checkpoints

logger = logging.getLogger(__name__)


def newest_unfinished(params: Params) -> RunRecord:
    """Return the newest training of these parameters that has not finished and has no running process.

    Raises:
        UserError: If there is none.
    """
    for run in _find_by_parameters(params):
        if run.status != "FINISHED" and not (run.owner and run.owner.is_alive):
            return run
    raise UserError(
        f"no unfinished run of these parameters in experiment {params.tracking.experiment}; "
        "give the run's id or its parameters"
    )


def _find_by_parameters(params: Params) -> Iterator[RunRecord]:
    digest, tracking = params.digest(), params.tracking
    if tracking.tracking == "online":
        open_store()
        having = f"tags.workflow = 'train' and tags.params_digest = '{digest}'"
        yield from stored_runs(experiment=tracking.experiment, having=having)
    else:
        for run in map(folder_run, run_folders(Path(tracking.run_dir))):
            if run.target_experiment == tracking.experiment and run.tags.get("params_digest") == digest:
                yield run


def is_started(run_id: str) -> bool:
    """Whether the program of a stored run has started, and not only ``mlflow run`` created it.

    Raises:
        UserError: If the store has no such run.
    """
    open_store()
    run = stored_run(run_id)
    return run.owner is not None or run.status != "RUNNING"


def find_run(run_id: str, run_dir: Path) -> RunRecord:
    """Return the run with an ID, from its folder if it is offline, or else from the store.

    Raises:
        UserError: If there is none.
    """
    # An ID typed by the user must not become a path outside the folder.
    if run_id.isalnum() and (run_dir / run_id / OUTBOX).exists():
        run = folder_run(run_dir / run_id)
        if run.target_experiment is not None:
            return run
    open_store()
    return stored_run(run_id)


def load_resume_point(run: RunRecord, run_dir: Path, *, force: bool = False) -> ResumePoint:
    """Load the newest checkpoint of a training, from the run's folder or else from its artifacts.

    Args:
        run: The run.
        run_dir: Folder of run folders, if the run does not have its own.
        force: Whether to resume although another host is recorded as the owner.

    Raises:
        UserError: If the run has finished, is not a training, is running, or has no checkpoint.
    """
    if run.status == "FINISHED" and run.target_experiment is None:
        raise UserError(f"run {run.run_id} has finished; start a new run")
    if run.workflow not in (None, "train"):
        raise UserError(f"run {run.run_id} is a run of {run.workflow}, which cannot be resumed; start a new run")
    _check_not_running(run, force=force)
    is_local = run.owner and run.owner.is_local
    folder = run.folder or Path(run.owner.run_dir if run.owner and is_local else run_dir) / run.run_id
    checkpoints = Checkpoints(folder / CHECKPOINTS, kept=1)
    checkpoint = checkpoints.latest(logger.warning)
    if checkpoint is None and run.target_experiment is None:
        download(run.run_id, CHECKPOINTS, folder)
        checkpoint = checkpoints.latest(logger.warning)
    if checkpoint is None:
        raise UserError(f"run {run.run_id} has no checkpoint in {folder} or its artifacts; start a new run")
    tracking = {"tracking": "offline" if run.target_experiment else "online", "run_dir": str(folder.parent)}
    spec = replace(checkpoint.spec, params=checkpoint.spec.params.with_tracking(**tracking))
    return ResumePoint(run.run_id, run.name, Checkpoint(spec, checkpoint.state), run.tags)


def _check_not_running(run: RunRecord, *, force: bool) -> None:
    if run.owner is None or force:
        return
    if run.owner.is_alive:
        raise UserError(f"run {run.run_id} is running in process {run.owner.pid}; stop that process first")
    if run.owner.is_alive is None and run.status == "RUNNING":
        raise UserError(
            f"run {run.run_id} is RUNNING on {run.owner.host}, which is not visible from this host; "
            "if its process is gone, add --force"
        )


def check_unchanged(resume_point: ResumePoint, given: Mapping[str, Any], *, recipe: str, folder: Path) -> None:
    """Check that given parameters equal those of the training, except ``run_dir``.

    Raises:
        UserError: If a parameter differs.
    """
    spec = resume_point.checkpoint.spec
    differing = changed_parameters(spec.params, {k: v for k, v in given.items() if k != "run_dir"}, folder=folder)
    if recipe not in (DEFAULT_RECIPE, spec.recipe):
        differing.insert(0, f"recipe={recipe} (it has {spec.recipe})")
    if differing:
        raise UserError(f"run {resume_point.run_id} resumes with its own parameters; remove {', '.join(differing)}")
