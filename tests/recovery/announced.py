"""The program, saying on a pipe when it enters and leaves each phase: ``announced.py DESCRIPTOR WORD…``."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

PIPE = int(sys.argv[1])
del sys.argv[1]


def announce(phase: str, what: str) -> None:
    os.write(PIPE, f"{phase} {what} {time.monotonic()}\n".encode())


announce("start", "begin")

import freqfilter.filters.training as training  # noqa: E402
import freqfilter.tracking.opening as opening  # noqa: E402
import freqfilter.tracking.runs as runs  # noqa: E402
import freqfilter.workflows.train as workflow  # noqa: E402
from freqfilter.cli import main  # noqa: E402
from freqfilter.workflows.keeping import Keeper  # noqa: E402


def during(phase: str, call: Callable[..., Any]) -> Callable[..., Any]:
    def wrapped(*args: Any, **named: Any) -> Any:
        announce(phase, "begin")
        try:
            return call(*args, **named)
        finally:
            announce(phase, "end")

    return wrapped


def epochs(call: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
    def wrapped(*args: Any, **named: Any) -> Iterator[Any]:
        announce("epoch", "begin")
        yield from call(*args, **named)
        announce("epoch", "end")

    return wrapped


def sending(make: Callable[..., Callable[[Any], None]]) -> Callable[..., Callable[[Any], None]]:
    return lambda *args: during("logging", make(*args))


training._epoch = epochs(training._epoch)  # type: ignore[assignment]

Keeper.write = during("checkpoint", Keeper.write)  # type: ignore[method-assign]
runs.sender = sending(runs.sender)
workflow.judge = during("evaluation", workflow.judge)
workflow.keep_model = during("registration", workflow.keep_model)
opening.shutil.rmtree = during("ending", opening.shutil.rmtree)

main()
