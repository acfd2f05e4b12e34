"""Kalman filter and fixed-interval smoother of a random signal model, and their exact expected errors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import block_diag
from torch import Tensor

from freqfilter.data.recordings import RecordingModel

SEGMENT = 128  # samples whose covariances are in memory together while smoothing
MIN_NOISE_VARIANCE = 1e-12  # used for zero noise, where innovations would have no variance
MAX_CHANGE = 1e-14  # of the covariance, relative to the power: from then on it counts as stationary

Array = NDArray[np.float64]


class Step(NamedTuple):
    """Covariance recursion at a sample.

    Attributes:
        covariance: Of the state given the samples so far, (n_states, n_states).
        gain: Kalman gain, (n_states,).
        innovation_variance: Variance of the sample given those before it.
    """

    covariance: Array
    gain: Array
    innovation_variance: float


class Estimates(NamedTuple):
    """Estimates of the components, (n_recordings, n_samples, n_components), and their expected squared errors.

    Attributes:
        means: Estimates.
        variances: Expected squared error of each sample and component, (n_samples, n_components).
    """

    means: Array
    variances: Array


class KalmanFilter:
    """Best linear estimator of the components of a recording.

    The state has two quadratures for each component, the component itself first. With Rayleigh amplitudes, hence
    Gaussian quadratures, the estimates are the conditional means: no filter has a smaller expected error. With fixed
    amplitudes they are the best linear ones, since the state has the same first and second moments.

    Source: B. D. O. Anderson, J. B. Moore, "Optimal Filtering", 1979, chapter 3; for the smoother, in a form that
    inverts no covariance, G. J. Bierman, "Fixed interval smoothing with discrete measurements", 1973.

    Args:
        model: The distribution of recordings.

    Attributes:
        transition: Expected state at the next sample from that at this one, (n_states, n_states).
        prior: Variance of each quadrature, (n_states,).
        driving: Variance that drives each quadrature from a sample to the next, (n_states,).
        observed: Weight of each quadrature in the mixture, (n_states,).
        noise_variance: Variance of the noise on the mixture.
    """

    def __init__(self, model: RecordingModel) -> None:
        rotation = model.rotation
        turns = [np.array([[factor.real, factor.imag], [-factor.imag, factor.real]]) for factor in rotation]
        self.transition: Array = block_diag(*turns)
        self.prior = np.repeat(model.power, 2)
        self.driving = self.prior * (1 - np.repeat(np.abs(rotation) ** 2, 2)).clip(min=0)
        self.observed = np.tile([1 / len(rotation), 0.0], len(rotation))
        self.noise_variance = max(model.noise_std**2, MIN_NOISE_VARIANCE)

    @property
    def n_states(self) -> int:
        """Number of quadratures, two for each component."""
        return len(self.prior)

    def variances(self, n_samples: int) -> Array:
        """Expected squared error of each component after each sample, (n_samples, n_components)."""
        steps = self._steps(np.diag(self.prior), n_samples)
        return np.stack([step.covariance.diagonal()[::2] for step in steps])

    def filter(self, mixtures: Array) -> Array:
        """Estimates from the samples so far.

        Args:
            mixtures: (n_recordings, n_samples).

        Returns:
            (n_recordings, n_samples, n_components).
        """
        gains = [step.gain for step in self._steps(np.diag(self.prior), mixtures.shape[1])]
        states, _ = self._filtered_states(mixtures, gains)
        return np.ascontiguousarray(states[..., ::2].swapaxes(0, 1))

    def smooth(self, mixtures: Array) -> Estimates:
        """Estimates from the whole recording.

        Args:
            mixtures: (n_recordings, n_samples); with no recordings the variances alone are computed.
        """
        n_recordings, n_samples = mixtures.shape
        before = {0: np.diag(self.prior)}  # covariance before the first sample of each segment
        gains = []
        for sample, step in enumerate(self._steps(before[0], n_samples), start=1):
            gains.append(step.gain)
            if sample % SEGMENT == 0:
                before[sample] = self._predicted(step.covariance)
        states, innovations = self._filtered_states(mixtures, gains)
        means = np.empty((n_samples, n_recordings, self.n_states // 2))
        variances = np.empty((n_samples, self.n_states // 2))
        adjoint = np.zeros((n_recordings, self.n_states))
        information = np.zeros((self.n_states, self.n_states))
        for first in sorted(before, reverse=True):
            steps = list(self._steps(before[first], min(SEGMENT, n_samples - first)))
            for sample, step in reversed(list(enumerate(steps, start=first))):
                rows = step.covariance[::2]
                means[sample] = states[sample][:, ::2] - adjoint @ rows.T
                variances[sample] = step.covariance.diagonal()[::2] - np.einsum("ij,jk,ik->i", rows, information, rows)
                adjoint, information = self._adjoint(step, innovations[sample], adjoint, information)
        return Estimates(np.ascontiguousarray(means.swapaxes(0, 1)), variances.clip(min=0))

    def _steps(self, covariance: Array, n_samples: int) -> Iterator[Step]:
        """Yield the recursion for ``n_samples`` samples, from the covariance before the first of them."""
        stationary = False
        for _ in range(n_samples):
            if not stationary:
                cross = covariance @ self.observed
                innovation_variance = float(self.observed @ cross) + self.noise_variance
                gain = cross / innovation_variance
                step = Step(covariance - np.outer(gain, cross), gain, innovation_variance)
                predicted = self._predicted(step.covariance)
                stationary = bool(np.abs(predicted - covariance).max() <= MAX_CHANGE * self.prior.max())
                covariance = predicted
            yield step

    def _predicted(self, covariance: Array) -> Array:
        """Covariance of the state at the next sample, from that at this sample."""
        predicted = self.transition @ covariance @ self.transition.T
        predicted[np.diag_indices(self.n_states)] += self.driving
        return (predicted + predicted.T) / 2

    def _filtered_states(self, mixtures: Array, gains: Sequence[Array]) -> tuple[Array, Array]:
        """States given the samples so far, (n_samples, n_recordings, n_states), and innovations without the last."""
        states = np.empty((len(gains), len(mixtures), self.n_states))
        innovations = np.empty(states.shape[:2])
        state = np.zeros(states.shape[1:])
        for sample, (observed, gain) in enumerate(zip(mixtures.T, gains, strict=True)):
            if sample > 0:
                state = state @ self.transition.T
            innovations[sample] = observed - state @ self.observed
            state = state + np.outer(innovations[sample], gain)
            states[sample] = state
        return states, innovations

    def _adjoint(self, step: Step, innovation: Array, adjoint: Array, information: Array) -> tuple[Array, Array]:
        """Adjoint state (n_recordings, n_states) and information of the later samples, one sample earlier.

        They correct the mean and the covariance given the samples so far; Bierman's equations for one observation.
        """
        observed, gain = self.observed, step.gain
        adjoint = adjoint - np.outer(adjoint @ gain + innovation / step.innovation_variance, observed)
        of_gain = information @ gain
        cross = np.outer(observed, of_gain)
        scale = gain @ of_gain + 1 / step.innovation_variance
        information = information - cross - cross.T + scale * np.outer(observed, observed)
        return adjoint @ self.transition, self.transition.T @ information @ self.transition


class RecordingEstimator:
    """Kalman filter or smoother with the call signature of a filter, so that the same code evaluates both.

    Args:
        kalman: The Kalman filter.
        two_sided: Whether an estimate uses the whole recording, or the samples so far.
    """

    def __init__(self, kalman: KalmanFilter, *, two_sided: bool = False) -> None:
        self._kalman = kalman
        self._two_sided = two_sided

    def __call__(self, inputs: Tensor) -> Tensor:
        """Estimates (n_recordings, n_samples, n_components) of mixtures (n_recordings, n_samples)."""
        mixtures = inputs.double().cpu().numpy()
        estimates = self._kalman.smooth(mixtures).means if self._two_sided else self._kalman.filter(mixtures)
        return torch.from_numpy(estimates).to(inputs.device, inputs.dtype)
