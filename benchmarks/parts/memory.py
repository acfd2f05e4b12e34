"""The most memory that a process holds: of the default run, and of longer and longer signals."""

from __future__ import annotations

import json
import resource
import sys
import tempfile
from pathlib import Path

from benchmarks.measure import Row, process, say, side

ROUNDS = 3
READY, WHOLE, LONG = "everything imported, the store open", "default run", "long signal, 250 steps"
SIGNALS = (10**4, 10**5, 10**6, 10**7, 10**8)
SHORT = {"epochs": "2", "register": "true"}


def ready() -> float:
    """MB of a process that could begin to train."""
    from freqfilter.pipelines import train  # noqa: F401
    from freqfilter.tracking.client import open_store

    open_store()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def training(folder: Path, **chosen: str) -> float:
    """MB at the peak of a tracked training."""
    given = [f"--{name}={value}" for name, value in chosen.items()]
    command = [sys.executable, "-m", "freqfilter", "train", *given]
    return process(command, environment={"MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db"}, cwd=folder).peak_mb


def measure() -> list[Row]:
    """The default run, two of its epochs, with evaluation and registration; then signals at the same sample rate."""
    rows = {READY: Row(READY, "peak", "MB", []), WHOLE: Row(WHOLE, "peak", "MB", [], against=READY)}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        uri = {"MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db"}
        for turn in range(ROUNDS):
            rows[READY].values.append(process(side("parts.memory"), environment=uri, cwd=folder).answer)
            rows[WHOLE].values.append(training(folder, **SHORT))
            say(f"  round {turn + 1} of {ROUNDS}: {rows[READY].values[-1]:.0f} MB, {rows[WHOLE].values[-1]:.0f} MB")
        grown = []
        for n_samples in SIGNALS:
            length = {"n_samples": str(n_samples), "duration_s": str(n_samples / 1000)}
            peak = training(folder, epochs="1", holdout_every="0", register="false", **length)
            say(f"  a signal of {n_samples:,} samples: {peak:.0f} MB")
            grown.append(Row(LONG, "peak", "MB", [peak], setting={"n_samples": float(n_samples)}))
    return [*rows.values(), *grown]


if __name__ == "__main__":
    print(json.dumps(ready()))
