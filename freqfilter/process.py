"""This process: its launcher, and its graceful shutdown on SIGINT, SIGTERM and SIGHUP."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import psutil


class Stopped(BaseException):
    """The user or the system asked this process to end.

    Attributes:
        exit_code: 128 + the signal's number, as shells count.
        remedy: How to go on; empty where nothing was begun.
    """

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal.Signals(signal_number).name)
        self.exit_code = 128 + signal_number
        self.remedy = ""


class Stopping:
    """The first signal stops the work; those that follow while it winds up change nothing."""

    def __init__(self) -> None:
        self._received: int | None = None
        self._deferred = False
        self._launcher: psutil.Process | None = None

    def end_with(self, launcher: psutil.Process | None) -> None:
        """Let ``check`` also stop where the process that launched this one has gone: nobody waits any more."""
        self._launcher = launcher

    @property
    def stopped(self) -> bool:
        """Whether a signal has come."""
        return self._received is not None

    def check(self) -> None:
        """Stop here if that was asked for since.

        Raises:
            Stopped: If a signal has come.
        """
        if self._received is None and self._launcher is not None and not running(self._launcher):
            self._received = signal.SIGTERM
        if self._deferred and self._received is not None:
            self._deferred = False
            raise Stopped(self._received)

    def finish_anyway(self) -> None:
        """From here on it is less to finish than to stop: a signal changes nothing any more."""
        self._deferred = True

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """A block that a signal ends only where it calls ``check``, or at its end."""
        self._deferred = True
        try:
            yield
            self.check()
        finally:
            self._deferred = False

    def _on_signal(self, signal_number: int, _frame: FrameType | None) -> None:
        if self._received is not None:
            return
        self._received = signal_number
        if not self._deferred:
            raise Stopped(signal_number)


@contextmanager
def stopping() -> Iterator[Stopping]:
    """A block in which SIGINT, SIGTERM and SIGHUP raise ``Stopped`` in the main thread; nohup keeps its meaning.

    After the first signal the process is on its way out, and none that follow may hurry it.
    """
    watch = Stopping()
    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    before = {number: signal.signal(number, watch._on_signal) for number in numbers}
    try:
        yield watch
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_IGN if watch.stopped else handler)


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
