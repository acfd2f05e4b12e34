"""Processor time of the commands that compute nothing, beside a script of MLflow's own client on the same store."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from benchmarks.measure import Row, in_turns, process

ROUNDS = 7
CLIENT = "MlflowClient"
SCRIPT = "from mlflow import MlflowClient; MlflowClient().search_runs(['0'], max_results=1)"
TRAINING = ("train", "--epochs=1", "--windows_per_epoch=128", "--holdout_every=0", "--validation_windows=400")
COMMANDS = ("history", "doctor", "sync", "init_store")


def measure() -> list[Row]:
    """Each command in turns, on a store with one registered version."""
    program = [sys.executable, "-m", "freqfilter"]
    with tempfile.TemporaryDirectory() as name:
        environment = {"MLFLOW_TRACKING_URI": f"sqlite:///{name}/mlflow.db", "OMP_NUM_THREADS": "1"}
        process([*program, *TRAINING], environment=environment, cwd=Path(name))
        sides = {CLIENT: [sys.executable, "-c", SCRIPT]} | {command: [*program, command] for command in COMMANDS}
        ended = in_turns(sides, rounds=ROUNDS, environment=environment, cwd=Path(name))
    return [
        Row(side, "processor time", "s", [each.processor_seconds for each in ended[side]], against=CLIENT)
        for side in sides
    ]
