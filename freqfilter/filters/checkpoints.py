"""Files of weights and of training states."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from freqfilter.errors import UserError
from freqfilter.files import replacing
from freqfilter.filters.state import TrainingState
from freqfilter.params import Params, restore

SCHEMA = 3  # of checkpoint files; a change that old readers cannot follow raises it


def write_weights(path: Path, weights: dict[str, Tensor]) -> None:
    """Write a state dict that PyTorch alone reads back: ``module.load_state_dict(torch.load(path))``.

    Raises:
        UserError: If the file cannot be written.
    """
    _write(path, {name: tensor.detach().cpu() for name, tensor in weights.items()})


def write_checkpoint(path: Path, state: TrainingState, params: Params) -> None:
    """Write all that is needed to go on, with the parameters that hold when it does.

    Raises:
        UserError: If the file cannot be written.
    """
    _write(path, {"schema": SCHEMA, "params": params.model_dump(mode="json"), "state": state.state_dict()})


def read_checkpoint(path: Path) -> tuple[Params, dict[str, Any]]:
    """The parameters of a checkpoint and the state for ``TrainingState.load_state_dict``. Nothing is unpickled.

    Raises:
        UserError: If the file is missing, damaged, not a checkpoint, or of another schema.
    """
    try:
        whole = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    try:
        content = torch.load(io.BytesIO(whole), map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, ValueError, KeyError) as error:
        raise UserError(f"{path}: damaged, or not a checkpoint; take the one before it") from error
    if not isinstance(content, dict) or not isinstance(content.get("schema"), int):
        raise UserError(f"{path}: not a checkpoint of freqfilter")
    if content["schema"] > SCHEMA:
        raise UserError(f"{path}: checkpoint schema {content['schema']} is newer than {SCHEMA}; use a newer freqfilter")
    if content["schema"] < SCHEMA:
        raise UserError(f"{path}: checkpoint schema {content['schema']} is older than {SCHEMA}; use what wrote it")
    if not isinstance(content.get("params"), dict) or not isinstance(content.get("state"), dict):
        raise UserError(f"{path}: damaged, or not a checkpoint; take the one before it")
    return restore(content["params"]), content["state"]


def _write(path: Path, content: dict[str, Any]) -> None:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    with replacing(path) as file:
        file.write(buffer.getbuffer())
