"""Lifecycle of runs: open, own, end with the right status."""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Run as MlflowRun
from mlflow.tracking.context.registry import resolve_tags
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID, MLFLOW_RUN_NAME

from freqfilter.atomic_io import writable_folder
from freqfilter.config import TrackingParams
from freqfilter.config.load import check_name
from freqfilter.errors import TrainingError, UserError, one_line, without_credentials
from freqfilter.process import Interrupted, launched_run, launcher, running, set_status_after, shutdown
from freqfilter.tracking import provenance
from freqfilter.tracking.client import (
    STORE_ERRORS,
    check_active,
    experiment_id,
    temporary_dir,
    wrap_store_errors,
)
from freqfilter.tracking.locations import check_artifacts, check_location, check_path
from freqfilter.tracking.outbox import UndeliveredError
from freqfilter.tracking.owner import PROCESS, RunLock, RunOwner, TakenOverError, check_owner
from freqfilter.tracking.run import DELIVERY_TIMEOUT_S, DIAGNOSIS, OpenRun, Run, check_tensorboard
from freqfilter.tracking.ui_views import create_saved_views
from freqfilter.training.device import wrap_memory_errors

FAILURE_TIMEOUT_S = 10.0  # for a run that was interrupted or failed
ENDED_BECAUSE = "ended_because"
TAKE_OVER_S = 5.0  # for requests of a former owner that are under way
NEW_RUN = "start a new run, without --run-id and MLFLOW_RUN_ID"
GENERATED_NAME = re.compile(r"[a-z]+-[a-z]+-\d+")  # such as capable-shrike-956


@dataclass(frozen=True)
class Job:
    """What a run is for.

    Attributes:
        workflow: Name of the job, the run's tag ``workflow``.
        name: Name of the run, unless the user has named it; it replaces names that MLflow generates.
        params: Parameters that the run records.
        params_digest: Digest of the parameters that determine the results; empty for that of ``params``.
        repeatable: Whether an unfinished run of the same parameters can be repeated in place.
    """

    workflow: str
    name: str
    params: Mapping[str, str] = field(default_factory=dict)
    params_digest: str = ""
    repeatable: bool = True

    def __post_init__(self) -> None:
        """Check the name, before a run exists.

        Raises:
            UserError: If MLflow would not keep it as it is.
        """
        check_name("run_name", self.name)

    @property
    def tags(self) -> dict[str, str]:
        """Tags that identify the job."""
        text = json.dumps(dict(self.params), sort_keys=True)
        digest = self.params_digest or hashlib.sha256(text.encode()).hexdigest()
        return {"workflow": self.workflow, "params_digest": digest}


@contextmanager
def open_run(
    tracking: TrackingParams, job: Job, *, parent: Run | None = None, lock: RunLock | None = None
) -> Iterator[Run]:
    """Open a new run, the run that ``mlflow run`` has created, or a run to resume, and record its job.

    Its status becomes FINISHED, FAILED or KILLED. A run that did not finish keeps its folder, and has the reason in the
    tag ``ended_because``; if a diagnosis ended it, in ``diagnosis.<name>`` too.

    Args:
        tracking: Parameters of the store. ``experiment`` applies to new runs; ``mlflow run`` chooses its own.
        job: The job.
        parent: The open run that becomes its parent, if any.
        lock: Lock of the run to resume, if any; it is released at the end.

    Raises:
        UserError: If MLflow refuses the run or it belongs to another job, its artifacts or its folder cannot be
            written, or memory runs out in the block.
        TakenOverError: If another process has taken over the run.
        UndeliveredError: If the store does not accept all messages; they stay in the run's folder.
    """
    check_folders(tracking)  # before a run exists, which could only fail
    process = launcher()
    if parent is None:
        shutdown.follow(process)
    run: Run | None = None
    resumed = lock is not None
    try:
        if tracking.tracking == "offline":
            run = _open_offline(tracking, job, lock)
        else:
            with wrap_store_errors("cannot open a run"):
                run = _open_online(tracking, job, parent=parent, lock=lock, process=process)
    except BaseException:
        if lock:
            lock.release()
        raise
    try:
        if not resumed:
            # `mlflow run` may have chosen another experiment than the parameter.
            run.log_params({name: run.experiment if name == "experiment" else v for name, v in job.params.items()})
            with temporary_dir(run.folder):
                source = provenance.source()
            run.log_source(source)
            run.log_tags(job.tags)
        with wrap_memory_errors():
            yield run
        run.close("FINISHED" if run.online else None, DELIVERY_TIMEOUT_S)
        if run.online:
            _end(run.run_id, "FINISHED", run.owner, process)
    except TakenOverError:  # the run belongs to another process
        with suppress(Exception):
            run.close(None, 0)
        raise
    except UndeliveredError:
        with suppress(Exception):
            run.close(None, 0)
        _end(run.run_id, "FAILED", run.owner, process)
        raise
    except BaseException as error:
        status = "KILLED" if isinstance(error, Interrupted) else "FAILED"
        # The store or the disk may be the cause; a second error must not hide the first.
        with suppress(Exception):
            run.log_tags(_failure_tags(error))
        with suppress(Exception):
            run.close(status, FAILURE_TIMEOUT_S)
        if run.online:
            _end(run.run_id, status, run.owner, process)
        raise
    else:
        if run.online:
            run.lock.remove_folder()
    finally:
        run.lock.release()


