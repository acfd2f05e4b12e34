"""A tracked run: parameters, metrics, figures and artifacts, written through the outbox."""

from __future__ import annotations

import importlib.util
import io
import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

import mlflow
import numpy as np
import PIL.Image
from matplotlib.figure import Figure
from mlflow.tracking.multimedia import compress_image_size
from mlflow.utils.mlflow_tags import MLFLOW_LOGGED_IMAGES, MLFLOW_RUN_NOTE
from numpy.typing import ArrayLike

from freqfilter.atomic_io import atomic_write, writable_folder
from freqfilter.config import TrackingParams
from freqfilter.data.windows import WindowDataset
from freqfilter.errors import UserError, install_hint
from freqfilter.tracked_names import BEST_HOLDOUT_MSE, OUTBOX, SYSTEM, TEST_MSE
from freqfilter.tracking.outbox import METRICS, Outbox, describe_dataset, logged_points, now_ms, sender
from freqfilter.tracking.provenance import MAX_PATCH_BYTES, Source

DELIVERY_TIMEOUT_S = 60.0
MAX_PICTURE_WIDTH = 640  # pixels; the UI's own 256 cannot be read
DIAGNOSIS = "diagnosis"  # what the tags of a diagnosis begin with


@dataclass(frozen=True)
class OpenRun:
    """What the store says of a run that has just been opened.

    Attributes:
        experiment: Name of the experiment that it is in.
        experiment_id: Id of that experiment; empty where the run is offline.
        name: What it is called.
        params: Parameters that it has already.
        tags: Tags that it has already.
        known: Names and steps of the metrics that it has already.
    """

    experiment: str
    experiment_id: str
    name: str
    params: Mapping[str, str] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    known: frozenset[tuple[str, int]] = frozenset()


class Run:
    """An open run; ``open_run`` makes it.

    What it logs goes into its outbox and from there to the store, so that nothing here waits for the store.

    Attributes:
        run_id: MLflow's; offline one of our own, until there is one of MLflow's.
        experiment: Name of the experiment that it is in.
        experiment_id: Id of that experiment; empty offline.
        online: Whether a store hears of it.
        folder: Its scratch files, in a folder of this run alone; gone when the run has finished.
        tags: Its tags.
    """

    def __init__(self, run_id: str, opened: OpenRun, *, tracking: TrackingParams) -> None:
        self.run_id = run_id
        self.experiment = opened.experiment
        self.experiment_id = opened.experiment_id
        self.online = tracking.tracking == "online"
        self.folder = writable_folder(Path(tracking.run_dir) / run_id)
        self.tags = dict(opened.tags)
        self._params = opened.params
        self._known = opened.known | logged_points(self.folder / OUTBOX)
        self._system_step = max((step for name, step in self._known if name.startswith(SYSTEM)), default=0)
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
        self.tags |= tags
        self._outbox.append("tags", values=dict(tags))

    def remove_tag(self, name: str) -> None:
        """Take a tag away, if it is there."""
        self.tags.pop(name, None)
        self._outbox.append("no_tag", name=name)

    def write_header(self, name: str) -> None:
        """Say, in the folder of a run that no store has, what one is to make of it."""
        self._outbox.append("run", run_id=self.run_id, experiment=self.experiment, name=name, time_ms=now_ms())

    def describe(self, markdown: str) -> None:
        """Set the description that the run's page shows."""
        self.log_tags({MLFLOW_RUN_NOTE: pad_table_columns(markdown)})

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

    def log_system_metrics(self, values: Mapping[str, float]) -> None:
        """Log a sample of system metrics; its step is its number, and a resumed run continues the count.

        One thread at a time may call it, also beside other methods.
        """
        self._system_step += 1
        self._outbox.append(METRICS, values=dict(values), step=self._system_step, time_ms=now_ms(), model_id=None)
        if self._board:
            self._board.log_metrics(values, step=self._system_step)

    def log_data(self, windows: WindowDataset, *, name: str, context: str) -> None:
        """Note a data set as an input of the run, with its digest: the signals, not the windows cut from them."""
        features, targets = (tensor.numpy() for tensor in windows.tensors())
        dataset = mlflow.data.from_numpy(features, targets=targets, name=name, digest=windows.digest()[:12])
        self._outbox.append("data", dataset=describe_dataset(dataset), context=context)

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
        with atomic_write(self.folder / artifact) as file:
            file.write(content)
        self.log_file(self.folder / artifact)

    def log_arrays(self, artifact: str, **arrays: ArrayLike) -> None:
        """Log arrays as a ``.npz`` file."""
        with atomic_write(self.folder / artifact) as file:
            np.savez(file, allow_pickle=False, **arrays)
        self.log_file(self.folder / artifact)

    def log_figure(self, figure: Figure, artifact: str, *, dpi: int = 120) -> None:
        """Log a figure as a picture of ``dpi`` dots an inch."""
        _apply_layout(figure, dpi)
        with atomic_write(self.folder / artifact) as file:
            figure.savefig(file, format="png", dpi=dpi)
        self.log_file(self.folder / artifact)

    def log_picture(self, figure: Figure, key: str) -> None:
        """Log a figure once more, as MLflow's UI sets pictures of several runs side by side: those of the same key.

        To log it again replaces it: its name, in the form of ``MlflowClient.log_image``, has neither time nor chance.
        """
        rendered = io.BytesIO()
        figure.savefig(rendered, format="png", dpi=60)
        name = _picture(key)
        self.log_bytes(rendered.getvalue(), f"{name}.png")
        small = io.BytesIO()
        compress_image_size(PIL.Image.open(rendered), MAX_PICTURE_WIDTH).save(small, format="webp")
        self.log_bytes(small.getvalue(), f"{name}+compressed.webp")
        self.log_tags({MLFLOW_LOGGED_IMAGES: "True"})

    def log_source(self, source: Source) -> None:
        """Tag the run with the state of its code, and keep the uncommitted patch where it is not too large."""
        self.log_tags(source.tags)
        if 0 < len(source.patch) <= MAX_PATCH_BYTES:
            self.log_bytes(source.patch, "source/uncommitted.patch")

    def close(self, status: str | None, timeout_s: float) -> None:
        """Deliver what is left; ``status`` is how the run has ended, None where it waits to be delivered."""
        try:
            if self._board:
                self._board.close()
        finally:
            if status:
                self._outbox.append("end", status=status, time_ms=now_ms())
            self._outbox.close(timeout_s)


