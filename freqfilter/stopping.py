"""Ctrl-C, SIGTERM and a closed terminal: at once where nothing can be lost, at the next safe point elsewhere."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

from freqfilter.launch import running

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
