"""Who started this process: a person, or ``mlflow run``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import psutil

SHELLS = {"bash", "sh", "dash", "zsh"}


def launched_by_mlflow() -> bool:
    """Whether ``mlflow run`` started this process and has made its run."""
    return launched_run() is not None


def launcher() -> psutil.Process | None:
    """The ``mlflow run`` that started this process; None where none did or the system does not tell."""
    import psutil

    if not launched_by_mlflow():
        return None
    try:
        return next(process for process in psutil.Process().parents() if process.name() not in SHELLS)
    except (psutil.Error, StopIteration):
        return None


def launched_run() -> str | None:
    """The id of the run that ``mlflow run`` has made, or was told to go on with; None where it did not start us."""
    return os.environ.get("MLFLOW_RUN_ID")


def alive(pid: int) -> bool:
    """Whether a process of this number is there."""
    import psutil

    return bool(psutil.pid_exists(pid))


def running(process: psutil.Process) -> bool:
    """Whether a process is still there, and not one that has ended and waits for its parent to hear of it."""
    import psutil

    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def launcher_folder() -> Path | None:
    """The folder that ``mlflow run`` was typed in; None where the system does not tell."""
    import psutil

    try:
        return Path(process.cwd()) if (process := launcher()) else None
    except psutil.Error:
        return None
