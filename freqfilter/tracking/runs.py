"""A tracked run: what it is made of, and the status in which it truly ended."""

from __future__ import annotations

import re
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
from matplotlib.figure import Figure
from mlflow import MlflowClient
from mlflow.utils.mlflow_tags import MLFLOW_RUN_NAME, MLFLOW_RUN_NOTE
from numpy.typing import ArrayLike

from freqfilter.errors import TrainingError
from freqfilter.files import replacing, writable_folder
from freqfilter.filters.compute import memory_errors
from freqfilter.launch import launched_by_mlflow, launcher, running
from freqfilter.params import TrackingParams
from freqfilter.signals.windows import WindowSet
from freqfilter.stopping import Stopped, Stopping
from freqfilter.tracking.afterwards import set_status_after
from freqfilter.tracking.board import TensorBoard, check_board
from freqfilter.tracking.outbox import METRICS, Outbox, UndeliveredError, known_metrics
from freqfilter.tracking.processes import Worker
from freqfilter.tracking.provenance import LARGEST_PATCH, Source
from freqfilter.tracking.sending import described, now_ms, sender
from freqfilter.tracking.store import STORE_ERRORS, translated

DELIVERY_TIMEOUT_S = 60.0
LAST_WORDS_TIMEOUT_S = 10.0  # of a run that was stopped or failed
OUTBOX = "outbox.jsonl"
DIAGNOSIS = "diagnosis"  # what the tags of a diagnosis begin with
ENDED_BECAUSE = "ended_because"
GENERATED_NAME = re.compile(r"[a-z]+-[a-z]+-\d+")  # such as capable-shrike-956
# What MLflow's UI shows of an experiment: runs and models, not prompts and traces.
EXPERIMENT_KIND = ("mlflow.experimentKind", "custom_model_development")


@dataclass(frozen=True)
class Opened:
    """What the store says of a run that has just been opened.

    Attributes:
        experiment: Name of the experiment that it is in.
        name: What it is called.
        params: Parameters that it has already.
        known: Names and steps of the metrics that it has already.
    """

    experiment: str
    name: str
    params: Mapping[str, str] = field(default_factory=dict)
    known: frozenset[tuple[str, int]] = frozenset()


