"""Recordings of a random signal model: sinusoids with random phases, and amplitudes that may be random and drift."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.signal import lfilter
from torch import Tensor

from freqfilter.config import SignalParams
from freqfilter.data.signal_model import random_stream
from freqfilter.data.windows import Dataset, TrainingBatch

Array = NDArray[np.float64]


@dataclass(frozen=True)
class RecordingModel:
    """Distribution of recordings: the mixture is the mean of the components plus white Gaussian noise.

    Component k is the imaginary part of a phasor that turns by ``2π frequencies_hz[k] / sample_rate_hz`` from sample to
    sample. At a recording's start its phase is uniform. Its amplitude is either ``amplitudes[k]``, or, with Gaussian
    quadratures, Rayleigh distributed with the mean square ``amplitudes[k]²``. The power of a component is then
    ``amplitudes[k]² / 2`` in both cases. With ``memory_s`` the component is a stochastic cycle: the phasor is damped by
    ``exp(-1 / (sample_rate_hz · memory_s[k]))`` at each sample and driven by noise that keeps its power constant.

    Source: A. C. Harvey, "Forecasting, Structural Time Series Models and the Kalman Filter", 1989, section 2.3.

    Attributes:
        frequencies_hz: Frequency of each component.
        amplitudes: Amplitude of each component; with Rayleigh amplitudes its root mean square.
        rayleigh: Whether amplitudes are Rayleigh distributed.
        memory_s: Memory of each component, seconds, with Rayleigh amplitudes; None: amplitudes and phases are constant.
        sample_rate_hz: Samples per second.
        noise_std: Standard deviation of the noise.
    """

    frequencies_hz: tuple[float, ...]
    amplitudes: tuple[float, ...]
    rayleigh: bool
    memory_s: tuple[float, ...] | None
    sample_rate_hz: float
    noise_std: float

    @classmethod
    def from_params(cls, params: SignalParams) -> Self:
        """Create the model from its section of the parameters, with ``phase_distribution=uniform``."""
        return cls(
            params.frequencies_hz,
            params.amplitudes,
            params.gaussian,
            params.memory_s,
            params.sample_rate_hz,
            params.noise_std,
        )

    @property
    def n_components(self) -> int:
        """Number of components."""
        return len(self.frequencies_hz)

    @property
    def rotation(self) -> NDArray[np.complex128]:
        """Factor of each phasor from a sample to the next, (n_components,)."""
        turn = 2j * np.pi * np.array(self.frequencies_hz) / self.sample_rate_hz
        damping = 0.0 if self.memory_s is None else 1 / (self.sample_rate_hz * np.array(self.memory_s))
        return np.asarray(np.exp(turn - damping))

    @property
    def power(self) -> Array:
        """Mean square of each component, (n_components,)."""
        return np.square(self.amplitudes) / 2

    def draw(self, random: np.random.Generator, n_recordings: int, n_samples: int) -> tuple[Array, Array]:
        """Draw independent recordings.

        Returns:
            Mixtures (n_recordings, n_samples) and clean components (n_recordings, n_samples, n_components).
        """
        shape = n_recordings, len(self.frequencies_hz)
        if self.rayleigh:
            phasor = np.sqrt(self.power) * _complex_normal(random, shape)
        else:
            phasor = self.amplitudes * np.exp(2j * np.pi * random.random(shape))
        phasors = phasor[:, None] * self.rotation ** np.arange(n_samples)[:, None]
        if self.memory_s is not None and n_samples > 1:
            driven = _complex_normal(random, (n_recordings, n_samples - 1, shape[1]))
            driven *= np.sqrt(self.power * (1 - np.abs(self.rotation) ** 2))
            for component, factor in enumerate(self.rotation):
                phasors[:, 1:, component] += lfilter([1], [1, -factor], driven[..., component], axis=1)
        components = np.ascontiguousarray(phasors.imag)
        noise = self.noise_std * random.standard_normal((n_recordings, n_samples))
        return components.mean(axis=2) + noise, components


def _complex_normal(random: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.complex128]:
    """Complex values whose real and imaginary parts are independent standard normal."""
    return random.standard_normal((*shape, 2)).view(np.complex128)[..., 0]


@dataclass(frozen=True)
class Recordings(Dataset):
    """Dataset of recordings; each is a window with all of its components as target.

    Attributes:
        mixtures: (n_recordings, n_samples).
        components: The clean components, (n_recordings, n_samples, n_components).
        means: Targets of training, in the shape of ``components``; None: the components.
        chunk_length: Samples of a training step.
    """

    items: ClassVar[str] = "recordings"
    mixtures: Tensor
    components: Tensor
    means: Tensor | None = None
    chunk_length: int = 1

    def __len__(self) -> int:
        return len(self.mixtures)

    def _sizes(self) -> tuple[int, int]:
        return self.mixtures.shape[1], self.components.shape[2]

    def block_ids(self, positions: Tensor) -> Tensor:
        """Each recording is independent of the others, hence a block, (n_recordings,)."""
        return positions

    def tensors(self) -> tuple[Tensor, Tensor]:
        """Mixtures and clean components."""
        return self.mixtures, self.components

    def batch(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Mixtures (n_recordings, n_samples) and clean components (n_recordings, n_samples, n_components)."""
        return self.mixtures[positions], self.components[positions]

    def subset(self, positions: Tensor) -> Self:
        """Dataset of the recordings at ``positions``, which may repeat; a copy."""
        means = None if self.means is None else self.means[positions]
        return replace(self, mixtures=self.mixtures[positions], components=self.components[positions], means=means)

    def n_steps(self, batch_size: int) -> int:
        """Number of training steps of an epoch: the chunks of all batches of recordings."""
        return super().n_steps(batch_size) * self._n_chunks

    @property
    def _n_chunks(self) -> int:
        return math.ceil(self.n_samples / self.chunk_length)

    def step(self, order: Tensor, number: int, batch_size: int) -> TrainingBatch:
        """A chunk of a batch of recordings; the chunks of a recording are in consecutive steps."""
        batch, chunk = divmod(number, self._n_chunks)
        rows = order[batch * batch_size : (batch + 1) * batch_size]
        samples = slice(chunk * self.chunk_length, (chunk + 1) * self.chunk_length)
        clean = self.components[rows, samples]
        targets = clean if self.means is None else self.means[rows, samples]
        scale = None if self.loss_scale is None else self.loss_scale[samples]
        return TrainingBatch(self.mixtures[rows, samples], targets, clean, scale, continues=chunk > 0)

    def _digested(self) -> tuple[Tensor | None, ...]:
        return self.mixtures, self.components


def seeded_recordings(model: RecordingModel, seed: int, n_recordings: int, n_samples: int) -> Recordings:
    """Recordings for an evaluation, each from a random stream of its own: the first ones do not depend on their number.

    Args:
        model: The distribution of recordings.
        seed: Seed of the streams.
        n_recordings: Number of recordings.
        n_samples: Length of a recording.
    """
    drawn = [model.draw(random_stream(seed, "recording", number), 1, n_samples) for number in range(n_recordings)]
    mixtures, components = (torch.from_numpy(np.concatenate(parts)).float() for parts in zip(*drawn, strict=True))
    return Recordings(mixtures, components)
