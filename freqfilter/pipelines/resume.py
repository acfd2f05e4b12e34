"""Resumption of an interrupted training."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from freqfilter.config import Params
from freqfilter.config.load import DEFAULT_RECIPE, with_overrides
from freqfilter.errors import UserError
from freqfilter.pipelines.setup import ResumePoint
from freqfilter.tracked_names import CHECKPOINTS, OUTBOX
from freqfilter.tracking.client import open_store
from freqfilter.tracking.owner import RunLock, is_locked, owner_ids
from freqfilter.tracking.queries import RunRecord, download, folder_run, run_folders, stored_run, stored_runs
from freqfilter.training.checkpoint import Checkpoint, Checkpoints

logger = logging.getLogger(__name__)

# Parameters that change no result, so that a resumed training may have other values.
CHANGEABLE = {
    "register", "model_name", "system_metrics_interval", "tensorboard_dir", "checkpoint_every", "checkpoint_minutes",
    "checkpoints_kept",
}  # fmt: skip


def newest_unfinished(params: Params) -> RunRecord:
    """Return the newest training of these parameters that has not finished and has no running process.

    Raises:
        UserError: If there is none.
    """
    for run in _find_by_parameters(params):
        folder = run.folder or (run.owner.folder(run.run_id) if run.owner else None)
        if run.status != "FINISHED" and not (folder and is_locked(folder)):
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


def claim(run: RunRecord, run_dir: Path, *, take_over: bool = False) -> RunLock:
    """Lock a run that has not finished, so that no other process resumes or delivers it.

    Args:
        run: The run.
        run_dir: Folder of run folders, if that of the run is not visible here.
        take_over: Whether to resume a run whose owner may be running where its folder is not visible.

    Returns:
        The lock of the run's folder, which is created if it is not visible here.

    Raises:
        UserError: If the run has finished, is not a training, is running, or could be running elsewhere.
    """
    if run.status == "FINISHED" and run.target_experiment is None:
        raise UserError(f"run {run.run_id} has finished; start a new run")
    if run.workflow not in (None, "train"):
        raise UserError(f"run {run.run_id} is a run of {run.workflow}, which cannot be resumed; start a new run")
    owner, folder = run.owner, run.folder or run_dir / run.run_id
    if owner and run.folder is None and owner.id in owner_ids(there := owner.folder(run.run_id)):
        folder = there if there.is_dir() else folder
    try:
        lock = RunLock(folder)
    except (BlockingIOError, FileNotFoundError):
        raise UserError(f"run {run.run_id} is running in {owner}; stop that process first") from None
    online = run.target_experiment is None
    if online and run.status == "RUNNING" and owner and owner.id not in lock.owner_ids() and not take_over:
        lock.release()
        raise UserError(
            f"run {run.run_id} is RUNNING in {owner}, whose folder {owner.run_dir} is not visible here; if that "
            "process has ended, add --take-over"
        )
    return lock


def load_resume_point(run: RunRecord, lock: RunLock) -> ResumePoint:
    """Load the newest checkpoint of a training, from the run's folder or else from its artifacts.

    Args:
        run: The run, read after it was locked.
        lock: Its lock.

    Raises:
        UserError: If the run has no checkpoint.
    """
    folder = lock.folder
    checkpoints = Checkpoints(folder / CHECKPOINTS, kept=1)
    checkpoint = checkpoints.latest(logger.warning)
    if checkpoint is None and run.target_experiment is None:
        download(run.run_id, CHECKPOINTS, folder)
        checkpoint = checkpoints.latest(logger.warning)
    if checkpoint is None:
        raise UserError(f"run {run.run_id} has no checkpoint in {folder} or its artifacts; start a new run")
    tracking = {"tracking": "offline" if run.target_experiment else "online", "run_dir": str(folder.parent)}
    spec = replace(checkpoint.spec, params=checkpoint.spec.params.with_tracking(**tracking))
    return ResumePoint(run.run_id, run.name, Checkpoint(spec, checkpoint.state), run.tags, lock)


def with_changes(resume_point: ResumePoint, given: Mapping[str, Any], *, recipe: str, folder: Path) -> ResumePoint:
    """Apply given parameters that change no result; the others have to equal those of the training.

    Raises:
        UserError: If one differs.
    """
    spec = resume_point.checkpoint.spec
    new = with_overrides(spec.params, {k: v for k, v in given.items() if k != "run_dir"}, folder=folder)
    before, after = spec.params.canonical(), new.canonical()
    differing = [
        f"{name}={after[name]} (it has {value})"
        for name, value in before.items()
        if after[name] != value and name not in CHANGEABLE
    ]
    if recipe not in (DEFAULT_RECIPE, spec.recipe):
        differing.insert(0, f"recipe={recipe} (it has {spec.recipe})")
    if differing:
        raise UserError(f"run {resume_point.run_id} resumes with its own parameters; remove {', '.join(differing)}")
    return replace(resume_point, checkpoint=replace(resume_point.checkpoint, spec=replace(spec, params=new)))
