"""Windows of realizations: all of them, or some of a signal that is too long to be held as a whole."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from freqfilter.signals.model import SignalModel, stretches
from freqfilter.signals.randomness import realization, realization_at
from freqfilter.signals.windows import CutWindows, spread

MOST_HELD = 10**6  # samples of a signal that is held as a whole where only some of its windows are wanted
BLOCK_S = 1.0  # of neighbouring windows; a window where that is longer


def realization_windows(model: SignalModel, window_length: int, *noise_seeds: int) -> CutWindows:
    """All windows of the realizations with these noise seeds; without any seed, of the signal without noise."""
    noise = [realization(seed, model.n_samples) for seed in noise_seeds]
    return _cut(model.clean(), noise, model, window_length, block_starts=_block_samples(model, window_length))


def some_windows(model: SignalModel, window_length: int, n_windows: int | None, *noise_seeds: int) -> CutWindows:
    """Windows spread evenly over realizations, each start with all of its selectors.

    Args:
        model: The signal model.
        window_length: Samples of a window.
        n_windows: At most so many, but at least one start of each realization; None: all of them.
        noise_seeds: Of the realizations; none: of the signal without noise.
    """
    if n_windows is not None and model.n_samples > MOST_HELD:
        n_starts = max(1, n_windows // (len(model.components) * max(1, len(noise_seeds))))
        starts = np.linspace(0, model.n_samples - window_length, n_starts).round().astype(np.int64)
        return stretch_windows(model, window_length, starts, *noise_seeds)
    windows = realization_windows(model, window_length, *noise_seeds)
    return windows if n_windows is None or n_windows >= len(windows) else spread(windows, n_windows)


def stretch_windows(model: SignalModel, window_length: int, starts: NDArray[np.int64], *noise_seeds: int) -> CutWindows:
    """The windows at some starts, for each selector. Only the stretches that they are cut from are held, end to end.

    Args:
        model: The signal model.
        window_length: Samples of a window.
        starts: Where in the signal the windows start, (n_starts,).
        noise_seeds: Of the realizations that they are cut from; none: from the signal without noise.
    """
    samples = stretches(starts, window_length)
    noise = [realization_at(seed, samples) for seed in noise_seeds]
    starts_in_block = _block_samples(model, window_length) * len(starts) / model.n_samples
    block_starts = max(1, math.ceil(starts_in_block))
    return _cut(model.clean(samples), noise, model, window_length, block_starts=block_starts, stride=window_length)


def beginning_windows(model: SignalModel, window_length: int, n_samples: int, noise_seed: int) -> CutWindows:
    """All windows of the first ``n_samples`` of a realization, or of all of it where it is shorter."""
    samples = np.arange(min(n_samples, model.n_samples))
    noise = realization(noise_seed, len(samples))
    return _cut(model.clean(samples), [noise], model, window_length, block_starts=_block_samples(model, window_length))


def _block_samples(model: SignalModel, window_length: int) -> int:
    return max(window_length, math.ceil(BLOCK_S * model.sample_rate_hz))


def _cut(
    clean: NDArray[np.float64],
    noises: Sequence[NDArray[np.float64]],
    model: SignalModel,
    window_length: int,
    *,
    block_starts: int,
    stride: int = 1,
) -> CutWindows:
    """Windows of the mixtures that these components and draws of standard normal noise make."""
    mixtures = clean.mean(axis=0)[None]
    if noises:
        mixtures = mixtures + model.noise_std * np.stack(noises)
    return CutWindows(
        torch.from_numpy(mixtures.astype(np.float32)),
        torch.from_numpy(clean.astype(np.float32)),
        window_length,
        block_starts=block_starts,
        stride=stride,
    )
