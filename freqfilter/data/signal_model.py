"""The signal model, named random streams, and realizations of its noise."""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray

from freqfilter.config import SignalParams
from freqfilter.data.windows import SlidingWindows, evenly_spaced

DRAW_CHUNK = 2**20  # samples of a realization
MAX_SAMPLES_IN_MEMORY = 10**6  # of a longer signal only the segments of the selected windows are kept
BLOCK_S, BLOCK_WINDOWS = 1.0, 4  # seconds and windows of a block, at least: shorter ones are correlated


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
        phases_deg = params.phases_deg or ()  # given, with phase_distribution=fixed
        parts = zip(params.frequencies_hz, phases_deg, params.amplitudes, strict=True)
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

    def clean_in_float32(self, samples: NDArray[np.int64]) -> NDArray[np.float32]:
        """The components of ``clean``, rounded to float32, computed in chunks to save memory; (n_samples,) indices."""
        components = np.empty((len(self.components), len(samples)), dtype=np.float32)
        for first in range(0, len(samples), DRAW_CHUNK):
            chunk = slice(first, first + DRAW_CHUNK)
            components[:, chunk] = self.clean(samples[chunk])
        return components


def noise_realization(noise_seed: int, samples: NDArray[np.int64]) -> NDArray[np.float64]:
    """Standard normal noise of a realization at these samples, in their shape; the rest is not kept in memory.

    Drawn from NumPy's legacy generator, as in the original script: scaled by the standard deviation, it equals
    ``RandomState(noise_seed).normal(0, noise_std, n_samples)[samples]`` bit for bit.

    >>> bool((0.1 * noise_realization(1, np.array([4, 0])) == np.random.RandomState(1).normal(0, 0.1, 5)[[4, 0]]).all())
    True
    """
    random, end = np.random.RandomState(noise_seed), int(samples.max()) + 1
    noise = np.empty(samples.shape)
    for first in range(0, end, DRAW_CHUNK):
        chunk = random.standard_normal(min(DRAW_CHUNK, end - first))
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


def realization_windows(model: SignalModel, window_length: int, *noise_seeds: int) -> SlidingWindows:
    """All windows of the realizations with these noise seeds; without seeds, of the clean signal."""
    return _cut_windows(model, window_length, np.arange(model.n_samples), *noise_seeds)


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
    """Windows at these starts, (n_starts,), for each selector; only their segments of the signal are kept."""
    samples = (starts[:, None] + np.arange(window_length)).flatten()
    windows = _cut_windows(model, window_length, samples, *noise_seeds)
    starts_in_block = windows.block_starts * len(starts) / model.n_samples
    return replace(windows, block_starts=max(1, math.ceil(starts_in_block)), stride=window_length)


def first_windows(model: SignalModel, window_length: int, n_samples: int, noise_seed: int) -> SlidingWindows:
    """All windows of the first ``n_samples`` samples of a realization, or of all of it if it is shorter."""
    return _cut_windows(model, window_length, np.arange(min(n_samples, model.n_samples)), noise_seed)


def _cut_windows(
    model: SignalModel, window_length: int, samples: NDArray[np.int64], *noise_seeds: int
) -> SlidingWindows:
    """All windows of these samples of each realization."""
    clean = model.clean(samples)
    mixtures = clean.mean(axis=0)[None]
    if noise_seeds:
        noise = np.stack([noise_realization(seed, samples) for seed in noise_seeds])
        mixtures = mixtures + model.noise_std * noise
    block_samples = max(BLOCK_WINDOWS * window_length, math.ceil(BLOCK_S * model.sample_rate_hz))
    signals, components = (torch.from_numpy(values.astype(np.float32)) for values in (mixtures, clean))
    return SlidingWindows(signals, components, window_length, block_starts=block_samples)
