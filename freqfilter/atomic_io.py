"""Atomic file writes: a file is written completely or not at all."""

from __future__ import annotations

import os
import platform
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from freqfilter.errors import UserError
from freqfilter.process import alive

# Names of temporary files contain host and process: .NAME.HOST.PID.RANDOM.part
TEMPORARY = re.compile(r"\..+\.(?P<host>[^.]+)\.(?P<pid>\d+)\.[^.]+\.part")
HOST = re.sub(r"[^\w-]", "-", platform.node()) or "localhost"


def writable_folder(path: Path) -> Path:
    """Create a folder if it is missing, and return it.

    Raises:
        UserError: If it cannot be created or is not writable.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path}: cannot create this folder: {error.strerror or error}; use another") from None
    if not os.access(path, os.W_OK | os.X_OK):
        raise UserError(f"{path}: no permission to write in this folder; use another")
    return path


@contextmanager
def temporary_folder(*, space: int = 0) -> Iterator[Path]:
    """Context manager of a temporary folder, which is deleted afterwards.

    Args:
        space: Bytes that have to be free.

    Raises:
        UserError: If it cannot be created or has less space.
    """
    with ExitStack() as opened:
        try:
            folder = Path(opened.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True)))
            free = shutil.disk_usage(folder).free
        except OSError as error:
            reason = error.strerror or error
            raise UserError(f"no temporary folder: {reason}; set TMPDIR to a folder with space") from None
        if free < space:
            raise UserError(
                f"temporary folder {folder.parent}: {free / 1e6:.1f} MB free where {space / 1e6:g} MB are needed; set "
                "TMPDIR to a folder with more space"
            )
        yield folder


def check_writable(name: str, path: Path) -> None:
    """Check that the file of an option can be written, before the work whose result it gets; creates nothing.

    Raises:
        UserError: If a folder, device or pipe is in its place, or its folder cannot be written.
    """
    try:
        folder = next(parent for parent in path.parents if parent.exists())
        if path.exists() and not path.is_file():
            raise UserError(f"{name}={path}: a pipe, device or folder; give the path of a regular or a new file")
    except OSError as error:
        raise write_error(path, error) from error
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(f"{name}={path}: {folder} is not a folder that you can write; give another {name}")


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file that replaces ``path`` when the block ends, and is removed if the block raises.

    The folder is created if missing, and temporary files of dead processes are removed from it.

    Raises:
        UserError: If the file cannot be written: disk full, no permission, or a folder in its place.
    """
    remove_stale_temp_files(writable_folder(path.parent))
    temporary = path.with_name(f".{path.name}.{HOST}.{os.getpid()}.{secrets.token_hex(4)}.part")
    try:
        with temporary.open("x+b") as file:
            try:
                yield file
                file.flush()
                os.fsync(file.fileno())
                temporary.replace(path)
            finally:
                temporary.unlink(missing_ok=True)
        sync_folder(path.parent)
    except OSError as error:
        raise write_error(path, error) from error


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to disk, so that new file names survive a power failure."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_stale_temp_files(folder: Path) -> None:
    """Remove temporary files whose process, on this host, no longer exists."""
    for path in folder.glob(".*.part"):
        writer = TEMPORARY.fullmatch(path.name)
        if writer and writer["host"] == HOST and not alive(int(writer["pid"])):
            with suppress(OSError):
                path.unlink()


def write_error(path: Path, error: OSError) -> UserError:
    """Error for a file that cannot be written."""
    return UserError(f"{path}: cannot be written: {error.strerror or error}")
