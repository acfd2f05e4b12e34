"""What tracking costs: the same training without MLflow, with a database, and with a server."""

from __future__ import annotations

import itertools
import json
import logging
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from benchmarks.measure import Row, in_turns, side

ROUNDS, EPOCHS = 3, 6
NONE, SQLITE, SERVER = "no tracker", "SQLite", "HTTP server"
PHASES = ("start", "epochs", "end")
CHOSEN = {"epochs": str(EPOCHS), "windows_per_epoch": "32000", "checkpoint_every": "2"}


class Watch(logging.Handler):
    """A log handler that notes the phases and the ends of epochs, and a clock for all calls to the tracker."""

    def __init__(self) -> None:
        super().__init__()
        self.phase = "start"
        self.ends: list[float] = []
        self.spent = dict.fromkeys(PHASES, 0.0)
        self._inside = False

    def emit(self, record: logging.LogRecord) -> None:
        """Note a report of the training loop."""
        if hasattr(record, "report"):
            self.show(record.report, epochs=EPOCHS)

    def show(self, report: Any, *, epochs: int) -> None:
        """A report of a step or of an epoch."""
        self.phase = "epochs"
        if hasattr(report, "val_mse"):
            self.ends.append(time.perf_counter())
            self.phase = "end" if report.epoch == epochs else "epochs"

    def timed(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """The same call, its time counted unless it is part of another one."""

        def counted(*args: Any, **kwargs: Any) -> Any:
            if self._inside:
                return call(*args, **kwargs)
            self._inside, started, phase = True, time.perf_counter(), self.phase
            try:
                return call(*args, **kwargs)
            finally:
                self.spent[phase] += time.perf_counter() - started
                self._inside = False

        return counted

    def timed_block(self, opening: Callable[..., Any]) -> Callable[..., Any]:
        """The same context manager, its beginning and its end counted."""

        @contextmanager
        def counted(*args: Any, **kwargs: Any) -> Iterator[Any]:
            block = opening(*args, **kwargs)
            value = self.timed(block.__enter__)()
            try:
                yield value
            finally:
                self.timed(block.__exit__)(*sys.exc_info())

        return counted


def without_tracker() -> dict[str, Any]:
    """The loop alone, with validation and holdout as the tracked runs have them."""
    from benchmarks.parts.epoch import begin
    from freqfilter.config import resolve
    from freqfilter.data.windows import evenly_spaced
    from freqfilter.training.loop import train

    params = resolve(CHOSEN)
    state, splits = begin(params)
    watch = Watch()
    steps = train(
        state,
        training_windows=splits.epoch,
        validation=splits.validation,
        holdout=evenly_spaced(splits.holdout, params.evaluation.holdout_windows) if splits.holdout else None,
        params=params.training,
    )
    with closing(steps):
        for report in steps:
            watch.show(report, epochs=EPOCHS)
    return {"ends": watch.ends}


def with_tracker(uri: str) -> dict[str, Any]:
    """A whole tracked run, every call to the tracker timed."""
    os.environ["MLFLOW_TRACKING_URI"] = uri
    from freqfilter.config import resolve
    from freqfilter.pipelines import setup, train
    from freqfilter.tracking import registry, run

    watch = Watch()
    setup.open_store = watch.timed(setup.open_store)
    train.open_run = watch.timed_block(train.open_run)
    for home, names in (
        (run.Run, [name for name in vars(run.Run) if name.startswith(("log_", "describe", "deliver"))]),
        (registry, ["log_model", "register"]),
        (train.provenance, ["source", "machine_tags"]),
    ):
        for name in names:
            setattr(home, name, watch.timed(getattr(home, name)))
    package = logging.getLogger("freqfilter")
    package.setLevel(logging.INFO)
    package.addHandler(watch)
    train.train(resolve(CHOSEN), recipe="default", name="bench")
    return {"ends": watch.ends, "spent": watch.spent}


@contextmanager
def server(folder: Path) -> Iterator[str]:
    """A tracking server of its own; its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    store = ["--backend-store-uri", f"sqlite:///{folder}/server.db", "--artifacts-destination", str(folder / "kept")]
    running = subprocess.Popen(
        command + store, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(240):
            try:
                urllib.request.urlopen(f"{address}/health", timeout=1)  # noqa: S310
                break
            except OSError:
                time.sleep(0.5)
        yield address
    finally:
        os.killpg(running.pid, 15)
        running.wait()


def measure() -> list[Row]:
    """The three sides in turns."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with server(folder) as address:
            uris = {NONE: None, SQLITE: f"sqlite:///{folder}/mlflow.db", SERVER: address}
            sides = {side_name: side("parts.tracking", uri=uri) for side_name, uri in uris.items()}
            ended = in_turns(sides, rounds=ROUNDS, cwd=folder)
    rows = []
    for side_name in uris:
        answers = [each.answer for each in ended[side_name]]
        epochs = [statistics.median(_differences(each["ends"])) for each in answers]
        rows.append(Row(side_name, "epoch", "s", epochs, against=NONE))
        if side_name != NONE:
            for phase, parts in (("start", 1), ("epochs", EPOCHS), ("end", 1)):
                figure = "calls to the tracker, each epoch" if phase == "epochs" else f"calls to the tracker, {phase}"
                rows.append(Row(side_name, figure, "s", [each["spent"][phase] / parts for each in answers]))
    return rows


def _differences(times: list[float]) -> list[float]:
    return [later - earlier for earlier, later in itertools.pairwise(times)]


if __name__ == "__main__":
    uri = json.loads(sys.argv[1])["uri"]
    print(json.dumps(with_tracker(uri) if uri else without_tracker()))
