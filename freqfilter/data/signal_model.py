"""The signal model, named random streams, and realizations of its noise."""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray

from freqfilter.config import SignalParams
from freqfilter.data.windows import SlidingWindows, evenly_spaced


@dataclass(frozen=True)
class Component:
    """Sinusoid ``amplitude · sin(2π · frequency_hz · t + phase)``."""

    frequency_hz: float
    phase_deg: float
    amplitude: float

    def at(self, time_s: NDArray[np.float64]) -> NDArray[np.float64]:
        """Value at each time, in the shape of ``time_s`` (seconds).

        >>> Component(1.0, 90.0, 2.0).at(np.array([0.0, 0.5])).round(6).tolist()
        [2.0, -2.0]
        """
        angle = 2 * np.pi * self.frequency_hz * time_s + np.deg2rad(self.phase_deg)
        return np.asarray(self.amplitude * np.sin(angle))


def segment_samples(starts: NDArray[np.int64], n_samples: int) -> NDArray[np.int64]:
    """Sample indices of the segments that begin at ``starts``, concatenated, (n_starts · n_samples,).

    >>> segment_samples(np.array([3, 8]), 2).tolist()
    [3, 4, 8, 9]
    """
    return (starts[:, None] + np.arange(n_samples)).ravel()


@dataclass(frozen=True)
class SignalModel:
    """Signal model: the mixture is the mean of the components plus noise.

    Attributes:
        components: The sinusoids.
        n_samples: Number of samples of a realization.
        duration_s: Time of the last sample, seconds; the first is at 0.
        noise_std: Standard deviation of the white Gaussian noise.
    """

    components: tuple[Component, ...]
    n_samples: int
    duration_s: float
    noise_std: float

    @classmethod
    def from_params(cls, params: SignalParams) -> Self:
        """Create the signal model from its section of the parameters."""
        parts = zip(params.frequencies_hz, params.phases_deg, params.amplitudes, strict=True)
        return cls(tuple(Component(*part) for part in parts), params.n_samples, params.duration_s, params.noise_std)

    @property
    def sample_rate_hz(self) -> float:
        """Samples per second; the last sample is at ``duration_s``, hence the ``- 1``."""
        return (self.n_samples - 1) / self.duration_s

    def clean(self, samples: NDArray[np.int64] | None = None) -> NDArray[np.float64]:
        """Clean components at the given sample indices, (n_components, *samples.shape); None: all samples."""
        samples = np.arange(self.n_samples) if samples is None else samples
        last = self.n_samples - 1
        time_s = np.where(samples == last, self.duration_s, samples * (self.duration_s / last))
        return np.stack([component.at(time_s) for component in self.components])


DRAW_CHUNK = 2**20  # samples of a realization


def noise_realization(noise_seed: int, n_samples: int) -> NDArray[np.float64]:
    """Standard normal noise of the realization ``noise_seed``, (n_samples,).

    Drawn from NumPy's legacy generator, as in the original script: scaled by the standard deviation, it equals
    ``RandomState(noise_seed).normal(0, noise_std, n_samples)`` bit for bit.

    >>> bool((0.1 * noise_realization(1, 5) == np.random.RandomState(1).normal(0, 0.1, 5)).all())
    True
    """
    return np.random.RandomState(noise_seed).standard_normal(n_samples)


def noise_realization_at(noise_seed: int, samples: NDArray[np.int64]) -> NDArray[np.float64]:
    """Noise of a realization at some of its samples, in the shape of ``samples``; the rest is not kept in memory.

    >>> bool((noise_realization_at(1, np.array([4, 0])) == noise_realization(1, 5)[[4, 0]]).all())
    True
    """
    random = np.random.RandomState(noise_seed)
    noise = np.empty(samples.shape)
    for first in range(0, int(samples.max()) + 1, DRAW_CHUNK):
        chunk = random.standard_normal(DRAW_CHUNK)
        in_chunk = (first <= samples) & (samples < first + DRAW_CHUNK)
        noise[in_chunk] = chunk[samples[in_chunk] - first]
    return noise


