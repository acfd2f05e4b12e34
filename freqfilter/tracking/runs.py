"""A tracked run: what it is made of, and the status in which it truly ended."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

import mlflow
import numpy as np
import psutil
from matplotlib.figure import Figure
from mlflow import MlflowClient
from mlflow.entities import Param, RunTag
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
from freqfilter.tracking.provenance import LARGEST_PATCH, Source
from freqfilter.tracking.spool import MetricSpool
from freqfilter.tracking.store import translated

DELIVERY_TIMEOUT_S = 60.0
METRICS_FILE = "metrics.jsonl"
DIAGNOSIS = "diagnosis"  # what the tags of a diagnosis begin with
GENERATED_NAME = re.compile(r"[a-z]+-[a-z]+-\d+")  # such as capable-shrike-956
# What MLflow's UI shows of an experiment: runs and models, not prompts and traces.
EXPERIMENT_KIND = ("mlflow.experimentKind", "custom_model_development")


class Run:
    """An open run; ``open_run`` makes it.

    Attributes:
        run_id: MLflow's.
        experiment: Name of the experiment that it is in.
        folder: Its scratch files, in a folder of this run alone; gone when the run has finished.
    """

    def __init__(self, active: mlflow.ActiveRun, *, tracking: TrackingParams, name: str) -> None:
        self.run_id: str = active.info.run_id
        self.folder = writable_folder(Path(tracking.run_dir) / self.run_id)
        self._client = MlflowClient()
        experiment = self._client.get_experiment(active.info.experiment_id)
        self.experiment: str = experiment.name
        if EXPERIMENT_KIND[0] not in experiment.tags:
            self._client.set_experiment_tag(experiment.experiment_id, *EXPERIMENT_KIND)
        if GENERATED_NAME.fullmatch(active.info.run_name):
            self._client.set_tag(self.run_id, MLFLOW_RUN_NAME, name)
        else:
            name = active.info.run_name
        self._board: TensorBoard | None = None
        if tracking.tensorboard_dir:
            self._board = TensorBoard(Path(tracking.tensorboard_dir), name=name, run_id=self.run_id)
        self._spool = MetricSpool(self.folder / METRICS_FILE, self.run_id)

    def log_params(self, params: Mapping[str, str]) -> None:
        """Log parameters, but for those that ``mlflow run`` has logged already, as they were typed.

        MLflow refuses a second value, also another spelling of the first. What compares runs reads the file of
        resolved parameters, which is the same for all spellings.
        """
        typed = self._client.get_run(self.run_id).data.params
        missing = [Param(name, value) for name, value in params.items() if name not in typed]
        self._client.log_batch(self.run_id, params=missing)
        if self._board:
            self._board.log_params(params)

    def log_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags."""
        self._client.log_batch(self.run_id, tags=[RunTag(name, value) for name, value in tags.items()])

    def describe(self, markdown: str) -> None:
        """Set the description that the run's page shows."""
        self._client.set_tag(self.run_id, MLFLOW_RUN_NOTE, markdown)

    def log_metrics(self, metrics: Mapping[str, float], *, step: int, model_id: str | None = None) -> None:
        """Log the metrics of an epoch; ``model_id`` is the logged model that they also describe."""
        self._spool.append(metrics, step=step, model_id=model_id)
        if self._board:
            self._board.log_metrics(metrics, step=step)

    def log_data(self, windows: WindowSet, *, name: str, context: str) -> None:
        """Note a data set as an input of the run, with its digest: the signals, not the windows cut from them."""
        features, targets = (tensor.numpy() for tensor in windows.content())
        dataset = mlflow.data.from_numpy(features, targets=targets, name=name, digest=windows.digest()[:12])
        mlflow.log_input(dataset, context=context)

    def log_file(self, path: Path) -> None:
        """Log a file of the run's folder under the name that it has there."""
        folder = path.relative_to(self.folder).parent.as_posix()
        self._client.log_artifact(self.run_id, str(path), None if folder == "." else folder)

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

    def _close(self) -> None:
        try:
            if self._board:
                self._board.close()
        finally:
            self._spool.close(DELIVERY_TIMEOUT_S)
            self.log_file(self._spool.path)


@contextmanager
def open_run(tracking: TrackingParams, *, name: str, stopping: Stopping, parent: Run | None = None) -> Iterator[Run]:
    """A run of its own, or the one that ``mlflow run`` has made; it ends FINISHED, FAILED or KILLED as it did.

    A run that did not finish keeps its folder, and says why it ended in the tag ``ended_because``; if a diagnosis has
    ended it, in ``diagnosis.<name>`` too.

    Args:
        tracking: Where runs are kept. An experiment is for a run of its own; the other is where MLflow put it.
        name: What the run is called unless a person has named it: MLflow's own names say nothing.
        stopping: Hears of the launcher, to end with it.
        parent: The open run that this one is a part of, if any.

    Raises:
        UserError: If MLflow refuses the run, a folder cannot be written, or memory runs out in the block.
    """
    check_folders(tracking)  # before there is a run, which could only fail
    process, launched = launcher(), launched_by_mlflow()  # opening the run takes the sign of it away
    if parent is None:
        stopping.end_with(process)
    active: mlflow.ActiveRun | None = None
    run: Run | None = None
    try:
        with translated("no run can be opened"):
            if not launched:
                mlflow.set_experiment(tracking.experiment)
            active = mlflow.start_run(nested=parent is not None)
            run = Run(active, tracking=tracking, name=name)
        with memory_errors():
            yield run
        run._close()
    except BaseException as error:
        # The store may be what failed: that must not hide the error.
        if run:
            with suppress(Exception):
                run.log_tags(_reasons(error))
            with suppress(Exception):
                run._close()
        if active:
            _end(active, "KILLED" if isinstance(error, Stopped) else "FAILED", process if stopping.stopped else None)
        raise
    shutil.rmtree(run.folder, ignore_errors=True)
    _end(active, "FINISHED", process if stopping.stopped else None)


def check_folders(tracking: TrackingParams) -> None:
    """See that a run will be able to write what it writes beside the store.

    Raises:
        UserError: If not.
    """
    if tracking.tensorboard_dir:
        check_board(Path(tracking.tensorboard_dir))
    writable_folder(Path(tracking.run_dir))


def _reasons(error: BaseException) -> dict[str, str]:
    reasons = {"ended_because": f"{type(error).__name__}: {error}"[:5000]}
    if isinstance(error, TrainingError):
        reasons[f"{DIAGNOSIS}.{error.diagnosis}"] = str(error)
    return reasons


def _end(active: mlflow.ActiveRun, status: str, process: psutil.Process | None) -> None:
    """End the run; the launcher's ``process``, if any, will get its status wrong when it hears of the stop."""
    with suppress(Exception) if status != "FINISHED" else nullcontext():
        mlflow.end_run(status)
    if process and running(process):
        set_status_after(process, active.info.run_id, status)
