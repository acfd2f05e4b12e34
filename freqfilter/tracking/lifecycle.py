"""Lifecycle of runs: open, own, end with the right status."""

from __future__ import annotations

import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import mlflow
from mlflow import MlflowClient
from mlflow.utils.mlflow_tags import MLFLOW_RUN_NAME

from freqfilter.atomic_io import writable_folder
from freqfilter.config import TrackingParams
from freqfilter.errors import TrainingError, one_line, without_credentials
from freqfilter.process import Interrupted, launched_by_mlflow, launcher, running, shutdown
from freqfilter.tracking.client import STORE_ERRORS, experiment_id, wrap_store_errors
from freqfilter.tracking.outbox import UndeliveredError
from freqfilter.tracking.owner import RunOwner, set_status_after
from freqfilter.tracking.run import DELIVERY_TIMEOUT_S, DIAGNOSIS, OpenRun, Run, check_tensorboard
from freqfilter.tracking.ui_views import create_saved_views
from freqfilter.training.device import wrap_memory_errors

FAILURE_TIMEOUT_S = 10.0  # for a run that was interrupted or failed
ENDED_BECAUSE = "ended_because"
GENERATED_NAME = re.compile(r"[a-z]+-[a-z]+-\d+")  # such as capable-shrike-956


@contextmanager
def open_run(
    tracking: TrackingParams, *, name: str, parent: Run | None = None, resumed: str | None = None
) -> Iterator[Run]:
    """Open a new run, the run that ``mlflow run`` has created, or a run to resume.

    Its status becomes FINISHED, FAILED or KILLED. A run that did not finish keeps its folder, and has the reason in the
    tag ``ended_because``; if a diagnosis ended it, in ``diagnosis.<name>`` too.

    Args:
        tracking: Parameters of the store. ``experiment`` applies to new runs; ``mlflow run`` chooses its own.
        name: Name of the run, unless a person has named it; it replaces names that MLflow generates.
        parent: The open run that becomes its parent, if any.
        resumed: Id of the run to resume, if any.

    Raises:
        UserError: If MLflow refuses the run, a folder cannot be written, or memory runs out in the block.
        UndeliveredError: If the store does not accept all messages; they stay in the run's folder.
    """
    check_folders(tracking)  # before a run exists, which could only fail
    process = launcher()  # start_run() unsets MLFLOW_RUN_ID
    if parent is None:
        shutdown.follow(process)
    run: Run | None = None
    ending = _Ending(process)
    try:
        if tracking.tracking == "offline":
            run = _open_offline(tracking, name=name, resumed=resumed)
        else:
            with wrap_store_errors("cannot open a run"):
                run = _open_online(tracking, name=name, nested=parent is not None, resumed=resumed, ending=ending)
        with wrap_memory_errors():
            yield run
        run.close("FINISHED" if run.online else None, DELIVERY_TIMEOUT_S)
        ending.end("FINISHED")
    except UndeliveredError:
        if run:
            with suppress(Exception):
                run.close(None, 0)
        ending.end("FAILED")  # MLflow would set FINISHED when this process exits, if the store is back by then
        raise
    except BaseException as error:
        status = "KILLED" if isinstance(error, Interrupted) else "FAILED"
        if run:
            # The store or the disk may be the cause; a second error must not hide the first.
            with suppress(Exception):
                run.log_tags(_failure_tags(error))
            with suppress(Exception):
                run.close(status, FAILURE_TIMEOUT_S)
        ending.end(status)
        raise
    if run.online:
        shutil.rmtree(run.folder, ignore_errors=True)


class _Ending:
    """Sets the final status of an MLflow run; does nothing before the run is started."""

    def __init__(self, process: Any) -> None:
        self._process = process
        self.run_id: str | None = None

    def end(self, status: str) -> None:
        """End the run; after a signal the status is set again, since a launcher overwrites it.

        Raises:
            UndeliveredError: If it has finished and the store does not accept the status.
        """
        if self.run_id is None:
            return
        if status == "FINISHED":
            with wrap_delivery_errors(f"the end of run {self.run_id}"):
                mlflow.end_run(status)
        else:
            with suppress(*STORE_ERRORS):
                mlflow.end_run(status)
        if shutdown.received and self._process and running(self._process):
            set_status_after(self._process, self.run_id, status)


def _open_online(tracking: TrackingParams, *, name: str, nested: bool, resumed: str | None, ending: _Ending) -> Run:
    launched = launched_by_mlflow()
    if not launched and not resumed:
        # By id: of two processes that create it by name at once, one silently uses the experiment Default.
        mlflow.set_experiment(experiment_id=experiment_id(MlflowClient(), tracking.experiment))
    # System metrics go through the outbox; MLflow's thread would log them twice.
    active = mlflow.start_run(
        run_id=resumed, nested=nested, tags=RunOwner.current(tracking.run_dir).tag, log_system_metrics=False
    )
    run_id = ending.run_id = active.info.run_id
    client = MlflowClient()
    experiment = client.get_experiment(active.info.experiment_id)
    create_saved_views(client, experiment)
    if GENERATED_NAME.fullmatch(active.info.run_name):
        client.set_tag(run_id, MLFLOW_RUN_NAME, name)
    else:
        name = active.info.run_name
    data, logged_points = client.get_run(run_id).data, set()
    for tag, value in data.tags.items():  # `mlflow run` stores the project's address
        if (clean := without_credentials(value)) != value:
            client.set_tag(run_id, tag, clean)
    for metric in data.metrics if resumed else ():
        logged_points |= {(metric, point.step) for point in client.get_metric_history(run_id, metric)}
    run = Run(
        run_id,
        OpenRun(experiment.name, str(experiment.experiment_id), name, data.params, data.tags, frozenset(logged_points)),
        tracking=tracking,
    )
    if resumed:
        run.remove_tag(ENDED_BECAUSE)
    return run


def _open_offline(tracking: TrackingParams, *, name: str, resumed: str | None) -> Run:
    run = Run(resumed or uuid.uuid4().hex, OpenRun(tracking.experiment, "", name), tracking=tracking)
    if resumed:
        run.remove_tag(ENDED_BECAUSE)
    else:
        run.write_header(name)
    run.log_tags(RunOwner.current(tracking.run_dir).tag)
    return run


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
    writable_folder(Path(tracking.run_dir))


def _failure_tags(error: BaseException) -> dict[str, str]:
    reasons = {ENDED_BECAUSE: without_credentials(f"{type(error).__name__}: {error}")[:5000]}
    if isinstance(error, TrainingError):
        reasons[f"{DIAGNOSIS}.{error.diagnosis}"] = str(error)
    return reasons
