"""How fast a registered version answers, in batches and sample by sample, and how fast it is there."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.measure import Row, in_turns, process, side

ROUNDS = 5
N_WINDOWS, BATCH = 20_000, 64
VERSION, NAIVE = "registered version, predict", f"the module on batches of {BATCH}"
ONE, LOADED = "one sample at a time, its state carried", "a registered version"


def answers(uri: str, way: str) -> dict[str, Any]:
    """One way of asking, and what beside it a process can tell of a version."""
    started = time.perf_counter()
    os.environ["MLFLOW_TRACKING_URI"] = uri
    import freqfilter

    found = freqfilter.load("frequency-filter", version=1)
    inputs = np.random.default_rng(1).normal(size=(N_WINDOWS, 50, 5)).astype(np.float32)
    inputs[..., 1:] = np.eye(4)[np.arange(N_WINDOWS) % 4, None]
    found.predict(inputs[:BATCH])
    first_answer = time.perf_counter() - started

    def naive() -> np.ndarray:
        with torch.inference_mode():
            return torch.cat([found.module(batch) for batch in torch.from_numpy(inputs).split(BATCH)]).numpy()

    ask = naive if way == NAIVE else lambda: found.predict(inputs)
    rates = []
    for _ in range(4):
        started = time.perf_counter()
        ask()
        rates.append(N_WINDOWS / (time.perf_counter() - started))
    difference = float(np.abs(found.predict(inputs) - naive()).max())
    started = time.perf_counter()
    freqfilter.load("frequency-filter", version=1)
    again = time.perf_counter() - started
    state, sample = None, torch.from_numpy(inputs[:1, :1])
    started, n_samples = time.perf_counter(), 2000
    with torch.inference_mode():
        for _ in range(n_samples):
            _, state = found.module.forward_with_state(sample, state)
    one = (time.perf_counter() - started) / n_samples
    return {
        "rate": float(np.median(rates[1:])),
        "difference": difference,
        "one": one,
        "first_answer": first_answer,
        "again": again,
    }


def measure() -> list[Row]:
    """A version of a short training, asked by processes of their own."""
    with tempfile.TemporaryDirectory() as name:
        uri = f"sqlite:///{name}/mlflow.db"
        train = [sys.executable, "-m", "freqfilter", "train", "--epochs=1", "--windows_per_epoch=1280"]
        process([*train, "--holdout_every=0"], environment={"MLFLOW_TRACKING_URI": uri}, cwd=Path(name))
        sides = {way: side("parts.inference", uri=uri, way=way) for way in (NAIVE, VERSION)}
        ended = in_turns(sides, rounds=ROUNDS, cwd=Path(name))
    found = [each.answer for each in ended[VERSION]]
    rows = [Row(way, "windows", "1/s", [each.answer["rate"] for each in ended[way]], against=NAIVE) for way in sides]
    return [
        *rows,
        Row(VERSION, "largest difference from the module", "", [each["difference"] for each in found]),
        Row(ONE, "a sample", "µs", [1e6 * each["one"] for each in found]),
        Row(LOADED, "import, load and first answer", "s", [each["first_answer"] for each in found]),
        Row(LOADED, "load again", "s", [each["again"] for each in found]),
    ]


if __name__ == "__main__":
    print(json.dumps(answers(**json.loads(sys.argv[1]))))
