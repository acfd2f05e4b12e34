"""A tracked run: parameters, metrics, figures and artifacts, written through the outbox."""

from __future__ import annotations

import importlib.util
import io
import re
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import mlflow
import numpy as np
import PIL.Image
from mlflow.tracking.multimedia import compress_image_size
from mlflow.utils.mlflow_tags import MLFLOW_LOGGED_IMAGES, MLFLOW_RUN_NOTE
from numpy.typing import ArrayLike

from freqfilter.atomic_io import atomic_write, writable_folder
from freqfilter.config import TrackingParams
from freqfilter.data.windows import Dataset
from freqfilter.errors import UserError, install_hint
from freqfilter.plots.style import render
from freqfilter.tracked_names import BEST_HOLDOUT_MSE, FILES, OUTBOX, SYSTEM, TEST_MSE
from freqfilter.tracking.outbox import METRICS, Outbox, describe_dataset, logged_points, now_ms, sender
from freqfilter.tracking.owner import RunLock, RunOwner
from freqfilter.tracking.provenance import MAX_PATCH_BYTES, Source

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DELIVERY_TIMEOUT_S = 60.0
IMAGE_DPI = 60  # of images beside those of other runs
MAX_PICTURE_WIDTH = 640  # pixels; 256, as in MLflow, is unreadable
DIAGNOSIS = "diagnosis"  # prefix of its tags


@dataclass(frozen=True)
class OpenRun:
    """State of a run in the store when it is opened.

    Attributes:
        experiment: Name of its experiment.
        experiment_id: Id of its experiment; empty if the run is offline.
        name: Name of the run.
        params: Parameters logged already.
        tags: Tags set already.
        logged_points: Names and steps of the metrics logged already.
    """

    experiment: str
    experiment_id: str
    name: str
    params: Mapping[str, str] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    logged_points: frozenset[tuple[str, int]] = frozenset()


class Run:
    """An open run; see ``open_run``.

    Its methods write to the outbox, which delivers to the store, so that they never wait for the store.

    Attributes:
        run_id: MLflow's id; a generated one if the run is offline.
        experiment: Name of its experiment.
        experiment_id: Id of its experiment; empty if the run is offline.
        online: Whether it is delivered to a store.
        lock: Lock of the run's folder.
        owner: This process, as the run's owner.
        folder: Scratch folder of the run, deleted when the run has finished.
        tags: Tags of the run.
    """

    def __init__(
        self, run_id: str, opened: OpenRun, *, tracking: TrackingParams, lock: RunLock, owner: RunOwner
    ) -> None:
        self.run_id = run_id
        self.experiment = opened.experiment
        self.experiment_id = opened.experiment_id
        self.online = tracking.tracking == "online"
        self.lock = lock
        self.owner = owner
        self.folder = lock.folder
        self.tags = dict(opened.tags)
        self._params = opened.params
        self._logged_points = opened.logged_points | logged_points(self.folder / OUTBOX)
        self._system_step = max((step for name, step in self._logged_points if name.startswith(SYSTEM)), default=0)
        self._board: TensorBoard | None = None
        if tracking.tensorboard_dir:
            self._board = TensorBoard(Path(tracking.tensorboard_dir), name=opened.name, run_id=run_id)
        send = sender(run_id, self.folder, lock.owner_ids()) if self.online else None
        self._outbox = Outbox(self.folder / OUTBOX, send)
        # Files have an outbox of their own: if they cannot be delivered, everything else still is.
        self._files = Outbox(self.folder / FILES, send)

    def log_params(self, params: Mapping[str, str]) -> None:
        """Log parameters, except those that ``mlflow run`` has logged already as they were typed.

        MLflow refuses a second value, even another spelling of the first. Comparisons of runs read the file of resolved
        parameters, which is the same for all spellings.
        """
        self._outbox.append("params", values={name: text for name, text in params.items() if name not in self._params})
        if self._board:
            self._board.log_params(params)

    def log_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags."""
        self.tags |= tags
        self._outbox.append("tags", values=dict(tags))

    def remove_tag(self, name: str) -> None:
        """Remove a tag, if it is set."""
        self.tags.pop(name, None)
        self._outbox.append("no_tag", name=name)

    def write_header(self, name: str) -> None:
        """Write the message from which ``sync`` creates the run in a store."""
        self._outbox.append("run", run_id=self.run_id, experiment=self.experiment, name=name, time_ms=now_ms())

    def describe(self, markdown: str) -> None:
        """Set the description that the run's page shows."""
        self.log_tags({MLFLOW_RUN_NOTE: pad_table_columns(markdown)})

    def log_metrics(self, metrics: Mapping[str, float], *, step: int, model_id: str | None = None) -> None:
        """Log the metrics of an epoch, except those that a resumed run has logged already.

        Args:
            metrics: Values by name.
            step: The epoch.
            model_id: Id of the logged model that they describe too, if any.
        """
        new = {name: value for name, value in metrics.items() if (name, step) not in self._logged_points}
        self._logged_points |= {(name, step) for name in new}
        self._outbox.append(METRICS, values=new, step=step, time_ms=now_ms(), model_id=model_id)
        if self._board:
            self._board.log_metrics(new, step=step)

    def log_system_metrics(self, values: Mapping[str, float]) -> None:
        """Log a sample of system metrics; its step is a counter, which a resumed run continues.

        One thread may call it, concurrently with the other methods.
        """
        self._system_step += 1
        self._outbox.append(METRICS, values=dict(values), step=self._system_step, time_ms=now_ms(), model_id=None)
        if self._board:
            self._board.log_metrics(values, step=self._system_step)

    def log_data(self, windows: Dataset, *, name: str, context: str) -> None:
        """Log a dataset as an input of the run, with its digest: the signals, not the windows cut from them."""
        features, targets = (tensor.numpy() for tensor in windows.tensors())
        dataset = mlflow.data.from_numpy(features, targets=targets, name=name, digest=windows.digest()[:12])
        self._outbox.append("data", dataset=describe_dataset(dataset), context=context)

    def log_file(self, path: Path) -> None:
        """Log a file of the run's folder under its path in the folder."""
        self._files.append("file", path=path.relative_to(self.folder).as_posix())

    def unsent_files(self) -> set[Path]:
        """Files of the run's folder that are not delivered yet."""
        return {self.folder / message["path"] for message in self._files.waiting()}

    def deliver(self) -> None:
        """Wait until all messages are delivered.

        Raises:
            UndeliveredError: If they are not delivered in time.
        """
        self._outbox.wait(DELIVERY_TIMEOUT_S)
        self._files.wait(DELIVERY_TIMEOUT_S)

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

    def log_figure(self, draw: Callable[[], Figure], artifact: str, *, dpi: int = 120, key: str | None = None) -> None:
        """Log a figure as a PNG file, if it can be drawn.

        Args:
            draw: Draws the figure.
            artifact: Path of the file.
            dpi: Dots per inch of the file.
            key: If given, the figure is logged as an image too, which MLflow's UI shows beside those of other runs
                with the same key.
        """
        if files := render(draw, artifact, dpi, *([IMAGE_DPI] if key else [])):
            self.log_bytes(files[0], artifact)
            if key:
                self._log_image(files[1], key)

    def _log_image(self, content: bytes, key: str) -> None:
        """Log an image; logging it again replaces it.

        Its name, in the form of ``MlflowClient.log_image``, has no time or random part.
        """
        name = _picture(key)
        self.log_bytes(content, f"{name}.png")
        small = io.BytesIO()
        compress_image_size(PIL.Image.open(io.BytesIO(content)), MAX_PICTURE_WIDTH).save(small, format="webp")
        self.log_bytes(small.getvalue(), f"{name}+compressed.webp")
        self.log_tags({MLFLOW_LOGGED_IMAGES: "True"})

    def log_source(self, source: Source) -> None:
        """Log commit and uncommitted patch of the code; a patch above ``MAX_PATCH_BYTES`` as its digest only."""
        self.log_tags(source.tags)
        if 0 < len(source.patch) <= MAX_PATCH_BYTES:
            self.log_bytes(source.patch, "source/uncommitted.patch")

    def close(self, status: str | None, timeout_s: float) -> None:
        """Deliver the remaining messages; ``status`` is the final status, None for a run to deliver later."""
        try:
            if self._board:
                self._board.close()
        finally:
            if status:
                self._outbox.append("end", status=status, time_ms=now_ms())
            try:
                self._outbox.close(timeout_s)
            finally:
                self._files.close(timeout_s)


