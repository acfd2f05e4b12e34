"""This process: its launcher, and its graceful shutdown on SIGINT, SIGTERM and SIGHUP."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import psutil


class Interrupted(BaseException):
    """The user or the system has asked this process to end.

    Attributes:
        exit_code: 128 + the number of the signal, as shells have it.
        remedy: The command that resumes the work; empty if nothing was begun.
    """

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal.Signals(signal_number).name)
        self.exit_code = 128 + signal_number
        self.remedy = ""


class ShutdownHandler:
    """Graceful shutdown: the first signal interrupts the work, and those that follow during cleanup are ignored.

    Python delivers signals to the main thread. Each thread defers for itself.
    """

    def __init__(self) -> None:
        self._received: int | None = None
        self._launcher: psutil.Process | None = None
        self._thread = threading.local()

    def follow(self, launcher: psutil.Process | None) -> None:
        """Let ``check`` also interrupt once the process that launched this one has ended."""
        self._launcher = launcher

    @property
    def received(self) -> bool:
        """Whether a signal has been received."""
        return self._received is not None

    def check(self) -> None:
        """Interrupt here if a signal was deferred.

        Raises:
            Interrupted: If a signal was received, or the launcher has ended.
        """
        if self._received is None and self._launcher is not None and not running(self._launcher):
            self._received = signal.SIGTERM
        if self._deferred and self._received is not None:
            self._thread.deferred = False
            raise Interrupted(self._received)

    def ignore_signals(self) -> None:
        """Ignore signals from here on, where to finish takes less time than to resume."""
        self._thread.deferred = True

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """A block that a signal interrupts only where it calls ``check``, and at its end."""
        self._thread.deferred = True
        try:
            yield
            self.check()
        finally:
            self._thread.deferred = False

    @contextmanager
    def installed(self) -> Iterator[None]:
        """A block in which SIGINT, SIGTERM and SIGHUP raise ``Interrupted`` in the main thread.

        An ignored SIGHUP stays ignored (nohup). After a signal, all three are ignored when the block ends, since the
        process is about to exit.
        """
        numbers = [signal.SIGINT, signal.SIGTERM]
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            numbers.append(signal.SIGHUP)
        before = {number: signal.signal(number, self._on_signal) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, signal.SIG_IGN if self.received else handler)
            self._received = self._launcher = None
            self._thread.deferred = False

    @property
    def _deferred(self) -> bool:
        return getattr(self._thread, "deferred", False)

    def _on_signal(self, signal_number: int, _frame: FrameType | None) -> None:
        if self._received is not None:
            return
        self._received = signal_number
        if not self._deferred:
            raise Interrupted(signal_number)


shutdown = ShutdownHandler()  # of this process


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
