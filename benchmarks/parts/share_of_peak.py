"""What a training step achieves of the machine's matrix multiplication, and where the rest goes."""

from __future__ import annotations

import json
import statistics
import sys
import time
from typing import Any

import torch

from benchmarks.arithmetic import training_flop
from benchmarks.measure import Row, in_turns, say, side
from benchmarks.parts.epoch import begin
from freqfilter.config import resolve
from freqfilter.training.optim import LOSSES

MATRIX = 2048  # rows and columns
ROUNDS, STEPS, WARM = 5, 20, 3
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
BATCHES = (64, 128, 256)
PIECES = ("batch", "forward", "backward", "clipping", "optimizer")


def multiplication(precision: str) -> float:
    """GFLOP/s of multiplying two square matrices, the best of some."""
    a = torch.randn(MATRIX, MATRIX, dtype=DTYPES[precision])
    b, out = torch.randn_like(a), torch.empty_like(a)
    times = []
    for _ in range(8):
        started = time.perf_counter()
        torch.mm(a, b, out=out)
        times.append(time.perf_counter() - started)
    return 2 * MATRIX**3 / min(times) / 1e9


def step_seconds(precision: str, batch_size: int) -> dict[str, float]:
    """Seconds of the pieces of a training step of the default recipe, each the median of some steps."""
    params = resolve({"precision": precision, "batch_size": str(batch_size), "device": "cpu"})
    state, splits = begin(params)
    windows, network = splits.epoch(1), state.network.train()
    seconds: dict[str, list[float]] = {piece: [] for piece in PIECES}
    for step in range(WARM + STEPS):
        times = [time.perf_counter()]
        inputs, _, aims = windows.training_batch(torch.arange(batch_size) + step * batch_size)
        times.append(time.perf_counter())
        with state.accelerator.autocast():
            estimates = network(inputs)
        loss = LOSSES[params.training.loss](estimates.float(), aims).mean()
        times.append(time.perf_counter())
        for optimizer in state.optimizers:
            optimizer.zero_grad()
        torch.autograd.backward(loss)
        times.append(time.perf_counter())
        torch.nn.utils.clip_grad_norm_(network.parameters(), params.training.gradient_clip_norm)
        times.append(time.perf_counter())
        for optimizer in state.optimizers:
            optimizer.step()
        times.append(time.perf_counter())
        if step >= WARM:
            for piece, start, end in zip(PIECES, times, times[1:], strict=False):
                seconds[piece].append(end - start)
    return {piece: statistics.median(values) for piece, values in seconds.items()}


def answer(precision: str, batch_size: int) -> dict[str, Any]:
    """Peak before and after, pieces, and GFLOP/s of the network's passes and of the whole step."""
    params = resolve({"precision": precision, "device": "cpu"})
    state, _ = begin(params)
    before = multiplication(precision)
    pieces = step_seconds(precision, batch_size)
    peak = max(before, multiplication(precision))
    work = training_flop(state.network, window_length=params.data.window_length) * batch_size / 1e9
    passes = pieces["forward"] + pieces["backward"]
    return {"peak": peak, "passes": work / passes, "step": work / sum(pieces.values()), "pieces": pieces}


def measure() -> list[Row]:
    """Each precision and batch size, in turns."""
    cases = {f"{p}, batch {b}": {"precision": p, "batch_size": b} for p in DTYPES for b in BATCHES}
    ended = in_turns({name: side("parts.share_of_peak", **case) for name, case in cases.items()}, rounds=ROUNDS)
    rows = []
    for name in cases:
        answers = [each.answer for each in ended[name]]
        peak = f"multiplication of {MATRIX} × {MATRIX}"
        for figure, key in ((peak, "peak"), ("forward and backward", "passes"), ("whole step", "step")):
            rows.append(Row(name, figure, "GFLOP/s", [each[key] for each in answers]))
        rows.append(Row(name, "whole step, of the peak", "", [each["step"] / each["peak"] for each in answers]))
        for piece in PIECES:
            rows.append(Row(name, piece, "ms", [1e3 * each["pieces"][piece] for each in answers]))
        say(f"  {name}: {rows[-len(PIECES) - 1].median:.0%} of the peak")
    return rows


if __name__ == "__main__":
    print(json.dumps(answer(**json.loads(sys.argv[1]))))
