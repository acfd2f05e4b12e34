"""Files that are written whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from freqfilter.errors import UserError


def writable_folder(path: Path) -> Path:
    """The folder, made where it is missing.

    Raises:
        UserError: If it cannot be made or nothing can be written in it.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path}: this folder cannot be made: {error.strerror or error}") from None
    if not os.access(path, os.W_OK | os.X_OK):
        raise UserError(f"{path}: nothing can be written in this folder: no permission")
    return path


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file open for writing that takes the place of ``path`` when the block ends well, and vanishes otherwise.

    The folder is made where it is missing.

    Raises:
        UserError: If the file cannot be written: disk full, no permission, or a folder in its place.
    """
    writable_folder(path.parent)
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            temporary = Path(file.name)
            try:
                yield cast(BinaryIO, file)
                file.flush()
                os.fsync(file.fileno())
                temporary.chmod(0o666 & ~_umask())
                temporary.replace(path)
            finally:
                temporary.unlink(missing_ok=True)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror or error}") from error


def _umask() -> int:
    umask = os.umask(0o077)  # it can only be read by setting it
    os.umask(umask)
    return umask
