"""How long a person waits: for the help, and from `mlflow run` to the first training step."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.measure import ROOT, Row, in_turns, say

ROUNDS = 5
HELP = {"freqfilter --help": [sys.executable, "-m", "freqfilter", "--help"]}
HELP |= {"bare Python": [sys.executable, "-c", "pass"]}
MLFLOW_RUN = "mlflow run"
DIRECT = "python -m freqfilter train"
SHORT = {"epochs": "1", "windows_per_epoch": "128", "holdout_every": "0", "register": "false"}
# What a run says when it has come so far; the last one just before the first step.
STAGES = {"run ": "to the open run", "limit: ": "to the first step"}


def command(name: str) -> list[str]:
    """A short training, typed one way or the other."""
    if name == DIRECT:
        return [sys.executable, "-m", "freqfilter", "train", *(f"--{key}={value}" for key, value in SHORT.items())]
    given = [word for key, value in SHORT.items() for word in ("-P", f"{key}={value}")]
    return [sys.executable, "-m", "mlflow", "run", str(ROOT), "--env-manager", "local", *given]


def stages(name: str, folder: Path) -> dict[str, float]:
    """Seconds until the run has said what marks a stage."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    environment |= {"MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db"}
    environment |= {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}  # the project's python
    started, reached = time.perf_counter(), {}
    with subprocess.Popen(
        command(name), cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as running:
        assert running.stdout is not None
        for line in running.stdout:
            for mark, stage in STAGES.items():
                if line.startswith(mark):
                    reached.setdefault(stage, time.perf_counter() - started)
    return reached


def measure() -> list[Row]:
    """Each in turns; the store is there and the limit is cached, as from the second run on."""
    ended = in_turns(HELP, rounds=ROUNDS)
    rows = [Row(name, "whole process", "s", [each.seconds for each in ended[name]]) for name in HELP]
    reached: dict[str, list[dict[str, float]]] = {DIRECT: [], MLFLOW_RUN: []}
    with tempfile.TemporaryDirectory() as name:
        for turn in range(ROUNDS + 1):
            for way, found in reached.items():
                found.append(stages(way, Path(name)))
                say(f"  round {turn} of {ROUNDS}: {way}, {found[-1]}")
    for way, found in reached.items():
        for stage in STAGES.values():
            rows.append(Row(way, stage, "s", [each[stage] for each in found[1:]]))
    return rows