def _end(run_id: str, status: str, owner: RunOwner, process: Any) -> None:
    """Set the status in the store; after a signal it is set again, since a launcher overwrites it.

    Raises:
        UndeliveredError: If the run has finished and the store does not accept the status.
    """
    client = MlflowClient()

    def end() -> None:
        check_owner(client, run_id, {owner.id})
        client.set_terminated(run_id, status)

    if status == "FINISHED":
        with wrap_delivery_errors(f"the end of run {run_id}"):
            end()
    else:
        with suppress(TakenOverError, *STORE_ERRORS):
            end()
    if shutdown.received and process and running(process):
        set_status_after(process, run_id, status, owner_id=owner.id)


def _open_online(tracking: TrackingParams, job: Job, *, parent: Run | None, lock: RunLock | None, process: Any) -> Run:
    client, run_dir = MlflowClient(), Path(tracking.run_dir)
    owner = RunOwner.current(tracking.run_dir)
    if lock is None and parent is None and (launched := launched_run()):
        lock = _lock_launched(client, launched, job, run_dir / launched)
        os.environ.pop("MLFLOW_RUN_ID")  # further runs of this process are new ones
    is_new = lock is None
    lock = lock or _create(client, tracking, job, owner, parent)
    run_id = lock.folder.name
    try:
        if not is_new:
            _take_over(client, run_id, lock, owner)
        return _opened(client, tracking, job, run_id, owner, lock)
    except BaseException as error:
        _end(run_id, "KILLED" if isinstance(error, Interrupted) else "FAILED", owner, process)
        lock.release()
        raise


def _create(client: MlflowClient, tracking: TrackingParams, job: Job, owner: RunOwner, parent: Run | None) -> RunLock:
    """Create a run, and lock its folder."""
    # By id: of two processes that create it by name at once, one silently uses the experiment Default.
    target_id = experiment_id(client, tracking.experiment)
    if parent is None:
        check_artifacts(client, target_id)
    lock = RunLock(Path(tracking.run_dir) / f".{owner.id}")  # renamed to the run's id once there is one
    try:
        lock.add(owner)
        tags = owner.tag | ({MLFLOW_PARENT_RUN_ID: parent.run_id} if parent else {})
        run_id = client.create_run(target_id, tags=resolve_tags(tags), run_name=job.name).info.run_id
        lock.move(lock.folder.with_name(run_id))
    except BaseException:
        lock.release()
        raise
    return lock


def _opened(
    client: MlflowClient, tracking: TrackingParams, job: Job, run_id: str, owner: RunOwner, lock: RunLock
) -> Run:
    """Read the state of the run in the store, and open it."""
    stored = client.get_run(run_id)
    experiment = client.get_experiment(stored.info.experiment_id)
    check_location(client, experiment)
    create_saved_views(client, experiment)
    name = stored.info.run_name
    if GENERATED_NAME.fullmatch(name):
        name = job.name
        client.set_tag(run_id, MLFLOW_RUN_NAME, name, synchronous=True)
    logged_points = set()
    for tag, value in stored.data.tags.items():  # `mlflow run` stores the project's address
        if (clean := without_credentials(value)) != value:
            client.set_tag(run_id, tag, clean, synchronous=True)
    for metric in stored.data.metrics:
        logged_points |= {(metric, point.step) for point in client.get_metric_history(run_id, metric)}
    opened = OpenRun(
        experiment.name,
        str(experiment.experiment_id),
        name,
        stored.data.params,
        stored.data.tags,
        frozenset(logged_points),
    )
    run = Run(run_id, opened, tracking=tracking, lock=lock, owner=owner)
    if ENDED_BECAUSE in stored.data.tags:
        run.remove_tag(ENDED_BECAUSE)
    return run


