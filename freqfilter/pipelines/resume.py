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


def newest_unfinished(asked: Params) -> RunRecord:
    """The newest training of these parameters that has not finished and that nobody works on.

    Raises:
        UserError: If there is none.
    """
    for run in _find_by_parameters(asked):
        if run.status != "FINISHED" and not (run.owner and run.owner.is_alive):
            return run
    raise UserError(
        f"no unfinished run of these parameters in experiment {asked.tracking.experiment}: "
        "give its id, or the parameters that it had"
    )


def _find_by_parameters(asked: Params) -> Iterator[RunRecord]:
    digest, tracking = asked.digest(), asked.tracking
    if tracking.tracking == "online":
        open_store()
        having = f"tags.workflow = 'train' and tags.params_digest = '{digest}'"
        yield from stored_runs(experiment=tracking.experiment, having=having)
    else:
        for run in map(folder_run, run_folders(Path(tracking.run_dir))):
            if run.target_experiment == tracking.experiment and run.tags.get("params_digest") == digest:
                yield run


def is_started(run_id: str) -> bool:
    """Whether a run of the store is more than ``mlflow run`` has just made.

    Raises:
        UserError: If the store has no such run.
    """
    open_store()
    run = stored_run(run_id)
    return run.owner is not None or run.status != "RUNNING"


def find_run(run_id: str, run_dir: Path) -> RunRecord:
    """The run of an id: a store's, or one that is offline.

    Raises:
        UserError: If there is none.
    """
    # What a user types must not become a path outside the folder.
    if run_id.isalnum() and (run_dir / run_id / OUTBOX).exists():
        run = folder_run(run_dir / run_id)
        if run.target_experiment is not None:
            return run
    open_store()
    return stored_run(run_id)


def load_resume_point(run: RunRecord, run_dir: Path, *, abandoned: bool = False) -> ResumePoint:
    """A training with its newest checkpoint, from the run's folder or else from its artifacts.

    Args:
        run: The run.
        run_dir: Where its folder is if it does not say.
        abandoned: Whether a user knows that nobody works on it, whatever it says.

    Raises:
        UserError: If it has finished, is of another job, is still at work, or has no checkpoint.
    """
    if run.status == "FINISHED" and run.target_experiment is None:
        raise UserError(f"run {run.run_id} has finished: there is nothing to go on with")
    if run.workflow not in (None, "train"):
        raise UserError(f"run {run.run_id} is of {run.workflow}, which does not go on: start it anew")
    _check_not_running(run, abandoned=abandoned)
    at_home = run.owner and run.owner.is_local
    folder = run.folder or Path(run.owner.run_dir if run.owner and at_home else run_dir) / run.run_id
    checkpoints = Checkpoints(folder / CHECKPOINTS, kept=1)
    checkpoint = checkpoints.latest(logger.warning)
    if checkpoint is None and run.target_experiment is None:
        download(run.run_id, CHECKPOINTS, folder)
        checkpoint = checkpoints.latest(logger.warning)
    if checkpoint is None:
        raise UserError(f"run {run.run_id} has no checkpoint, in {folder} or among its artifacts: start it anew")
    where = {"tracking": "offline" if run.target_experiment else "online", "run_dir": str(folder.parent)}
    stated = replace(checkpoint.spec, params=checkpoint.spec.params.with_tracking(**where))
    return ResumePoint(run.run_id, run.name, Checkpoint(stated, checkpoint.state), run.tags)


def _check_not_running(run: RunRecord, *, abandoned: bool) -> None:
    if run.owner is None or abandoned:
        return
    if run.owner.is_alive:
        raise UserError(f"run {run.run_id} is at work, in process {run.owner.pid}: stop that first")
    if run.owner.is_alive is None and run.status == "RUNNING":
        raise UserError(
            f"run {run.run_id} says that {run.owner.host} works on it, which cannot be seen from here: "
            "if that is not so, add --force"
        )


def check_unchanged(found: ResumePoint, given: Mapping[str, Any], *, recipe: str, folder: Path) -> None:
    """See that what was typed is what the training began with; where its folder is may differ.

    Raises:
        UserError: If something differs, naming it.
    """
    stated = found.checkpoint.spec
    differing = changed_parameters(stated.params, {k: v for k, v in given.items() if k != "run_dir"}, folder=folder)
    if recipe not in (DEFAULT_RECIPE, stated.recipe):
        differing.insert(0, f"recipe={recipe} (it has {stated.recipe})")
    if differing:
        raise UserError(
            f"run {found.run_id} goes on with the parameters that it began with: drop {', '.join(differing)}"
        )