def random_stream(seed: int, name: str, *indices: int) -> np.random.Generator:
    """Random generator of the stream ``name``, independent of every other name, index and seed.

    Source: NumPy, ``SeedSequence`` with a ``spawn_key``.
    """
    key = (zlib.crc32(name.encode()), *indices)
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=key)))


def torch_seed(seed: int, name: str) -> int:
    """63-bit seed for PyTorch's generators, from the stream ``name``."""
    return int(random_stream(seed, name).integers(2**63))


MAX_SAMPLES_IN_MEMORY = 10**6  # of a longer signal only the segments of the selected windows are kept
BLOCK_S = 1.0  # seconds of a block of neighbouring windows, at least a window


def realization_windows(model: SignalModel, window_length: int, *noise_seeds: int) -> SlidingWindows:
    """All windows of the realizations with these noise seeds; without seeds, of the clean signal."""
    noise = [noise_realization(seed, model.n_samples) for seed in noise_seeds]
    return _cut_windows(model.clean(), noise, model, window_length, block_starts=_block_samples(model, window_length))


def evenly_spaced_windows(
    model: SignalModel, window_length: int, n_windows: int | None, *noise_seeds: int
) -> SlidingWindows:
    """Windows spread evenly over realizations, each start with all of its selectors.

    Args:
        model: The signal model.
        window_length: Samples of a window.
        n_windows: Maximum number of windows, at least one start of each realization; None: all windows.
        noise_seeds: Seeds of the realizations; none: the clean signal.
    """
    if n_windows is not None and model.n_samples > MAX_SAMPLES_IN_MEMORY:
        n_starts = max(1, n_windows // (len(model.components) * max(1, len(noise_seeds))))
        starts = np.linspace(0, model.n_samples - window_length, n_starts).round().astype(np.int64)
        return segment_windows(model, window_length, starts, *noise_seeds)
    windows = realization_windows(model, window_length, *noise_seeds)
    return windows if n_windows is None or n_windows >= len(windows) else evenly_spaced(windows, n_windows)


def segment_windows(
    model: SignalModel, window_length: int, starts: NDArray[np.int64], *noise_seeds: int
) -> SlidingWindows:
    """Windows at the given starts, for each selector. Only their segments of the signal are kept, concatenated.

    Args:
        model: The signal model.
        window_length: Samples of a window.
        starts: Index in the signal of each window's first sample, (n_starts,).
        noise_seeds: Seeds of the realizations; none: the clean signal.
    """
    samples = segment_samples(starts, window_length)
    noise = [noise_realization_at(seed, samples) for seed in noise_seeds]
    starts_in_block = _block_samples(model, window_length) * len(starts) / model.n_samples
    block_starts = max(1, math.ceil(starts_in_block))
    return _cut_windows(
        model.clean(samples), noise, model, window_length, block_starts=block_starts, stride=window_length
    )


def first_windows(model: SignalModel, window_length: int, n_samples: int, noise_seed: int) -> SlidingWindows:
    """All windows of the first ``n_samples`` samples of a realization, or of all of it if it is shorter."""
    samples = np.arange(min(n_samples, model.n_samples))
    noise = noise_realization(noise_seed, len(samples))
    return _cut_windows(
        model.clean(samples), [noise], model, window_length, block_starts=_block_samples(model, window_length)
    )


def _block_samples(model: SignalModel, window_length: int) -> int:
    return max(window_length, math.ceil(BLOCK_S * model.sample_rate_hz))


def _cut_windows(
    clean: NDArray[np.float64],
    noises: Sequence[NDArray[np.float64]],
    model: SignalModel,
    window_length: int,
    *,
    block_starts: int,
    stride: int = 1,
) -> SlidingWindows:
    """Windows of the mixtures of clean components and standard normal noise."""
    mixtures = clean.mean(axis=0)[None]
    if noises:
        mixtures = mixtures + model.noise_std * np.stack(noises)
    return SlidingWindows(
        torch.from_numpy(mixtures.astype(np.float32)),
        torch.from_numpy(clean.astype(np.float32)),
        window_length,
        block_starts=block_starts,
        stride=stride,
    )
