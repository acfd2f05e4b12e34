"""Checkpoints and weight files."""

from __future__ import annotations

import io
import pickle
import re
import zipfile
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from freqfilter.atomic_io import atomic_write
from freqfilter.config import Params, restore
from freqfilter.errors import UserError
from freqfilter.tracked_names import with_current_names
from freqfilter.training.state import Progress, TrainingState

SCHEMA = 6  # of checkpoint files; raised by each change that older versions cannot read
OLDEST_SCHEMA = 4  # that can still be read
NAME = re.compile(r"epoch_(\d+)(?:_batch_(\d+))?\.pt")
READ_ERRORS = (
    RuntimeError, pickle.UnpicklingError, EOFError, ValueError, KeyError, TypeError, AttributeError, zipfile.BadZipFile
)  # fmt: skip


@dataclass(frozen=True)
class TrainingSpec:
    """Parameters of a training, the name of their recipe, and digests of the data by purpose."""

    params: Params
    recipe: str
    data: dict[str, str]


@dataclass(frozen=True)
class Checkpoint:
    """All that is needed to resume a training; ``state`` is the argument of ``TrainingState.load_state_dict``."""

    spec: TrainingSpec
    state: dict[str, Any]

    @property
    def ended(self) -> bool:
        """Whether training is complete, so that only evaluation and registration remain."""
        progress = self.state["progress"]
        return bool(progress["stopped_early"] or progress["epoch"] > self.spec.params.training.epochs)


def write_weights(path: Path, weights: dict[str, Tensor]) -> None:
    """Write a state dict, to be read with PyTorch alone: ``module.load_state_dict(torch.load(path))``.

    Raises:
        UserError: If the file cannot be written.
    """
    _write(path, {name: tensor.detach().cpu() for name, tensor in weights.items()})


def write_checkpoint(path: Path, state: TrainingState, spec: TrainingSpec) -> None:
    """Write a checkpoint, from which training can be resumed.

    Raises:
        UserError: If the file cannot be written.
    """
    fields = {"params": spec.params.model_dump(mode="json"), "recipe": spec.recipe, "data": spec.data}
    _write(path, {"schema": SCHEMA, **fields, "state": state.state_dict()})


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint and verify its checksums, without unpickling.

    Raises:
        UserError: If the file is missing, corrupt, not a checkpoint, or of an unsupported schema.
    """
    corrupt = UserError(f"{path}: corrupt, or not a checkpoint; use an earlier one")
    try:
        file_content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    try:
        # PyTorch's files are ZIP archives, but torch.load does not verify their checksums.
        if zipfile.ZipFile(io.BytesIO(file_content)).testzip() is not None:
            raise corrupt
        content = torch.load(io.BytesIO(file_content), map_location="cpu", weights_only=True)
    except READ_ERRORS:
        raise corrupt from None
    if not isinstance(content, dict) or not isinstance(content.get("schema"), int):
        raise UserError(f"{path}: not a checkpoint of freqfilter; use another file")
    if content["schema"] > SCHEMA:
        raise UserError(f"{path}: checkpoint schema {content['schema']} is newer than {SCHEMA}; use a newer freqfilter")
    if content["schema"] < OLDEST_SCHEMA:
        raise UserError(
            f"{path}: checkpoint schema {content['schema']} is older than {OLDEST_SCHEMA}; resume with the version of "
            "freqfilter that wrote it, or start a new run"
        )
    kinds = {"params": dict, "recipe": str, "data": dict, "state": dict}
    if not all(isinstance(content.get(name), kind) for name, kind in kinds.items()):
        raise corrupt
    spec = TrainingSpec(restore(content["params"]), content["recipe"], with_current_names(content["data"]))
    progress = content["state"].get("progress", {})
    if content["schema"] < 6 and "history" in progress:
        progress["history"] = [with_current_names(report) for report in progress["history"]]
    return Checkpoint(spec, content["state"])


class Checkpoints:
    """The newest checkpoints of a run, in one folder.

    ``epoch_0010.pt`` is written at the end of epoch 10, ``epoch_0010_batch_000005.pt`` five batches later.
    ``remove_old`` keeps the ``kept`` newest ones.
    """

    def __init__(self, folder: Path, *, kept: int) -> None:
        self._folder = folder
        self._kept = kept

    def path(self, progress: Progress) -> Path:
        """Path of the checkpoint at a given progress."""
        batch = f"_batch_{progress.batch:06d}" if progress.batch else ""
        return self._folder / f"epoch_{progress.epoch - 1:04d}{batch}.pt"

    def remove_old(self, *, needed: Collection[Path] = ()) -> None:
        """Remove all but the newest checkpoints and those still needed."""
        for path in self.files()[self._kept :]:
            if path not in needed:
                path.unlink(missing_ok=True)

    def files(self) -> list[Path]:
        """Checkpoint files, newest first."""
        named = {path: name for path in self._folder.glob("*.pt") if (name := NAME.fullmatch(path.name))}
        return sorted(named, key=lambda path: [int(number or 0) for number in named[path].groups()], reverse=True)

    def latest(self, warn: Callable[[str], None]) -> Checkpoint | None:
        """Read the newest readable checkpoint, None if there is none; ``warn`` gets a message for each one skipped."""
        for path in self.files():
            try:
                return read_checkpoint(path)
            except UserError as error:
                warn(f"skipped: {error}")
        return None


def _write(path: Path, content: dict[str, Any]) -> None:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    with atomic_write(path) as file:
        file.write(buffer.getbuffer())