class Run:
    """An open run; ``open_run`` makes it.

    What it logs goes into its outbox and from there to the store, so that nothing here waits for the store.

    Attributes:
        run_id: MLflow's; offline one of our own, until there is one of MLflow's.
        experiment: Name of the experiment that it is in.
        online: Whether a store hears of it.
        folder: Its scratch files, in a folder of this run alone; gone when the run has finished.
    """

    def __init__(self, run_id: str, opened: Opened, *, tracking: TrackingParams) -> None:
        self.run_id = run_id
        self.experiment = opened.experiment
        self.online = tracking.tracking == "online"
        self.folder = writable_folder(Path(tracking.run_dir) / run_id)
        self._params = opened.params
        self._known = opened.known | known_metrics(self.folder / OUTBOX)
        self._board: TensorBoard | None = None
        if tracking.tensorboard_dir:
            self._board = TensorBoard(Path(tracking.tensorboard_dir), name=opened.name, run_id=run_id)
        self._outbox = Outbox(self.folder / OUTBOX, sender(run_id, self.folder) if self.online else None)

    def log_params(self, params: Mapping[str, str]) -> None:
        """Log parameters, but for those that ``mlflow run`` has logged already, as they were typed.

        MLflow refuses a second value, also another spelling of the first. What compares runs reads the file of
        resolved parameters, which is the same for all spellings.
        """
        self._outbox.append("params", values={name: text for name, text in params.items() if name not in self._params})
        if self._board:
            self._board.log_params(params)

    def log_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags."""
        self._outbox.append("tags", values=dict(tags))

    def describe(self, markdown: str) -> None:
        """Set the description that the run's page shows."""
        self.log_tags({MLFLOW_RUN_NOTE: markdown})

    def log_metrics(self, metrics: Mapping[str, float], *, step: int, model_id: str | None = None) -> None:
        """Log the metrics of an epoch, but for those that a run which goes on has logged before it was interrupted.

        Args:
            metrics: Values by name.
            step: The epoch.
            model_id: The logged model that they also describe, if any.
        """
        new = {name: value for name, value in metrics.items() if (name, step) not in self._known}
        self._known |= {(name, step) for name in new}
        self._outbox.append(METRICS, values=new, step=step, time_ms=now_ms(), model_id=model_id)
        if self._board:
            self._board.log_metrics(new, step=step)

    def log_data(self, windows: WindowSet, *, name: str, context: str) -> None:
        """Note a data set as an input of the run, with its digest: the signals, not the windows cut from them."""
        features, targets = (tensor.numpy() for tensor in windows.content())
        dataset = mlflow.data.from_numpy(features, targets=targets, name=name, digest=windows.digest()[:12])
        self._outbox.append("data", dataset=described(dataset), context=context)

    def log_file(self, path: Path) -> None:
        """Log a file of the run's folder under the name that it has there."""
        self._outbox.append("file", path=path.relative_to(self.folder).as_posix())

    def unsent_files(self) -> set[Path]:
        """Files of the run's folder that have yet to be delivered."""
        waiting = (message["path"] for message in self._outbox.waiting() if message["kind"] == "file")
        return {self.folder / path for path in waiting}

    def deliver(self) -> None:
        """Wait until the store has everything that was logged.

        Raises:
            UndeliveredError: If it does not take it in time.
        """
        self._outbox.wait(DELIVERY_TIMEOUT_S)

    def log_bytes(self, content: bytes, artifact: str) -> None:
        """Log bytes as a file."""
        with replacing(self.folder / artifact) as file:
            file.write(content)
        self.log_file(self.folder / artifact)

    def log_arrays(self, artifact: str, **arrays: ArrayLike) -> None:
        """Log arrays as a ``.npz`` file."""
        with replacing(self.folder / artifact) as file:
            np.savez(file, allow_pickle=False, **arrays)
        self.log_file(self.folder / artifact)

    def log_figure(self, figure: Figure, artifact: str, *, dpi: int = 120) -> None:
        """Log a figure as a picture of ``dpi`` dots an inch."""
        with replacing(self.folder / artifact) as file:
            figure.savefig(file, format="png", dpi=dpi)
        self.log_file(self.folder / artifact)

    def log_source(self, source: Source) -> None:
        """Tag the run with the state of its code, and keep the uncommitted patch where it is not too large."""
        self.log_tags(source.tags)
        if 0 < len(source.patch) <= LARGEST_PATCH:
            self.log_bytes(source.patch, "source/uncommitted.patch")

    def _close(self, status: str, timeout_s: float) -> None:
        try:
            if self._board:
                self._board.close()
        finally:
            self._outbox.append("end", status=status, time_ms=now_ms())
            self._outbox.close(timeout_s)


@contextmanager
def open_run(
    tracking: TrackingParams,
    *,
    name: str,
    stopping: Stopping,
    parent: Run | None = None,
    resumed: str | None = None,
) -> Iterator[Run]:
    """A run of its own, the one that ``mlflow run`` has made, or one to go on with.

    It ends FINISHED, FAILED or KILLED as it did. A run that did not finish keeps its folder, and says why it ended in
    the tag ``ended_because``; if a diagnosis has ended it, in ``diagnosis.<name>`` too.

    Args:
        tracking: Where runs are kept. An experiment is for a run of its own; the other is where MLflow put it.
        name: What the run is called unless a person has named it: MLflow's own names say nothing.
        stopping: Hears of the launcher, to end with it.
        parent: The open run that this one is a part of, if any.
        resumed: Id of the run to go on with, if any.

    Raises:
        UserError: If MLflow refuses the run, a folder cannot be written, or memory runs out in the block.
        UndeliveredError: If the store does not take everything; the run's folder has it.
    """
    check_folders(tracking)  # before there is a run, which could only fail
    process = launcher()  # opening the run takes the sign of it away
    if parent is None:
        stopping.end_with(process)
    run: Run | None = None
    ending = _Ending(process, stopping)
    try:
        if tracking.tracking == "offline":
            run = _open_offline(tracking, name=name, resumed=resumed)
        else:
            with translated("no run can be opened"):
                run = _open_online(tracking, name=name, nested=parent is not None, resumed=resumed, ending=ending)
        with memory_errors():
            yield run
        run._close("FINISHED", DELIVERY_TIMEOUT_S)
        ending.end("FINISHED")
    except BaseException as error:
        status = "KILLED" if isinstance(error, Stopped) else "FAILED"
        if run:
            # The store, or the disk, may be what failed: that must not hide the error.
            with suppress(Exception):
                run.log_tags(_reasons(error))
            with suppress(Exception):
                run._close(status, LAST_WORDS_TIMEOUT_S)
        if not isinstance(error, UndeliveredError):  # such a run has not ended: it waits to be delivered
            ending.end(status)
        raise
    if run.online:
        shutil.rmtree(run.folder, ignore_errors=True)


