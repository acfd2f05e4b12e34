"""Standard output and standard error of a job: a stream that cannot be written never ends the job."""

from __future__ import annotations

import io
import os
import select
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


class StandardStream(io.RawIOBase):
    """Standard output or standard error, whose ``write`` raises no error.

    If the stream cannot be written, a line with the reason and all further text go to the other stream. If the reader
    of a pipe has ended, the text is discarded.

    Attributes:
        error: Why the stream cannot be written; empty if it can, or if its reader has ended.
        forwards: Whether further text goes to the other stream.
        other: The other stream.
    """

    def __init__(self, descriptor: int, name: str, *, error: str = "") -> None:
        super().__init__()
        self.error = ""
        self.forwards = True
        self.other: StandardStream | None = None
        self._descriptor, self._name, self._ended, self._closed_because = descriptor, name, False, error

    def writable(self) -> bool:
        """Return True."""
        return True

    def fileno(self) -> int:
        """Return the file descriptor."""
        return self._descriptor

    def isatty(self) -> bool:
        """Return whether the stream is a terminal."""
        return os.isatty(self._descriptor)

    def write(self, content: ReadableBuffer, /) -> int:
        """Write a part of the content and return its length, or all of it if it goes to the other stream."""
        while not self._ended:
            try:
                if self._closed_because:
                    raise OSError(0, self._closed_because)
                return os.write(self._descriptor, content)
            except BlockingIOError:  # another program has made the terminal non-blocking
                select.select([], [self._descriptor], [])
            except OSError as error:
                self._end(error)
        if self.error and self.forwards:
            self._forward(content)
        return memoryview(content).nbytes

    def _end(self, error: OSError) -> None:
        self._ended = True
        if not isinstance(error, BrokenPipeError):
            self.error = error.strerror or str(error)
            line = f"freqfilter: {self._name} cannot be written: {self.error}"
            self._forward(f"{line}; its text follows\n".encode() if self.forwards else f"{line}\n".encode())

    def _forward(self, content: ReadableBuffer) -> None:
        rest = memoryview(content)
        while self.other and not self.other._ended and rest.nbytes:
            rest = rest[self.other.write(rest) :]


@contextmanager
def safe_streams() -> Iterator[None]:
    """Context manager in which a standard stream that cannot be written raises no error; see ``StandardStream``.

    Characters that its encoding lacks are escaped. Streams that another program has replaced, such as a notebook, stay.
    """
    before = sys.stdout, sys.stderr
    if before != (sys.__stdout__, sys.__stderr__):
        yield
        return
    closed = _open_closed_descriptors()
    names = ("standard output", "standard error")
    streams = [
        StandardStream(number, name, error="it is closed" if number in closed else "")
        for number, name in enumerate(names, start=1)
    ]
    streams[0].other, streams[1].other = streams[1], streams[0]
    sys.stdout, sys.stderr = map(_text, streams, before)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        sys.stdout, sys.stderr = before


def standard_output() -> StandardStream | None:
    """Standard output inside ``safe_streams``; None if it was not replaced."""
    stream = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    return stream if isinstance(stream, StandardStream) else None


def _open_closed_descriptors() -> set[int]:
    """Open the null device for closed standard streams, since the next open file would take the stream's number.

    Returns:
        The descriptors that were closed.
    """
    closed = set()
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the smallest free number
            os.set_inheritable(number, True)
            closed.add(number)
    return closed


def _text(stream: StandardStream, former: TextIO | None) -> io.TextIOWrapper:
    if not isinstance(former, io.TextIOWrapper):
        return io.TextIOWrapper(io.BufferedWriter(stream), "utf-8", "backslashreplace")
    with suppress(OSError):  # text of the user's program
        former.flush()
    line_buffering = former.line_buffering or former.write_through
    return io.TextIOWrapper(
        io.BufferedWriter(stream), former.encoding, "backslashreplace", line_buffering=line_buffering
    )
