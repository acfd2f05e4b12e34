"""Delivery of runs that were offline or whose store was away."""

from __future__ import annotations

import logging
import shutil
from dataclasses import replace
from pathlib import Path

from freqfilter.errors import UserError
from freqfilter.process import shutdown
from freqfilter.tracked_names import CHECKPOINTS, OUTBOX
from freqfilter.tracking.client import open_store
from freqfilter.tracking.outbox import Outbox, UndeliveredError, sender
from freqfilter.tracking.queries import RunRecord, end_run, folder_run, run_folders, stored_run, upload_run
from freqfilter.tracking.ui_views import resume_command

logger = logging.getLogger(__name__)

BACKLOG_TIMEOUT_S = 3600.0  # a week without the store is delivered in minutes


def sync(run_dir: Path) -> str:
    """Bring the store up to what the folders of runs hold.

    Args:
        run_dir: Where they are.

    Returns:
        The tracking URI to show.

    Raises:
        UserError: If the store cannot be used or some run could not be delivered; the others have been.
    """
    tracking_uri, failed = open_store(), []
    folders = run_folders(run_dir)
    for folder in reversed(folders):  # as they were made
        shutdown.check()
        try:
            _sync_one(folder_run(folder), run_dir)
        except UndeliveredError:  # the store has gone
            raise
        except UserError as error:
            failed.append(f"run {folder.name}: {error}")
            logger.info(failed[-1])
    if failed:
        raise UserError(f"{len(failed)} of {len(folders)} runs could not be delivered, the first of them {failed[0]}")
    if not folders:
        logger.info(f"nothing waits in {run_dir}")
    return tracking_uri


def _sync_one(kept: RunRecord, run_dir: Path) -> None:
    in_store = stored_run(kept.run_id) if kept.target_experiment is None else None
    worker = (in_store or kept).owner
    if worker and (worker.is_alive or (worker.is_alive is None and (in_store or kept).status == "RUNNING")):
        logger.info(f"run {kept.run_id} is at work on {worker.host}: left alone")
        return
    if in_store is None:
        kept = upload_run(kept)
        logger.info(f"run {kept.run_id} is now in the store")
    folder = run_dir / kept.run_id
    Outbox(folder / OUTBOX, sender(kept.run_id, folder)).close(BACKLOG_TIMEOUT_S)
    # The folder knows: at the end of a process whose store has just come back, MLflow calls its run FINISHED.
    if kept.status == "FINISHED":
        end_run(kept.run_id, "FINISHED")
        shutil.rmtree(folder)
        logger.info(f"run {kept.run_id} is delivered: FINISHED")
        return
    # What a training needs is imported where there is one to be finished.
    from freqfilter.pipelines.resume import load_resume_point
    from freqfilter.pipelines.train import train
    from freqfilter.training.checkpoint import Checkpoints

    checkpoint = Checkpoints(folder / CHECKPOINTS, kept=1).latest(logger.warning)
    if checkpoint and checkpoint.ended:
        found = load_resume_point(replace(stored_run(kept.run_id), status=kept.status), run_dir)
        stated = found.checkpoint.spec
        done = train(stated.params, recipe=stated.recipe, name=found.name, resume_point=found)
        registered = f", registered: {done.model_name} version {done.version}" if done.version else ""
        logger.info(f"run {done.run.run_id} is delivered: FINISHED{registered}")
        return
    status = "KILLED" if kept.status == "RUNNING" else kept.status
    end_run(kept.run_id, status)
    remedy = f"; to go on: {resume_command(kept.run_id)}" if checkpoint else ""
    logger.info(f"run {kept.run_id} is delivered as far as it came: {status}{remedy}")
