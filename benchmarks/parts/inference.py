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


def answers(uri: str) -> dict[str, Any]:
    """Both ways on the same windows, in turns within one process, and the times of loading."""
    started = time.perf_counter()
    os.environ["MLFLOW_TRACKING_URI"] = uri
    import freqfilter

    found = freqfilter.load("frequency-filter", version=1)
    inputs = np.random.default_rng(1).normal(size=(N_WINDOWS, 50, 5)).astype(np.float32)
    found.predict(inputs[:BATCH])
    first_answer = time.perf_counter() - started
    started = time.perf_counter()
    freqfilter.load("frequency-filter", version=1)
    again = time.perf_counter() - started

    def naive() -> np.ndarray:
        with torch.inference_mode():
            return torch.cat([found.module(batch) for batch in torch.from_numpy(inputs).split(BATCH)]).numpy()

    rates: dict[str, list[float]] = {VERSION: [], NAIVE: []}
    outputs = {}
    for _ in range(4):
        for name, way in ((VERSION, lambda: found.predict(inputs)), (NAIVE, naive)):
            started = time.perf_counter()
            outputs[name] = way()
            rates[name].append(N_WINDOWS / (time.perf_counter() - started))
    state, sample = None, torch.from_numpy(inputs[:1, :1])
    started, n_samples = time.perf_counter(), 2000
    with torch.inference_mode():
        for _ in range(n_samples):
            _, state = found.module.forward_with_state(sample, state)
    one = (time.perf_counter() - started) / n_samples
    difference = float(np.abs(outputs[VERSION] - outputs[NAIVE]).max())
    best = {name: float(np.median(values[1:])) for name, values in rates.items()}
    return {"rates": best, "difference": difference, "one": one, "first_answer": first_answer, "again": again}


def measure() -> list[Row]:
    """A version of a short training, asked by processes of their own."""
    with tempfile.TemporaryDirectory() as name:
        uri = f"sqlite:///{name}/mlflow.db"
        train = [sys.executable, "-m", "freqfilter", "train", "--epochs=1", "--windows_per_epoch=1280"]
        process([*train, "--audit_every=0"], environment={"MLFLOW_TRACKING_URI": uri}, cwd=Path(name))
        ended = in_turns({LOADED: side("parts.inference", uri=uri)}, rounds=ROUNDS, cwd=Path(name))[LOADED]
    found = [each.answer for each in ended]
    rows = [
        Row(way, "windows", "1/s", [each["rates"][way] for each in found], against=NAIVE) for way in (NAIVE, VERSION)
    ]
    return [
        *rows,
        Row(VERSION, "largest difference from the module", "", [each["difference"] for each in found]),
        Row(ONE, "a sample", "µs", [1e6 * each["one"] for each in found]),
        Row(LOADED, "import, load and first answer", "s", [each["first_answer"] for each in found]),
        Row(LOADED, "load again", "s", [each["again"] for each in found]),
    ]


if __name__ == "__main__":
    print(json.dumps(answers(**json.loads(sys.argv[1]))))