class _Ending:
    """How a run of MLflow's ends; nothing where it has not begun."""

    def __init__(self, process: Any, stopping: Stopping) -> None:
        self._process = process
        self._stopping = stopping
        self.run_id: str | None = None

    def end(self, status: str) -> None:
        """End the run; a launcher, if any, will get its status wrong when it hears of a stop.

        Raises:
            UndeliveredError: If it has finished and the store does not take that.
        """
        if self.run_id is None:
            return
        if status == "FINISHED":
            with delivering(f"the end of run {self.run_id}"):
                mlflow.end_run(status)
        else:
            with suppress(*STORE_ERRORS):
                mlflow.end_run(status)
        if self._stopping.stopped and self._process and running(self._process):
            set_status_after(self._process, self.run_id, status)


def _open_online(tracking: TrackingParams, *, name: str, nested: bool, resumed: str | None, ending: _Ending) -> Run:
    launched = launched_by_mlflow()
    if not launched and not resumed:
        mlflow.set_experiment(tracking.experiment)
    active = mlflow.start_run(run_id=resumed, nested=nested, tags=Worker.this(tracking.run_dir).tag)
    run_id = ending.run_id = active.info.run_id
    client = MlflowClient()
    experiment = client.get_experiment(active.info.experiment_id)
    if EXPERIMENT_KIND[0] not in experiment.tags:
        client.set_experiment_tag(experiment.experiment_id, *EXPERIMENT_KIND)
    if GENERATED_NAME.fullmatch(active.info.run_name):
        client.set_tag(run_id, MLFLOW_RUN_NAME, name)
    else:
        name = active.info.run_name
    data, known = client.get_run(run_id).data, set()
    for metric in data.metrics if resumed else ():
        known |= {(metric, point.step) for point in client.get_metric_history(run_id, metric)}
    run = Run(run_id, Opened(experiment.name, name, data.params, frozenset(known)), tracking=tracking)
    for old in [tag for tag in data.tags if resumed and tag == ENDED_BECAUSE]:
        run._outbox.append("no_tag", name=old)
    return run


def _open_offline(tracking: TrackingParams, *, name: str, resumed: str | None) -> Run:
    run = Run(resumed or uuid.uuid4().hex, Opened(tracking.experiment, name), tracking=tracking)
    if not resumed:
        run._outbox.append("run", run_id=run.run_id, experiment=tracking.experiment, name=name, time_ms=now_ms())
    run.log_tags(Worker.this(tracking.run_dir).tag)
    return run


@contextmanager
def delivering(what: str) -> Iterator[None]:
    """A block that tells the store of ``what``, and finds that it is gone.

    Raises:
        UndeliveredError: If so.
    """
    try:
        yield
    except STORE_ERRORS as error:
        reason = " ".join(str(error).split())[:200]
        raise UndeliveredError(f"the tracking store has not taken {what} ({reason})") from error


def check_folders(tracking: TrackingParams) -> None:
    """See that a run will be able to write what it writes beside the store.

    Raises:
        UserError: If not.
    """
    if tracking.tensorboard_dir:
        check_board(Path(tracking.tensorboard_dir))
    writable_folder(Path(tracking.run_dir))


def _reasons(error: BaseException) -> dict[str, str]:
    reasons = {ENDED_BECAUSE: f"{type(error).__name__}: {error}"[:5000]}
    if isinstance(error, TrainingError):
        reasons[f"{DIAGNOSIS}.{error.diagnosis}"] = str(error)
    return reasons
