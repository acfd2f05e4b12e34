"""TensorBoard, for those who want it: the same scalars and parameters as the run, in event files."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping
from pathlib import Path

from freqfilter.errors import UserError, how_to_install
from freqfilter.files import writable_folder
from freqfilter.tracking.metric_names import TEST_MSE

JUDGED_BY = ("best/val_mse", "best/audit_mse", TEST_MSE)  # the columns of its table of parameters


def check_board(tensorboard_dir: Path) -> None:
    """See that TensorBoard is there and the folder takes files, before there is a run.

    Raises:
        UserError: If not.
    """
    if importlib.util.find_spec("tensorboard") is None:
        raise UserError(
            f"tensorboard_dir={tensorboard_dir}: TensorBoard is not installed; {how_to_install('tensorboard')}"
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

        experiment, start, end = hparams(dict(params), dict.fromkeys(JUDGED_BY, 0.0))  # type: ignore[no-untyped-call]
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
