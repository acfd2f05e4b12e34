"""How long an epoch should take on this processor, from a fraction of a second of measuring."""

from __future__ import annotations

import time

import torch

from freqfilter.params import ModelParams

GATES = {"lstm": 4, "gru": 3}  # matrices of a cell, stacked into one
MEASURED_S = 0.05
LARGEST_BATCH = 256  # windows; time grows in proportion beyond
BACKWARD = 2  # the backward pass multiplies twice as much as the forward pass
# A training step of PyTorch's own cells took 0.8 to 2.3 times the bare arithmetic of its time steps, over hidden
# sizes 8 to 256 and batches 1 to 256 (AMD EPYC, Zen 4, one thread).
OVERHEAD = 2.0
STEP_S = 0.003  # of a step, whatever its size: the optimizer, clipping, assembling the batch


def expected_epoch_seconds(
    model: ModelParams, *, window_length: int, batch_size: int, n_training: int, n_validation: int
) -> float:
    """Wall time of an epoch on one processor core that nobody else uses, roughly.

    The arithmetic of one time step is timed, best of many, so that also a busy processor shows what it can do; the
    rest is multiplication.

    Args:
        model: The network's architecture.
        window_length: Samples of a window.
        batch_size: Windows of a step.
        n_training: Training windows of an epoch.
        n_validation: Windows of a validation, which has no backward pass.
    """
    batch = min(batch_size, LARGEST_BATCH)
    cells = window_length * model.num_layers * (2 if model.bidirectional else 1)
    of_window = OVERHEAD * cells * _time_step_seconds(model, batch) / batch
    return of_window * ((1 + BACKWARD) * n_training + n_validation) + STEP_S * n_training / batch_size


def _time_step_seconds(model: ModelParams, batch: int) -> float:
    """The fastest time step of a cell among those of a short while, on one thread."""
    hidden = model.hidden_size
    inputs = torch.zeros(batch, GATES[model.cell] * hidden)
    weight, state = torch.zeros(hidden, GATES[model.cell] * hidden), torch.zeros(batch, hidden)
    threads, fastest = torch.get_num_threads(), float("inf")
    torch.set_num_threads(1)
    try:
        ends = time.perf_counter() + MEASURED_S
        while time.perf_counter() < ends or fastest == float("inf"):
            started = time.perf_counter()
            gates = torch.addmm(inputs, state, weight)
            torch.sigmoid(gates[:, :hidden]).mul_(torch.tanh(state))
            fastest = min(fastest, time.perf_counter() - started)
    finally:
        torch.set_num_threads(threads)
    return fastest
