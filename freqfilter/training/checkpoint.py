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
from freqfilter.training.state import Progress, TrainingState

SCHEMA = 6  # of checkpoint files; a change that old readers cannot follow raises it
OLDEST_SCHEMA = 4  # that is still read
NAME = re.compile(r"epoch_(\d+)(?:_batch_(\d+))?\.pt")
READ_ERRORS = (
    RuntimeError, pickle.UnpicklingError, EOFError, ValueError, KeyError, TypeError, AttributeError, zipfile.BadZipFile
)  # fmt: skip


@dataclass(frozen=True)
class TrainingSpec:
    """What a training was asked to do.

    Attributes:
        params: The parameters, which hold when it goes on too.
        recipe: The name of the recipe that they came from.
        data: Digests of the data by purpose.
    """

    params: Params
    recipe: str
    data: dict[str, str]


@dataclass(frozen=True)
class Checkpoint:
    """All that is needed to go on.

    Attributes:
        spec: What was asked for.
        state: For ``TrainingState.load_state_dict``.
    """

    spec: TrainingSpec
    state: dict[str, Any]

    @property
    def ended(self) -> bool:
        """Whether training itself is over, so that only evaluation and registration are left."""
        progress = self.state["progress"]
        return bool(progress["stopped_early"] or progress["epoch"] > self.spec.params.training.epochs)


def write_weights(path: Path, weights: dict[str, Tensor]) -> None:
    """Write a state dict that PyTorch alone reads back: ``module.load_state_dict(torch.load(path))``.

    Raises:
        UserError: If the file cannot be written.
    """
    _write(path, {name: tensor.detach().cpu() for name, tensor in weights.items()})


def write_checkpoint(path: Path, state: TrainingState, stated: TrainingSpec) -> None:
    """Write all that is needed to go on; see ``Checkpoint``.

    Raises:
        UserError: If the file cannot be written.
    """
    asked = {"params": stated.params.model_dump(mode="json"), "recipe": stated.recipe, "data": stated.data}
    _write(path, {"schema": SCHEMA, **asked, "state": state.state_dict()})


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint, its checksums compared. Nothing is unpickled.

    Raises:
        UserError: If the file is missing, damaged, not a checkpoint, or of another schema.
    """
    damaged = UserError(f"{path}: damaged, or not a checkpoint; take the one before it")
    try:
        whole = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    try:
        # PyTorch's files are ZIP archives, whose checksums it does not look at.
        if zipfile.ZipFile(io.BytesIO(whole)).testzip() is not None:
            raise damaged
        content = torch.load(io.BytesIO(whole), map_location="cpu", weights_only=True)
    except READ_ERRORS:
        raise damaged from None
    if not isinstance(content, dict) or not isinstance(content.get("schema"), int):
        raise UserError(f"{path}: not a checkpoint of freqfilter")
    if content["schema"] > SCHEMA:
        raise UserError(f"{path}: checkpoint schema {content['schema']} is newer than {SCHEMA}; use a newer freqfilter")
    if content["schema"] < OLDEST_SCHEMA:
        raise UserError(
            f"{path}: checkpoint schema {content['schema']} is older than {OLDEST_SCHEMA}; resume with the version of "
            "freqfilter that wrote it, or start a new run"
        )
    kinds = {"params": dict, "recipe": str, "data": dict, "state": dict}
    if not all(isinstance(content.get(name), kind) for name, kind in kinds.items()):
        raise damaged
    spec = TrainingSpec(restore(content["params"]), content["recipe"], _renamed(content["data"], "audit", "holdout"))
    progress = content["state"].get("progress", {})
    if content["schema"] < 6 and "history" in progress:
        progress["history"] = [_renamed(report, "audit_mse", "holdout_mse") for report in progress["history"]]
    return Checkpoint(spec, content["state"])


class Checkpoints:
    """The newest checkpoints of a run, in a folder of their own.

    ``epoch_0010.pt`` is of the end of epoch 10, ``epoch_0010_batch_000005.pt`` of five batches later.

    Args:
        folder: The folder, which need not be there.
        kept: How many stay.
    """

    def __init__(self, folder: Path, *, kept: int) -> None:
        self._folder = folder
        self._kept = kept

    def path(self, progress: Progress) -> Path:
        """The file of a state of training."""
        batch = f"_batch_{progress.batch:06d}" if progress.batch else ""
        return self._folder / f"epoch_{progress.epoch - 1:04d}{batch}.pt"

    def remove_old(self, *, needed: Collection[Path] = ()) -> None:
        """Remove all but the newest and those that somebody still needs."""
        for path in self.files()[self._kept :]:
            if path not in needed:
                path.unlink(missing_ok=True)

    def files(self) -> list[Path]:
        """The files, the newest first."""
        named = {path: name for path in self._folder.glob("*.pt") if (name := NAME.fullmatch(path.name))}
        return sorted(named, key=lambda path: [int(number or 0) for number in named[path].groups()], reverse=True)

    def latest(self, say: Callable[[str], None]) -> Checkpoint | None:
        """The newest that is whole; None where there is none.

        Args:
            say: Hears of those that are damaged and passed over.
        """
        for path in self.files():
            try:
                return read_checkpoint(path)
            except UserError as error:
                say(f"passed over: {error}")
        return None


def _write(path: Path, content: dict[str, Any]) -> None:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    with atomic_write(path) as file:
        file.write(buffer.getbuffer())


def _renamed(values: dict[str, Any], before: str, now: str) -> dict[str, Any]:
    """Values by name, one of which had another name until checkpoint schema 5."""
    return {now if name == before else name: value for name, value in values.items()}
