"""How long an epoch should take on this processor, from a fraction of a second of measuring."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from freqfilter.filters.network import FrequencyFilterLSTM
from freqfilter.filters.optimizers import optimizers
from freqfilter.params import ModelParams, TrainingParams
from freqfilter.signals.windows import WindowSet

GATES = {"lstm": 4, "gru": 3}  # matrices of a cell, stacked into one
MEASURED_S = 0.05
LARGEST_BATCH = 256  # windows; time grows in proportion beyond
BACKWARD = 2  # the backward pass multiplies twice as much as the forward pass
# A training step of PyTorch's own cells took 0.8 to 2.3 times the bare arithmetic of its time steps, over hidden
# sizes 8 to 256 and batches 1 to 256 (AMD EPYC, Zen 4, one thread).
OVERHEAD = 2.0
STEP_S = 0.003  # of a step, whatever its size: clipping, sums


def expected_epoch_seconds(
    model: ModelParams,
    training: TrainingParams,
    *,
    dtype: torch.dtype,
    train: WindowSet,
    n_training: int,
    n_validation: int,
) -> float:
    """Wall time of an epoch on one processor core that nobody else uses, roughly.

    The arithmetic of one time step, a batch's making and a step of the optimizer are timed, best of some, so that also
    a busy processor shows what it can do; the rest is multiplication.

    Args:
        model: The network's architecture.
        training: ``batch_size`` and ``optimizer``.
        dtype: What training computes in; validation is in float32.
        train: The windows that training takes from.
        n_training: Training windows of an epoch.
        n_validation: Windows of a validation, which has no backward pass.
    """
    batch = min(training.batch_size, LARGEST_BATCH)
    cells = train.n_samples * model.num_layers * (2 if model.bidirectional else 1)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        of_training, of_validation = (_time_step_seconds(model, batch, kind) for kind in (dtype, torch.float32))
        of_step = _optimizer_seconds(model, training, dtype) + _lesson_seconds(train, training) + STEP_S
    finally:
        torch.set_num_threads(threads)
    arithmetic = (1 + BACKWARD) * of_training * n_training + of_validation * n_validation
    return OVERHEAD * cells * arithmetic / batch + of_step * n_training / training.batch_size


def _time_step_seconds(model: ModelParams, batch: int, dtype: torch.dtype) -> float:
    """The fastest time step of a cell."""
    hidden = model.hidden_size
    inputs = torch.zeros(batch, GATES[model.cell] * hidden, dtype=dtype)
    weight, state = (
        torch.zeros(hidden, GATES[model.cell] * hidden, dtype=dtype),
        torch.zeros(batch, hidden, dtype=dtype),
    )

    def time_step() -> None:
        gates = torch.addmm(inputs, state, weight)
        torch.sigmoid(gates[:, :hidden]).mul_(torch.tanh(state))

    return _fastest(time_step)


def _lesson_seconds(train: WindowSet, training: TrainingParams) -> float:
    """The fastest batch's making."""
    n_windows = min(training.batch_size, LARGEST_BATCH, len(train))
    with torch.random.fork_rng(devices=[]):
        return _fastest(lambda: train.lesson(torch.arange(n_windows))) * training.batch_size / n_windows


def _optimizer_seconds(model: ModelParams, training: TrainingParams, dtype: torch.dtype) -> float:
    """The fastest step of the optimizers, which take nothing from a gradient of zero."""
    with torch.random.fork_rng(devices=[]):
        network = FrequencyFilterLSTM(n_components=1, **model.model_dump())
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    every = optimizers(network, training, dtype=dtype)

    def step() -> None:
        for optimizer in every:
            optimizer.step()

    return _fastest(step)


def _fastest(work: Callable[[], object]) -> float:
    """Wall time of the fastest of the times that fit into a short while, and of at least one."""
    fastest, ends = float("inf"), time.perf_counter() + MEASURED_S
    while time.perf_counter() < ends or fastest == float("inf"):
        started = time.perf_counter()
        work()
        fastest = min(fastest, time.perf_counter() - started)
    return fastest
