"""Learning-rate range test."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Generator, Iterator
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from freqfilter.config import TrainingParams
from freqfilter.data.windows import Dataset, TrainingBatch
from freqfilter.training.loop import epoch_order, training_step
from freqfilter.training.state import TrainingState

SMOOTHING = 0.9  # weight of the previous mean in the exponentially smoothed loss
N_SETTLING_STEPS = 10  # steps until the smoothed loss is a mean over about 1 / (1 - SMOOTHING) steps
# Smallest significant fall of the smoothed loss: in its standard deviations, and as a share of the loss.
MIN_FALL, MIN_SHARE = 6.0, 0.01


class Point(NamedTuple):
    """Learning rate and training loss of a step."""

    learning_rate: float
    loss: float


def range_test(
    state: TrainingState,
    training_windows: Callable[[int], Dataset],
    params: TrainingParams,
    *,
    lowest: float,
    highest: float,
    n_steps: int,
) -> Generator[Point]:
    """Take training steps at learning rates from ``lowest`` to ``highest``, spaced evenly on a logarithmic scale.

    The test ends early if the loss is not finite. When it ends or is closed, the state is restored bit for bit.
    ``training_windows`` and ``params`` are those of ``freqfilter.training.loop.train``; ``n_steps`` is at least 2.

    Yields:
        A point for each step whose loss was finite.
    """
    before = copy.deepcopy(state.state_dict())
    try:
        batches = _batches(state, training_windows, params)
        for step in range(n_steps):
            state.learning_rate = rate = lowest * (highest / lowest) ** (step / (n_steps - 1))
            with state.randomness():
                loss = float(training_step(state, next(batches), params)[0])
            if not math.isfinite(loss):
                return
            yield Point(rate, loss)
    finally:
        state.load_state_dict(before)


def smooth(losses: NDArray[np.float64]) -> NDArray[np.float64]:
    """Exponentially weighted mean of the losses so far, (n_steps,), bias-corrected.

    >>> smooth(np.array([2.0, 2.0, 2.0])).round(12).tolist()
    [2.0, 2.0, 2.0]
    """
    return pd.Series(losses).ewm(alpha=1 - SMOOTHING).mean().to_numpy()


def suggest_learning_rate(points: list[Point]) -> float | None:
    """Learning rate at which the smoothed loss falls most steeply on a logarithmic scale; None if it does not fall."""
    raw = np.array([point.loss for point in points])
    losses = smooth(raw)
    settled = min(N_SETTLING_STEPS, len(losses) // 2)  # a mean over fewer steps is noisy
    lowest = settled + int(losses[settled:].argmin()) if points else 0
    falling = losses[settled : lowest + 1]
    if len(falling) < 2:
        return None
    least = max(MIN_FALL * _spread(raw[: lowest + 1]), MIN_SHARE * abs(float(falling.max())))
    if falling.max() - falling[-1] < least:
        return None
    return points[settled + int(np.diff(falling).argmin())].learning_rate


def _spread(raw: NDArray[np.float64]) -> float:
    """Standard deviation of the smoothed loss by chance, from differences of neighbouring steps."""
    step_std = 1.4826 * float(np.median(np.abs(np.diff(raw)))) / math.sqrt(2)
    return step_std * math.sqrt((1 - SMOOTHING) / (1 + SMOOTHING))


def _batches(
    state: TrainingState, training_windows: Callable[[int], Dataset], params: TrainingParams
) -> Iterator[TrainingBatch]:
    """Yield the batches of training, epoch after epoch without end."""
    device = state.accelerator.device
    for epoch in itertools.count(1):
        windows = training_windows(epoch).to(device)
        order = epoch_order(params.seed, epoch, len(windows)).to(device)
        for number in range(windows.n_steps(params.batch_size)):
            yield windows.step(order, number, params.batch_size)
