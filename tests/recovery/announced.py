"""Command line that writes start and end of each phase to a pipe: ``announced.py DESCRIPTOR ARGUMENT…``."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from typing import Any


def announce(phase: str, event: str) -> None:
    os.write(int(os.environ["ANNOUNCE_TO"]), f"{phase} {event} {time.monotonic()}\n".encode())


def during(phase: str, call: Callable[..., Any]) -> Callable[..., Any]:
    def wrapped(*args: Any, **named: Any) -> Any:
        announce(phase, "begin")
        try:
            return call(*args, **named)
        finally:
            announce(phase, "end")

    return wrapped


def announcing(phase: str, what: str, call: Callable[..., Any]) -> Callable[..., Any]:
    def wrapped(*args: Any, **named: Any) -> Any:
        announce(phase, what)
        return call(*args, **named)

    return wrapped


def main() -> None:
    os.environ["ANNOUNCE_TO"] = sys.argv.pop(1)
    announce("start", "begin")
    from freqfilter.cli.main import main as run_command_line
    from freqfilter.pipelines import finalize
    from freqfilter.pipelines.train import CheckpointWriter
    from freqfilter.tracking import run
    from freqfilter.tracking.owner import RunLock
    from freqfilter.training import loop
    from freqfilter.training.state import TrainingState

    loop.epoch_order = announcing("epoch", "begin", loop.epoch_order)
    TrainingState.begin_epoch = announcing("epoch", "end", TrainingState.begin_epoch)  # type: ignore[method-assign]
    CheckpointWriter.write = during("checkpoint", CheckpointWriter.write)  # type: ignore[method-assign]
    make_sender = run.sender
    run.sender = lambda *args: during("logging", make_sender(*args))
    finalize.evaluate_best_weights = during("evaluation", finalize.evaluate_best_weights)
    finalize.log_version = during("registration", finalize.log_version)
    RunLock.remove_folder = during("ending", RunLock.remove_folder)  # type: ignore[method-assign]
    run_command_line()


if __name__ == "__main__":
    main()