def diagnoses(tags: Mapping[str, str]) -> dict[str, str]:
    """Diagnoses of a training by name, from its run's tags."""
    prefix = f"{DIAGNOSIS}."
    return {name.removeprefix(prefix): line for name, line in tags.items() if name.startswith(prefix)}


def pad_table_columns(markdown: str) -> str:
    """Add space between the columns of Markdown tables, which MLflow's pages lack.

    >>> pad_table_columns("| filter | MSE |")
    '| filter | &nbsp;&nbsp;MSE |'
    """
    return markdown.replace(" | ", " | &nbsp;&nbsp;")


def picture_url(run_id: str, key: str) -> str:
    """Relative address of a logged picture, for Markdown on a page of MLflow's UI."""
    return f"get-artifact?run_uuid={run_id}&path={quote(_picture(key))}.png"


def _picture(key: str) -> str:
    return f"images/{key}+step+0+timestamp+0+{uuid.UUID(int=0)}"


HPARAM_METRICS = ("best/val_mse", BEST_HOLDOUT_MSE, TEST_MSE)  # columns of TensorBoard's table of hyperparameters


def check_tensorboard(tensorboard_dir: Path) -> None:
    """Check that TensorBoard is installed and its folder writable, before a run exists.

    Raises:
        UserError: If it is not.
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
        tensorboard_dir: TensorBoard's log directory, with a folder for each run.
        name: Name of the run.
        run_id: Id of the run.
    """

    def __init__(self, tensorboard_dir: Path, *, name: str, run_id: str) -> None:
        from torch.utils.tensorboard import SummaryWriter

        readable = re.sub(r"[^\w.=,-]+", "_", name).strip("_")
        self._writer = SummaryWriter(str(tensorboard_dir / f"{readable}_{run_id[:8]}"))

    def log_params(self, params: Mapping[str, str]) -> None:
        """Write the parameters for TensorBoard's table of hyperparameters."""
        from torch.utils.tensorboard.summary import hparams

        experiment, start, end = hparams(dict(params), dict.fromkeys(HPARAM_METRICS, 0.0))  # type: ignore[no-untyped-call]
        for summary in (experiment, start, end):
            self._writer.file_writer.add_summary(summary)  # type: ignore[attr-defined]
        self._writer.flush()

    def log_metrics(self, metrics: Mapping[str, float], *, step: int) -> None:
        """Write scalars at a step."""
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        """Flush and close the event file."""
        self._writer.close()
