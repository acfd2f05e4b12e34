"""Data files: reading, writing and cutting of windows in an ``.npz`` file."""

from __future__ import annotations

import io
import math
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from numpy.lib import format as npy
from numpy.typing import ArrayLike, NDArray

from freqfilter.atomic_io import atomic_write
from freqfilter.data.windows import Dataset, SlidingWindows, batches, valid_selectors
from freqfilter.errors import UserError, one_line

PARTS = ("train", "val", "test")
NAMES = tuple(f"{kind}_{part}" for kind in "Xy" for part in PARTS)
WRITE_CHUNK = 4096  # windows
REMEDY = f"write {', '.join(NAMES)} with numpy.savez, as `freqfilter prepare` does"
# Corrupt, encrypted or unsupported archives raise many types of error.
READ_ERRORS = (
    OSError, ValueError, EOFError, KeyError, MemoryError, NotImplementedError, RuntimeError,
    zipfile.BadZipFile, zipfile.LargeZipFile, zlib.error,
)  # fmt: skip


def write(path: Path, parts: dict[str, Dataset]) -> None:
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


def cut_windows(
    mixture: ArrayLike, components: ArrayLike, *, window_length: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Cut every window of a recording, once for each component, as in a data file.

    Args:
        mixture: The recording, (n_samples,).
        components: Its clean components, (n_components, n_samples).
        window_length: Samples of a window.

    Returns:
        Inputs (n_windows, window_length, 1 + n_components): the mixture, then the one-hot selector of a component.
        Targets (n_windows, window_length, 1): that component.

    Raises:
        UserError: If the shapes do not match, or the recording is shorter than a window.
    """
    mixtures = torch.from_numpy(np.asarray(mixture, dtype=np.float32)[None])
    clean = torch.from_numpy(np.asarray(components, dtype=np.float32))
    if mixtures.ndim != 2 or clean.ndim != 2 or clean.shape[1:] != mixtures.shape[1:]:
        raise UserError(
            f"mixture {tuple(mixtures.shape[1:])}, components {tuple(clean.shape)}: give the shapes (n_samples,) and "
            "(n_components, n_samples)"
        )
    if not 0 < window_length <= clean.shape[1]:
        raise UserError(f"window_length={window_length}: give 1 to {clean.shape[1]}, the number of samples")
    windows = SlidingWindows(mixtures, clean, window_length)
    inputs, targets = windows.batch(torch.arange(len(windows)))
    return inputs.numpy(), targets.numpy()


def read(path: str, *, n_components: int, window_length: int) -> dict[str, NDArray[np.float32]]:
    """Read and validate a file of windows.

    Args:
        path: The ``.npz`` file.
        n_components: Required width of the one-hot selectors.
        window_length: Required length of the windows, samples.

    Returns:
        Inputs ``X_…`` (n_windows, n_samples, 1 + n_components) and targets ``y_…`` (n_windows, n_samples, 1) of
        each part, float32.

    Raises:
        UserError: If the file is missing or corrupt, its arrays need more memory than is available, an array is
            missing, empty, of a wrong type or shape, contains NaN or Inf (the first index is given), or a selector is
            not one-hot and constant over its window.
    """
    try:
        arrays = _arrays(Path(path), window_length)
        for part in PARTS:
            _check(part, arrays[f"X_{part}"], arrays[f"y_{part}"], (window_length, n_components))
    except UserError as error:
        raise UserError(f"data_file={path}: {error}") from None
    return arrays


def _arrays(path: Path, window_length: int) -> dict[str, NDArray[np.float32]]:
    try:
        if path.exists() and not path.is_file():  # to open a pipe would wait for its writer
            raise UserError("a pipe, device or folder; write its content to a file first, as with `cat … > data.npz`")
        with path.open("rb") as file:
            stored = np.load(file, allow_pickle=False)
            if not isinstance(stored, np.lib.npyio.NpzFile):
                raise UserError(f"a single array, not a .npz file; {REMEDY}")
            with stored:
                _check_memory([_header(stored, name, window_length) for name in NAMES])
                with np.errstate(over="ignore"):  # an overflow becomes Inf, which _check reports
                    return {name: np.asarray(stored[name], dtype=np.float32) for name in NAMES}
    except READ_ERRORS as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "not a readable .npz file"
        raise UserError(f"{reason}; {REMEDY}") from None


def _header(stored: Any, name: str, window_length: int) -> tuple[int, np.dtype[Any]]:
    """Number of values and type of an array, from its header; memory is allocated for the shape that it states."""
    if name not in stored.files:
        found = one_line(", ".join(stored.files)) or "none"
        raise UserError(f"no array {name} among its arrays: {found}; store {', '.join(NAMES)}")
    member = stored.zip.getinfo(f"{name}.npy")
    with stored.zip.open(member) as file:
        start = io.BytesIO(file.read(65536))
    reader = npy.read_array_header_1_0 if npy.read_magic(start) == (1, 0) else npy.read_array_header_2_0
    shape, _, dtype = reader(start)
    if dtype.kind not in "fiu":
        raise UserError(f"{name} holds {dtype}, not numbers; store it as float32")
    if len(shape) == 2:
        raise UserError(
            f"{name} has shape {shape}, not (windows, samples, features); make both arrays of a part from samples with "
            f"X, y = freqfilter.cut_windows(mixture, components, window_length={window_length}): mixture (n_samples,), "
            "components (n_components, n_samples)"
        )
    if len(shape) != 3:
        raise UserError(f"{name} has shape {shape}; store it as (windows, samples, features)")
    if 0 in shape:
        raise UserError(f"{name} is empty, shape {shape}; store at least one window in each part")
    size = math.prod(shape)
    if start.tell() + dtype.itemsize * size != member.file_size:
        raise UserError(f"{name} is corrupt, its size is not that of shape {shape}; write it again")
    return size, dtype


def _check_memory(headers: list[tuple[int, np.dtype[Any]]]) -> None:
    """Check the memory that arrays of these sizes and types need when they are read as float32, one after another."""
    kept = needed = 0
    for size, dtype in headers:
        kept += 4 * size
        needed = max(needed, kept + (0 if dtype == np.float32 else dtype.itemsize * size))
    available = psutil.virtual_memory().available
    if needed > available:
        raise UserError(
            f"its arrays need {needed / 1e9:.1f} GB of memory, of which {available / 1e9:.1f} GB are available; store "
            "fewer windows"
        )


def _check(part: str, inputs: NDArray[np.float32], targets: NDArray[np.float32], shape: tuple[int, int]) -> None:
    n_samples, n_components = shape
    if inputs.shape[1] != n_samples:
        raise UserError(
            f"X_{part} has windows of {inputs.shape[1]} samples, not window_length={n_samples}; add "
            f"window_length={inputs.shape[1]}, the same for all parts"
        )
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
    if not (valid := valid_selectors(inputs)).all():
        raise UserError(f"X_{part} window {int(np.argmin(valid))}: selector not one-hot and constant; correct it")