def _open_offline(tracking: TrackingParams, job: Job, lock: RunLock | None) -> Run:
    resumed = lock is not None
    owner = RunOwner.current(tracking.run_dir)
    lock = lock or RunLock(Path(tracking.run_dir) / uuid.uuid4().hex)
    lock.add(owner)
    run = Run(lock.folder.name, OpenRun(tracking.experiment, "", job.name), tracking=tracking, lock=lock, owner=owner)
    if resumed:
        run.remove_tag(ENDED_BECAUSE)
    else:
        run.write_header(job.name)
    run.log_tags(owner.tag)
    return run


def check_launched_run(job: Job) -> None:
    """Check that a job may take the run of ``mlflow run``, if there is one, before the job writes anything.

    Raises:
        UserError: If the run is of another job or other parameters, has finished, or is deleted.
    """
    if run_id := launched_run():
        with wrap_store_errors(f"run {run_id}"):
            _check_takes(MlflowClient().get_run(run_id), job)


def _check_takes(run: MlflowRun, job: Job) -> None:
    run_id, tags, status = run.info.run_id, run.data.tags, run.info.status
    if run.info.lifecycle_stage == "deleted":
        raise UserError(f"run {run_id} is deleted; {NEW_RUN}")
    if status in ("RUNNING", "SCHEDULED") and not ({PROCESS, "workflow"} & set(tags) or run.data.metrics):
        return
    if status == "FINISHED" or not job.repeatable or any(tags.get(name) != tag for name, tag in job.tags.items()):
        what = f"a {status} run of {tags.get('workflow', 'another program')}"
        raise UserError(f"run {run_id} is {what}, not a new run for {job.workflow}; {NEW_RUN}")


def _lock_launched(client: MlflowClient, run_id: str, job: Job, folder: Path) -> RunLock:
    """Lock the run that ``mlflow run`` has created, or an unfinished run of the same job to repeat.

    Raises:
        UserError: As ``check_launched_run`` does, or if another process works on the run.
    """
    _check_takes(client.get_run(run_id), job)
    try:
        lock = RunLock(folder)
    except (BlockingIOError, FileNotFoundError):
        raise UserError(f"run {run_id} is running in another process; {NEW_RUN}") from None
    try:
        run = client.get_run(run_id)  # again, now that no other process changes it
        _check_takes(run, job)
        owner = RunOwner.from_tags(run.data.tags)
        if run.info.status == "RUNNING" and owner and owner.id not in lock.owner_ids():
            raise UserError(
                f"run {run_id} is RUNNING in {owner}, whose folder {owner.run_dir} is not visible here; {NEW_RUN}"
            )
    except BaseException:
        lock.release()
        raise
    return lock


def _take_over(client: MlflowClient, run_id: str, lock: RunLock, owner: RunOwner) -> None:
    """Record a new owner in the folder and in the store, and set the run to RUNNING."""
    stored = client.get_run(run_id)
    check_active(client, client.get_experiment(stored.info.experiment_id))
    if stored.info.lifecycle_stage == "deleted":
        raise UserError(
            f"run {run_id} is deleted; restore it with `mlflow runs restore --run-id {run_id}`, or start a new run"
        )
    former = RunOwner.from_tags(stored.data.tags)
    elsewhere = former is not None and former.id not in lock.owner_ids()
    lock.add(owner)
    client.set_tag(run_id, *next(iter(owner.tag.items())), synchronous=True)
    client.update_run(run_id, status="RUNNING")
    if elsewhere:  # a delivery of the former owner may be under way
        time.sleep(TAKE_OVER_S)


@contextmanager
def wrap_delivery_errors(what: str) -> Iterator[None]:
    """Context manager that delivers ``what`` to the store.

    Raises:
        UndeliveredError: If the store does not accept it.
    """
    try:
        yield
    except STORE_ERRORS as error:
        raise UndeliveredError(f"the tracking store did not accept {what} ({one_line(error)})") from error


def check_folders(tracking: TrackingParams) -> None:
    """Check that a run can write its folder and TensorBoard's.

    Raises:
        UserError: If it cannot.
    """
    if tracking.tensorboard_dir:
        check_tensorboard(Path(tracking.tensorboard_dir))
    check_path("run_dir", tracking.run_dir)
    writable_folder(Path(tracking.run_dir))


def _failure_tags(error: BaseException) -> dict[str, str]:
    reasons = {ENDED_BECAUSE: without_credentials(f"{type(error).__name__}: {error}")[:5000]}
    if isinstance(error, TrainingError):
        reasons[f"{DIAGNOSIS}.{error.diagnosis}"] = str(error)
    return reasons
