"""The signal model: a sum of known sinusoids in Gaussian noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from freqfilter.params import SignalParams


@dataclass(frozen=True)
class Component:
    """One sinusoid, ``amplitude · sin(2π · frequency_hz · t + phase)``."""

    frequency_hz: float
    phase_deg: float
    amplitude: float

    def at(self, time_s: NDArray[np.float64]) -> NDArray[np.float64]:
        """Its value at each time, in the shape of ``time_s`` (seconds).

        >>> Component(1.0, 90.0, 2.0).at(np.array([0.0, 0.5])).round(6).tolist()
        [2.0, -2.0]
        """
        angle = 2 * np.pi * self.frequency_hz * time_s + np.deg2rad(self.phase_deg)
        return np.asarray(self.amplitude * np.sin(angle))


def stretches(starts: NDArray[np.int64], n_samples: int) -> NDArray[np.int64]:
    """The samples of the stretches at ``starts``, one after another, (n_starts · n_samples,).

    >>> stretches(np.array([3, 8]), 2).tolist()
    [3, 4, 8, 9]
    """
    return (starts[:, None] + np.arange(n_samples)).ravel()


@dataclass(frozen=True)
class SignalModel:
    """Components whose mean, with noise added, is the mixture.

    Attributes:
        components: The sinusoids.
        n_samples: Samples of a realization.
        duration_s: Time of the last sample, seconds; the first stands at 0.
        noise_std: Standard deviation of the white Gaussian noise.
    """

    components: tuple[Component, ...]
    n_samples: int
    duration_s: float
    noise_std: float

    @classmethod
    def from_params(cls, params: SignalParams) -> Self:
        """The signal model that a section of parameters states."""
        parts = zip(params.frequencies_hz, params.phases_deg, params.amplitudes, strict=True)
        return cls(tuple(Component(*part) for part in parts), params.n_samples, params.duration_s, params.noise_std)

    @property
    def sample_rate_hz(self) -> float:
        """Samples per second; the last sample stands at ``duration_s``, hence the ``- 1``."""
        return (self.n_samples - 1) / self.duration_s

    def clean(self, samples: NDArray[np.int64] | None = None) -> NDArray[np.float64]:
        """The components without noise at samples of the signal, (n_components, *samples.shape); None: all of them."""
        samples = np.arange(self.n_samples) if samples is None else samples
        last = self.n_samples - 1
        time_s = np.where(samples == last, self.duration_s, samples * (self.duration_s / last))
        return np.stack([component.at(time_s) for component in self.components])
