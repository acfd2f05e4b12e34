"""Atomic file writes: a file is written whole or not at all."""

from __future__ import annotations

import os
import platform
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, cast

from freqfilter.errors import UserError
from freqfilter.process import alive

# A temporary file says who writes it: .NAME.HOST.PID.RANDOM.part
TEMPORARY = re.compile(r"\..+\.(?P<host>[^.]+)\.(?P<pid>\d+)\.[^.]+\.part")
HOST = re.sub(r"[^\w-]", "-", platform.node()) or "localhost"


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
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """A file open for writing that takes the place of ``path`` when the block ends well, and vanishes otherwise.

    The folder is made where it is missing, and what a process that died has left half-written in it is removed.

    Raises:
        UserError: If the file cannot be written: disk full, no permission, or a folder in its place.
    """
    remove_stale_temp_files(writable_folder(path.parent))
    try:
        with tempfile.NamedTemporaryFile(
            dir=path.parent, prefix=f".{path.name}.{HOST}.{os.getpid()}.", suffix=".part", delete=False
        ) as file:
            temporary = Path(file.name)
            try:
                yield cast(BinaryIO, file)
                file.flush()
                os.fsync(file.fileno())
                temporary.chmod(0o666 & ~_umask())
                temporary.replace(path)
            finally:
                temporary.unlink(missing_ok=True)
        sync_folder(path.parent)
    except OSError as error:
        raise write_error(path, error) from error


def sync_folder(folder: Path) -> None:
    """Have the names in a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_stale_temp_files(folder: Path) -> None:
    """Remove the temporary files of processes of this machine that are gone."""
    for path in folder.glob(".*.part"):
        writer = TEMPORARY.fullmatch(path.name)
        if writer and writer["host"] == HOST and not alive(int(writer["pid"])):
            with suppress(OSError):
                path.unlink()


def write_error(path: Path, error: OSError) -> UserError:
    """The one line about a file that the system does not let us write."""
    return UserError(f"{path}: cannot be written: {error.strerror or error}")


def _umask() -> int:
    umask = os.umask(0o077)  # it can only be read by setting it
    os.umask(umask)
    return umask
