"""The program, saying on a pipe when it enters and leaves each phase: ``announced.py DESCRIPTOR WORD…``."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any


def announce(phase: str, what: str) -> None:
    os.write(int(os.environ["ANNOUNCE_TO"]), f"{phase} {what} {time.monotonic()}\n".encode())


def during(phase: str, call: Callable[..., Any]) -> Callable[..., Any]:
    def wrapped(*args: Any, **named: Any) -> Any:
        announce(phase, "begin")
        try:
            return call(*args, **named)
        finally:
            announce(phase, "end")

    return wrapped


def during_epochs(call: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
    def wrapped(*args: Any, **named: Any) -> Iterator[Any]:
        announce("epoch", "begin")
        yield from call(*args, **named)
        announce("epoch", "end")

    return wrapped


def main() -> None:
    os.environ["ANNOUNCE_TO"] = sys.argv.pop(1)
    announce("start", "begin")
    from freqfilter import cli
    from freqfilter.filters import training
    from freqfilter.tracking import opening, runs
    from freqfilter.workflows import train
    from freqfilter.workflows.keeping import Keeper

    training._epoch = during_epochs(training._epoch)
    Keeper.write = during("checkpoint", Keeper.write)  # type: ignore[method-assign]
    make_sender = runs.sender
    runs.sender = lambda *args: during("logging", make_sender(*args))
    train.judge = during("evaluation", train.judge)
    train.keep_model = during("registration", train.keep_model)
    opening.shutil.rmtree = during("ending", opening.shutil.rmtree)  # type: ignore[assignment]
    cli.main()


if __name__ == "__main__":
    main()
