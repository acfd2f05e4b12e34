"""How training step, inference and memory grow with window length, hidden size, batch and threads."""

from __future__ import annotations

import json
import resource
import sys
import time

import torch

from benchmarks.measure import Row, in_turns, side
from benchmarks.parts.epoch import begin
from freqfilter.config import resolve
from freqfilter.models.network import estimate
from freqfilter.training.loop import training_step

ROUNDS, STEPS, WARM = 3, 8, 2
ASKED = 2048  # windows
FIGURES = {"training step": "ms", "inference": "1/s", "peak memory": "MB"}
GROWING = {
    "window_length": (25, 50, 100, 200, 400),
    "hidden_size": (32, 64, 128, 256, 512),
    "batch_size": (16, 32, 64, 128, 256, 512),
    "threads": (1, 2),
}


def costs(name: str, value: int) -> dict[str, float]:
    """What the default recipe costs with one value changed, in the units of ``FIGURES``."""
    params = resolve({name: str(value), "device": "cpu", "windows_per_epoch": str((WARM + STEPS) * 512)})
    state, splits = begin(params)
    windows, n_windows = splits.epoch(1), params.training.batch_size
    for step in range(WARM + STEPS):
        if step == WARM:
            started = time.perf_counter()
        training_step(state, windows.training_batch(torch.arange(n_windows) + step * n_windows), params.training)
    step_ms = 1e3 * (time.perf_counter() - started) / STEPS
    inputs, _ = windows.batch(torch.arange(ASKED))
    module, batch = state.network.eval(), {"batch_size": value} if name == "batch_size" else {}
    estimate(module, inputs, **batch)
    started = time.perf_counter()
    estimate(module, inputs, **batch)
    rate = ASKED / (time.perf_counter() - started)
    return dict(zip(FIGURES, (step_ms, rate, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024), strict=True))


def measure() -> list[Row]:
    """Each value in a process of its own, in turns."""
    most_threads = torch.get_num_threads()
    cases = {
        f"{name}={value}": {"name": name, "value": value}
        for name, values in GROWING.items()
        for value in values
        if name != "threads" or value <= most_threads
    }
    ended = in_turns({case: side("parts.growth", **cases[case]) for case in cases}, rounds=ROUNDS)
    return [
        Row(
            f"by {cases[case]['name']}",
            figure,
            unit,
            [each.answer[figure] for each in ended[case]],
            setting={str(cases[case]["name"]): float(cases[case]["value"])},
        )
        for figure, unit in FIGURES.items()
        for case in cases
    ]


if __name__ == "__main__":
    print(json.dumps(costs(**json.loads(sys.argv[1]))))
