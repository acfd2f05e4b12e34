"""This process: its launcher, and its graceful shutdown on SIGINT, SIGTERM and SIGHUP."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import psutil


class Interrupted(BaseException):
    """Raised when the process is to end: on a signal, or when its launcher has ended.

    Attributes:
        exit_code: 128 + the signal's number, as in shells.
        remedy: Command that resumes the work; empty before it starts.
    """

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal.Signals(signal_number).name)
        self.exit_code = 128 + signal_number
        self.remedy = ""


RAISE_AGAIN_S = 0.2
NOT_INTERRUPTED = "sqlalchemy"  # package: a connection that is interrupted stays in its transaction and locks the store


class ShutdownHandler:
    """Graceful shutdown: the first signal interrupts the work, later ones are ignored. Each thread defers its own.

    Python drops an exception that a signal handler raises in a callback or ``__del__``, and libraries drop others, as
    while they import each other: a timer raises it again until it is handled.
    """

    def __init__(self) -> None:
        self._received: int | None = None
        self._launcher: psutil.Process | None = None
        self._thread = threading.local()

    def follow(self, launcher: psutil.Process | None) -> None:
        """Make ``check`` interrupt when the launcher has ended, too."""
        self._launcher = launcher

    @property
    def received(self) -> bool:
        """Whether a signal has been received."""
        return self._received is not None

    def check(self) -> None:
        """Raise an interruption that was deferred or dropped.

        Raises:
            Interrupted: If a signal was received, or the launcher has ended.
        """
        if self._received is None and self._launcher is not None and not running(self._launcher):
            self._received = signal.SIGTERM
        if self._received is not None:
            self._thread.deferred = False
            raise Interrupted(self._received)

    def ignore_signals(self) -> None:
        """Ignore signals from now on, when finishing takes less time than resuming."""
        self._thread.deferred = True

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Defer signals inside the block to calls of ``check`` and to its end."""
        self._thread.deferred = True
        try:
            yield
            self.check()
        finally:
            self._thread.deferred = False

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Make SIGINT, SIGTERM and SIGHUP raise ``Interrupted`` in the main thread inside the block.

        An ignored SIGHUP stays ignored (nohup). If a signal was received, all three are ignored after the block, since
        the process is about to exit.
        """
        numbers = [signal.SIGINT, signal.SIGTERM]
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            numbers.append(signal.SIGHUP)
        hook, sys.unraisablehook = sys.unraisablehook, _hide_dropped
        alarm = signal.signal(signal.SIGALRM, self._on_signal)
        before = {number: signal.signal(number, self._on_signal) for number in numbers}
        try:
            yield
        finally:
            if self.received:
                signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, alarm)
            sys.unraisablehook = hook
            for number, handler in before.items():
                signal.signal(number, signal.SIG_IGN if self.received else handler)
            self._received = self._launcher = None
            self._thread.deferred = False

    @property
    def _deferred(self) -> bool:
        return getattr(self._thread, "deferred", False)

    def _on_signal(self, signal_number: int, frame: FrameType | None) -> None:
        if self._received is None:
            self._received = signal_number
            signal.setitimer(signal.ITIMER_REAL, RAISE_AGAIN_S, RAISE_AGAIN_S)
        if not self._deferred and not _handles_interrupt() and not _is_called_in(NOT_INTERRUPTED, frame):
            raise Interrupted(self._received)


def _is_called_in(package: str, frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_globals.get("__name__", "").partition(".")[0] == package:
            return True
        frame = frame.f_back
    return False


def _hide_dropped(unraisable: sys.UnraisableHookArgs) -> None:
    """Print an exception that Python drops, unless it is an interruption, which is raised again."""
    if not isinstance(unraisable.exc_value, Interrupted):
        sys.__unraisablehook__(unraisable)


def _handles_interrupt() -> bool:
    """Whether an interruption, or an error in its handling, is being handled."""
    error = sys.exc_info()[1]
    while error is not None and not isinstance(error, Interrupted):
        error = error.__context__
    return error is not None


shutdown = ShutdownHandler()  # of this process


@contextmanager
def tolerant_of_warnings() -> Iterator[None]:
    """Context manager that prints warnings which ``-W error`` or ``PYTHONWARNINGS=error`` turn into errors.

    Those of a library would end a job.
    """
    if not sys.warnoptions:
        yield
        return
    with warnings.catch_warnings():
        warnings.filters[:] = [  # type: ignore[index]
            ("default" if action == "error" else action, *rest) for action, *rest in warnings.filters
        ]
        yield


# The program of `set_status_after`. It imports this package from where this process has it, but nothing else from
# there. This process imports no library for it: one whose import a signal has interrupted cannot be imported again.
WAITER = (
    f"import importlib, sys, typing; sys.path.insert(0, {str(Path(__file__).parents[1])!r}); import freqfilter; "
    "del sys.path[0]; from freqfilter.tracking.owner import set_status_of_ended; set_status_of_ended(*sys.argv[1:])"
)
SHELLS = {"bash", "sh", "dash", "zsh"}


def launched_by_mlflow() -> bool:
    """Whether ``mlflow run`` started this process and created its run."""
    return launched_run() is not None


def launcher() -> psutil.Process | None:
    """The ``mlflow run`` process that started this one; None if there is none or it cannot be determined."""
    if not launched_by_mlflow():
        return None
    import psutil

    try:
        return next(process for process in psutil.Process().parents() if process.name() not in SHELLS)
    except (psutil.Error, StopIteration):
        return None


def launched_run() -> str | None:
    """Id of the run that ``mlflow run`` created or resumes; None if it did not start this process."""
    return os.environ.get("MLFLOW_RUN_ID")


def alive(pid: int) -> bool:
    """Whether a process with this id exists."""
    import psutil

    return bool(psutil.pid_exists(pid))


def running(process: psutil.Process) -> bool:
    """Whether a process exists and is not a zombie."""
    import psutil

    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def launcher_folder() -> Path | None:
    """Working directory of the ``mlflow run`` process; None if it cannot be determined."""
    import psutil

    try:
        return Path(process.cwd()) if (process := launcher()) else None
    except psutil.Error:
        return None


def launcher_start_times() -> list[float]:
    """Start of each `mlflow run` process of this machine, seconds since 1970."""
    import psutil

    starts = []
    for process in psutil.process_iter(["cmdline", "create_time"]):
        arguments = process.info["cmdline"] or []
        if "run" in arguments and any(Path(argument).name == "mlflow" for argument in arguments):
            starts.append(process.info["create_time"])
    return starts


def set_status_after(launcher: psutil.Process, run_id: str, status: str, *, owner_id: str | None = "") -> None:
    """Start a detached process that waits for ``launcher`` to end and then sets the status of a run.

    Args:
        launcher: The ``mlflow run`` process.
        run_id: Id of the run.
        status: Its status, unless it has another owner by then.
        owner_id: Id of its owner; empty for a run without one, None for any.
    """
    owner = [] if owner_id is None else [owner_id]
    command = [sys.executable, "-P", "-c", WAITER, run_id, status, str(launcher.pid), *owner]
    quiet = subprocess.DEVNULL
    subprocess.Popen(command, stdin=quiet, stdout=quiet, stderr=quiet, start_new_session=True)