def diagnoses(tags: Mapping[str, str]) -> dict[str, str]:
    """The problems found in a training: name to one line, from its run's tags."""
    prefix = f"{DIAGNOSIS}."
    return {name.removeprefix(prefix): line for name, line in tags.items() if name.startswith(prefix)}


def pad_table_columns(markdown: str) -> str:
    """Markdown with room between the columns of its tables, which MLflow's pages leave none.

    >>> pad_table_columns("| filter | MSE |")
    '| filter | &nbsp;&nbsp;MSE |'
    """
    return markdown.replace(" | ", " | &nbsp;&nbsp;")


def picture_url(run_id: str, key: str) -> str:
    """Where MLflow's UI shows a picture that was logged, for a text on one of its pages."""
    return f"get-artifact?run_uuid={run_id}&path={quote(_picture(key))}.png"


def _apply_layout(figure: Figure, dpi: int) -> None:
    """Give all that is in a figure its place; matplotlib would go through it twice, and again for each picture."""
    if engine := figure.get_layout_engine():
        figure.set_dpi(dpi)
        engine.execute(figure)
        figure.set_layout_engine("none")


def _picture(key: str) -> str:
    return f"images/{key}+step+0+timestamp+0+{uuid.UUID(int=0)}"


HPARAM_METRICS = ("best/val_mse", BEST_HOLDOUT_MSE, TEST_MSE)  # the columns of its table of parameters


def check_tensorboard(tensorboard_dir: Path) -> None:
    """See that TensorBoard is there and the folder takes files, before there is a run.

    Raises:
        UserError: If not.
    """
    if importlib.util.find_spec("tensorboard") is None:
        raise UserError(
            f"tensorboard_dir={tensorboard_dir}: TensorBoard is not installed; {install_hint('tensorboard')}"
        )
    try:
        writable_folder(tensorboard_dir)
    except UserError as error:
        raise UserError(f"tensorboard_dir={error}") from None


class TensorBoard:
    """Event files of one run.

    Args:
        tensorboard_dir: The folder that TensorBoard is pointed at, with a folder in it for each run.
        name: The run's name.
        run_id: Its id.
    """

    def __init__(self, tensorboard_dir: Path, *, name: str, run_id: str) -> None:
        from torch.utils.tensorboard import SummaryWriter

        readable = re.sub(r"[^\w.=,-]+", "_", name).strip("_")
        self._writer = SummaryWriter(str(tensorboard_dir / f"{readable}_{run_id[:8]}"))

    def log_params(self, params: Mapping[str, str]) -> None:
        """Write the parameters, for TensorBoard's table of them."""
        from torch.utils.tensorboard.summary import hparams

        experiment, start, end = hparams(dict(params), dict.fromkeys(HPARAM_METRICS, 0.0))  # type: ignore[no-untyped-call]
        for summary in (experiment, start, end):
            self._writer.file_writer.add_summary(summary)  # type: ignore[attr-defined]
        self._writer.flush()

    def log_metrics(self, metrics: Mapping[str, float], *, step: int) -> None:
        """Write scalars of a step."""
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        """Write what is left."""
        self._writer.close()
