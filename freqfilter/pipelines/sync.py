"""Delivery of runs that were offline or whose store was unavailable."""

from __future__ import annotations

import logging
from pathlib import Path

from freqfilter.errors import UserError
from freqfilter.process import Interrupted, shutdown
from freqfilter.tracked_names import CHECKPOINTS, FILES, OUTBOX
from freqfilter.tracking.client import open_store
from freqfilter.tracking.outbox import Outbox, UndeliveredError, sender
from freqfilter.tracking.owner import RunLock
from freqfilter.tracking.queries import RunRecord, check_files, end_run, folder_run, run_folders, stored_run, upload_run
from freqfilter.tracking.ui_views import resume_command

logger = logging.getLogger(__name__)

BACKLOG_TIMEOUT_S = 3600.0  # the backlog of a week takes minutes


def sync(run_dir: Path) -> str:
    """Deliver the contents of run folders to the store.

    Args:
        run_dir: Folder of the run folders.

    Returns:
        The tracking URI to print.

    Raises:
        UserError: If the store cannot be used, or a run could not be delivered; the other runs are delivered.
        Interrupted: If a signal was received; another call delivers the rest.
    """
    tracking_uri, failed = open_store(), []
    folders = run_folders(run_dir)
    for folder in reversed(folders):  # oldest first
        try:
            shutdown.check()
            with RunLock(folder) as lock:
                if (folder / OUTBOX).exists():
                    _sync_one(folder_run(folder), lock)
                else:
                    logger.info(f"run {folder.name}: another process has delivered it meanwhile")
        except (BlockingIOError, FileNotFoundError):
            logger.info(f"run {folder.name}: another process is running or delivering it, skipped")
        except Interrupted as interrupted:
            interrupted.remedy = "python -m freqfilter sync"
            raise
        except UndeliveredError:  # the store is unavailable
            raise
        except UserError as error:
            failed.append(f"run {folder.name}: {error}")
            logger.info(failed[-1])
    if failed:
        raise UserError(f"{len(failed)} of {len(folders)} runs could not be delivered; first: {failed[0]}")
    if not folders:
        logger.info(f"nothing to sync in {run_dir}")
    return tracking_uri


def _sync_one(local: RunRecord, lock: RunLock) -> None:
    if local.target_experiment is not None:
        local = upload_run(local, lock)
        logger.info(f"run {local.run_id} is now in the store")
    check_files(local.run_id)
    folder = lock.folder
    send = sender(local.run_id, folder, lock.owner_ids())
    for name in (OUTBOX, FILES):
        Outbox(folder / name, send).close(BACKLOG_TIMEOUT_S)
    if local.status == "FINISHED":
        end_run(local.run_id, "FINISHED")
        lock.remove_folder()
        logger.info(f"run {local.run_id} is delivered: FINISHED")
        return
    # PyTorch is imported only if there is a training to finish.
    from freqfilter.pipelines.resume import load_resume_point
    from freqfilter.pipelines.train import train
    from freqfilter.training.checkpoint import Checkpoints

    checkpoint = Checkpoints(folder / CHECKPOINTS, kept=1).latest(logger.warning)
    if checkpoint and checkpoint.ended:
        resume_point = load_resume_point(stored_run(local.run_id), lock)
        spec = resume_point.checkpoint.spec
        result = train(spec.params, recipe=spec.recipe, name=resume_point.name, resume_point=resume_point)
        registered = f", registered: {result.model_name} version {result.version}" if result.version else ""
        logger.info(f"run {result.run.run_id} is delivered: FINISHED{registered}")
        return
    status = "KILLED" if local.status == "RUNNING" else local.status
    end_run(local.run_id, status)
    remedy = f"; resume with: {resume_command(local.run_id)}" if checkpoint else ""
    logger.info(f"run {local.run_id} is delivered up to its last point: {status}{remedy}")
