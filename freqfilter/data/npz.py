"""Reading and writing of windows in an ``.npz`` file."""

from __future__ import annotations

import io
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.lib import format as npy
from numpy.typing import NDArray

from freqfilter.atomic_io import atomic_write
from freqfilter.data.windows import WindowDataset, batches
from freqfilter.errors import UserError

PARTS = ("train", "val", "test")
WRITE_CHUNK = 4096  # windows
# Corrupt, encrypted or unsupported archives raise many types of error.
READ_ERRORS = (
    OSError, ValueError, EOFError, KeyError, MemoryError, NotImplementedError, RuntimeError,
    zipfile.BadZipFile, zipfile.LargeZipFile, zlib.error,
)  # fmt: skip


def write(path: Path, parts: dict[str, WindowDataset]) -> None:
    """Write the windows of each part, in chunks of ``WRITE_CHUNK`` windows.

    Args:
        path: The file; it is replaced atomically.
        parts: Windows of ``train``, ``val`` and ``test``.

    Raises:
        UserError: If the file cannot be written.
    """
    with atomic_write(path) as file, zipfile.ZipFile(file, "w") as archive:
        for kind, index in (("X", 0), ("y", 1)):
            for part in PARTS:
                windows = parts[part]
                width = windows.n_components + 1 if kind == "X" else 1
                shape = (len(windows), windows.n_samples, width)
                header = {"descr": np.dtype(np.float32).str, "fortran_order": False, "shape": shape}
                with archive.open(f"{kind}_{part}.npy", "w", force_zip64=True) as member:
                    npy.write_array_header_1_0(member, header)
                    for batch in batches(windows, WRITE_CHUNK, torch.device("cpu")):
                        member.write(batch[index].contiguous().numpy().data)


def read(path: str, *, n_components: int) -> dict[str, NDArray[np.float32]]:
    """Read and validate a file of windows.

    Args:
        path: The ``.npz`` file.
        n_components: Required width of the one-hot selectors.

    Returns:
        Inputs ``X_…`` (n_windows, n_samples, 1 + n_components) and targets ``y_…`` (n_windows, n_samples, 1) of
        each part, float32.

    Raises:
        UserError: If the file is missing or corrupt, an array is missing, empty, of a wrong type or shape, contains
            NaN or Inf (the first index is given), or a selector is not one-hot and constant over its window.
    """
    try:
        arrays = _arrays(Path(path))
        for part in PARTS:
            _check(part, arrays[f"X_{part}"], arrays[f"y_{part}"], (arrays["X_train"].shape[1], n_components))
    except UserError as error:
        raise UserError(f"data_file={path}: {error}") from None
    return arrays


def _arrays(path: Path) -> dict[str, NDArray[np.float32]]:
    try:
        if path.exists() and not path.is_file():  # to open a pipe would wait for its writer
            raise UserError("not a regular file; write one with `freqfilter prepare`")
        with path.open("rb") as file:
            stored = np.load(file, allow_pickle=False)
            if not isinstance(stored, np.lib.npyio.NpzFile):
                raise UserError("a single array, not a .npz file; see `freqfilter prepare`")
            with stored:
                return {name: _array(stored, name) for part in PARTS for name in (f"X_{part}", f"y_{part}")}
    except READ_ERRORS as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "not a readable .npz file"
        raise UserError(f"{reason}; write one with `freqfilter prepare`") from None


def _array(stored: Any, name: str) -> NDArray[np.float32]:
    """Read an array after a check of its header: memory is allocated for the shape that it states."""
    if name not in stored.files:
        raise UserError(f"no array {name}; store X_train, X_val, X_test, y_train, y_val and y_test")
    member = stored.zip.getinfo(f"{name}.npy")
    with stored.zip.open(member) as file:
        start = io.BytesIO(file.read(65536))
    reader = npy.read_array_header_1_0 if npy.read_magic(start) == (1, 0) else npy.read_array_header_2_0
    shape, _, dtype = reader(start)
    if dtype.kind not in "fiu":
        raise UserError(f"{name} holds {dtype}, not numbers; store it as float32")
    if len(shape) != 3:
        raise UserError(f"{name} has shape {shape}; store it as (windows, samples, features)")
    if 0 in shape:
        raise UserError(f"{name} is empty, shape {shape}; store at least one window in each part")
    if start.tell() + dtype.itemsize * np.prod(shape, dtype=object) != member.file_size:
        raise UserError(f"{name} is corrupt, its size is not that of shape {shape}; write it again")
    with np.errstate(over="ignore"):  # an overflow becomes Inf, which _check reports
        return np.asarray(stored[name], dtype=np.float32)


def _check(part: str, inputs: NDArray[np.float32], targets: NDArray[np.float32], shape: tuple[int, int]) -> None:
    n_samples, n_components = shape
    if inputs.shape[1] != n_samples:
        raise UserError(f"X_{part} has windows of {inputs.shape[1]} samples, X_train of {n_samples}; use one")
    if inputs.shape[2] != n_components + 1:
        raise UserError(
            f"X_{part} has selectors for {inputs.shape[2] - 1} components, frequencies_hz has "
            f"{n_components} values; set frequencies_hz to the frequency of each component"
        )
    if targets.shape != (*inputs.shape[:2], 1):
        raise UserError(f"y_{part} has shape {targets.shape}; store {(*inputs.shape[:2], 1)} to match X_{part}")
    for name, array in ((f"X_{part}", inputs), (f"y_{part}", targets)):
        if not (finite := np.isfinite(array)).all():
            first = tuple(int(i) for i in np.unravel_index(int(np.argmin(finite)), array.shape))
            raise UserError(f"{name} has {array[first]} at {first}; remove or correct that window")
    selector = inputs[:, :1, 1:]
    one_hot = ((selector == 0) | (selector == 1)).all(axis=(1, 2)) & (selector.sum(axis=(1, 2)) == 1)
    constant = (inputs[:, :, 1:] == selector).all(axis=(1, 2))
    if not (valid := one_hot & constant).all():
        raise UserError(f"X_{part} window {int(np.argmin(valid))}: selector not one-hot and constant; correct it")
