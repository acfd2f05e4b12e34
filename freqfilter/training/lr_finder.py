"""Learning-rate range test."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from freqfilter.config import TrainingParams
from freqfilter.data.windows import TrainingBatch, WindowDataset
from freqfilter.training.loop import epoch_order, training_step
from freqfilter.training.state import TrainingState

SMOOTHING = 0.9  # weight of the past in the mean that smooths the loss
N_SETTLING_STEPS = 10  # steps until the smoothed loss is a mean over as many as it will ever be
# What falls less has not been learnt but drawn: standard deviations of the smoothed loss, and share of the loss.
MIN_FALL, MIN_SHARE = 6.0, 0.01


@dataclass(frozen=True)
class Point:
    """A step: the rate that it was taken with, and the training loss that it saw."""

    learning_rate: float
    loss: float


def range_test(
    state: TrainingState,
    training_windows: Callable[[int], WindowDataset],
    params: TrainingParams,
    *,
    lowest: float,
    highest: float,
    n_steps: int,
) -> Generator[Point]:
    """Take steps as training would, at rates from ``lowest`` to ``highest``, spaced evenly in their logarithm.

    It ends early where the loss is no longer finite. At its end, or where it is closed before, the state is what it
    was, to the bit.

    Args:
        state: The training as it would begin.
        training_windows: The training windows of an epoch, numbered from 1.
        params: How to train; the learning rate apart.
        lowest: Learning rate of the first step.
        highest: Learning rate of the last one.
        n_steps: How many steps, at least 2.

    Yields:
        A point for each step whose loss was finite.
    """
    before = copy.deepcopy(state.state_dict())
    try:
        source = _batches(state, training_windows, params)
        for step in range(n_steps):
            rate = lowest * (highest / lowest) ** (step / (n_steps - 1))
            state.learning_rate = rate
            with state.randomness():
                loss = float(training_step(state, next(source), params)[0])
            if not math.isfinite(loss):
                return
            yield Point(rate, loss)
    finally:
        state.load_state_dict(before)


def smooth(losses: NDArray[np.float64]) -> NDArray[np.float64]:
    """Exponentially weighted mean of the losses so far, (n_steps,), unbiased from the first one on.

    >>> smooth(np.array([2.0, 2.0, 2.0])).round(12).tolist()
    [2.0, 2.0, 2.0]
    """
    means, mean = [], 0.0
    for step, loss in enumerate(losses, start=1):
        mean = SMOOTHING * mean + (1 - SMOOTHING) * loss
        means.append(mean / (1 - SMOOTHING**step))
    return np.array(means)


def suggest_learning_rate(points: list[Point]) -> float | None:
    """The rate at which the smoothed loss falls most steeply, against the logarithm of the rate.

    Returns:
        A learning rate; None where the loss does not fall.
    """
    raw = np.array([point.loss for point in points])
    losses = smooth(raw)
    settled = min(
        N_SETTLING_STEPS, len(losses) // 2
    )  # a mean over few steps says little, and its ups and downs even less
    lowest = settled + int(losses[settled:].argmin()) if points else 0
    falling = losses[settled : lowest + 1]
    if len(falling) < 2:
        return None
    least = max(MIN_FALL * _spread(raw[: lowest + 1]), MIN_SHARE * abs(float(falling.max())))
    if falling.max() - falling[-1] < least:
        return None
    return points[settled + int(np.diff(falling).argmin())].learning_rate


def _spread(raw: NDArray[np.float64]) -> float:
    """Standard deviation that the smoothed loss has by chance, from how much neighbouring steps differ."""
    of_step = 1.4826 * float(np.median(np.abs(np.diff(raw)))) / math.sqrt(2)
    return of_step * math.sqrt((1 - SMOOTHING) / (1 + SMOOTHING))


def _batches(
    state: TrainingState, training_windows: Callable[[int], WindowDataset], params: TrainingParams
) -> Iterator[TrainingBatch]:
    """The batches of training, epoch after epoch without end."""
    device, epoch = state.accelerator.device, 0
    while True:
        epoch += 1
        windows = training_windows(epoch).to(device)
        order = epoch_order(params.seed, epoch, len(windows)).to(device)
        for positions in torch.split(order, params.batch_size):
            yield windows.training_batch(positions)
