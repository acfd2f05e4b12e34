"""Baselines that a filter is compared with: trivial and classical estimators, and the limit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import linalg, signal
from torch import Tensor

from freqfilter.config import Params
from freqfilter.data.posterior import MIN_NOISE_STD
from freqfilter.data.signal_model import SignalModel
from freqfilter.data.splits import Splits
from freqfilter.data.windows import Dataset, batches
from freqfilter.evaluation.limits import limit_estimators, other_view
from freqfilter.evaluation.metrics import Estimator

LINEAR_MMSE = "linear_mmse"  # the best linear filter, for the view of the filter that is evaluated
ORDER = 2  # of the Butterworth filters; a band-pass has twice this order
MAX_NUMBERS = 2**22  # in the windows that the covariance is averaged over; fewer windows, evenly spaced, beyond that
CHUNK_SIZE = 4096  # windows in memory together

Array = NDArray[np.float64]


def baseline_estimators(params: Params, splits: Splits) -> dict[str, Estimator]:
    """Create the baselines of a filter, by name, in the order of a table.

    The limit is included if the signal model is known and the realization is not too long for it. ``limit``,
    ``linear_mmse`` and ``band_pass`` have the view of the filter, causal or bidirectional; the suffix ``_causal`` or
    ``_two_sided`` marks those with the other view.
    """
    moments = TargetMoments.from_windows(splits.train)
    blind: dict[str, Estimator] = {
        "zero": zero,
        "mean": Mean(moments),
        "random": Random(moments, torch.Generator().manual_seed(0)),
    }
    if params.data.data_file is not None:
        return blind
    model, n_samples = SignalModel.from_params(params.signals), params.data.window_length
    causal, other = not params.model.bidirectional, other_view(params)
    classical: dict[str, Estimator] = {
        LINEAR_MMSE: linear_mmse(model, n_samples=n_samples, causal=causal),
        f"{LINEAR_MMSE}_{other}": linear_mmse(model, n_samples=n_samples, causal=not causal),
        "band_pass": band_pass(model, n_samples=n_samples, zero_phase=not causal),
        f"band_pass_{other}": band_pass(model, n_samples=n_samples, zero_phase=causal),
        "least_squares": least_squares(model, n_samples=n_samples),
    }
    return limit_estimators(params) | classical | blind


class LinearEstimator:
    """Linear estimator: ``weights[component] @ window + offsets[component]``.

    Args:
        weights: (n_components, n_samples, n_samples).
        offsets: (n_components, n_samples), or None for zero.
    """

    def __init__(self, weights: Array, offsets: Array | None = None) -> None:
        self._weights = torch.from_numpy(np.ascontiguousarray(weights)).double()
        self._offsets = torch.zeros(weights.shape[:2]) if offsets is None else torch.from_numpy(offsets)

    def __call__(self, inputs: Tensor) -> Tensor:
        """Estimates (n_windows, n_samples, 1) of inputs (n_windows, n_samples, 1 + n_components)."""
        selector = inputs[:, 0, 1:].double().cpu()
        estimates = torch.einsum("kts,ns->nkt", self._weights, inputs[..., 0].double().cpu()) + self._offsets
        return torch.einsum("nk,nkt->nt", selector, estimates)[..., None].to(inputs.device, inputs.dtype)


def band_pass(model: SignalModel, *, n_samples: int, zero_phase: bool) -> LinearEstimator:
    """Butterworth band-pass around each component, extending halfway to its nearest neighbour.

    Run forwards, it is causal and has a delay; run forwards and backwards (``zero_phase``), it uses the whole window.
    The mixture is the mean of the components, hence the gain ``n_components``.

    Source: SciPy, ``butter``, ``sosfilt`` and ``sosfiltfilt``.
    """
    frequencies_hz = [component.frequency_hz for component in model.components]
    impulses = np.eye(n_samples)
    responses = []
    for sections in butterworth_bands(frequencies_hz, model.sample_rate_hz):
        if zero_phase:
            padding = min(n_samples - 1, 3 * (2 * len(sections) + 1))
            response = signal.sosfiltfilt(sections, impulses, axis=1, padlen=padding)
        else:
            response = signal.sosfilt(sections, impulses, axis=1)
        responses.append(len(frequencies_hz) * response)
    return LinearEstimator(np.stack(responses).transpose(0, 2, 1))


def butterworth_bands(frequencies_hz: Sequence[float], sample_rate_hz: float) -> Iterator[Array]:
    """Yield the second-order sections of a band-pass around each frequency, extending halfway to its neighbour."""
    for frequency_hz in frequencies_hz:
        below = max([other for other in frequencies_hz if other < frequency_hz], default=0.0)
        above = min([other for other in frequencies_hz if other > frequency_hz], default=sample_rate_hz / 2)
        half_width_hz = min(frequency_hz - below, above - frequency_hz) / 2
        band_hz = (frequency_hz - half_width_hz, frequency_hz + half_width_hz)
        yield signal.butter(ORDER, band_hz, "bandpass", fs=sample_rate_hz, output="sos")


def least_squares(model: SignalModel, *, n_samples: int) -> LinearEstimator:
    """Least-squares fit of a sine and a cosine of each known frequency to the whole window.

    In a window much shorter than the periods the fit is ill-conditioned and amplifies the noise.
    """
    time_s = np.arange(n_samples) * model.duration_s / (model.n_samples - 1)
    angles = [2 * np.pi * component.frequency_hz * time_s for component in model.components]
    waves = np.stack([wave for angle in angles for wave in (np.sin(angle), np.cos(angle))], axis=1)
    coefficients = np.linalg.pinv(waves, rcond=1e-13).reshape(len(angles), 2, n_samples)
    pairs = waves.T.reshape(len(angles), 2, n_samples)
    return LinearEstimator(len(angles) * np.einsum("kct,kcs->kts", pairs, coefficients))


def linear_mmse(model: SignalModel, *, n_samples: int, causal: bool) -> LinearEstimator:
    """Linear MMSE (Wiener) estimator, with the expectation over all window starts and the noise.

    With the Cholesky factor of the mixture's covariance, C = L Lᵀ, and B = L⁻¹, the weights are (R Bᵀ) B for the
    covariance R of component and mixture. From the samples so far (``causal``) they are tril(R Bᵀ) B, since B of the
    first samples is the corner of B of all of them.

    Source: S. M. Kay, "Fundamentals of Statistical Signal Processing: Estimation Theory", 1993, chapter 12.
    """
    n_starts = model.n_samples - n_samples + 1
    n_windows = min(n_starts, max(1, MAX_NUMBERS // (len(model.components) * n_samples)))
    starts = np.linspace(0, n_starts - 1, n_windows).round().astype(np.int64)
    windows = model.clean(starts[:, None] + np.arange(n_samples))
    mean = windows.mean(axis=1)
    centred = windows - mean[:, None]
    mixture, mixture_mean = centred.mean(axis=0), mean.mean(axis=0)
    noise = max(model.noise_std, MIN_NOISE_STD) ** 2
    covariance = mixture.T @ mixture / len(starts) + noise * np.eye(n_samples)
    inverse = linalg.solve_triangular(np.linalg.cholesky(covariance), np.eye(n_samples), lower=True)
    with_mixture = np.einsum("kwt,ws->kts", centred, mixture, optimize=True) / len(starts)
    whitened = with_mixture @ inverse.T
    weights = (np.tril(whitened) if causal else whitened) @ inverse
    return LinearEstimator(weights, mean - weights @ mixture_mean)


def zero(inputs: Tensor) -> Tensor:
    """Estimate zero at every sample: the mean squared error is the power of the component."""
    return torch.zeros_like(inputs[..., :1])


@dataclass(frozen=True)
class TargetMoments:
    """Mean and standard deviation of the targets of each component, (n_components,)."""

    mean: Tensor
    std: Tensor

    @classmethod
    def from_windows(cls, windows: Dataset) -> Self:
        """Compute the moments over windows; zero for a component that does not occur."""
        sums, squares, counts = torch.zeros(3, windows.n_components, dtype=torch.float64)
        for inputs, targets in batches(windows, CHUNK_SIZE, torch.device("cpu")):
            selector = inputs[:, 0, 1:].double().T
            sums += selector @ targets.double().mean(dim=(1, 2))
            squares += selector @ targets.double().square().mean(dim=(1, 2))
            counts += selector.sum(dim=1)
        mean = sums / counts.clamp(min=1)
        variance = (squares / counts.clamp(min=1) - mean**2).clamp(min=0)
        return cls(mean.float(), variance.sqrt().float())


@dataclass(frozen=True)
class Mean:
    """Estimator that returns the mean of the selected component and ignores the mixture."""

    moments: TargetMoments

    def __call__(self, inputs: Tensor) -> Tensor:
        """Return the mean at every sample, (n_windows, n_samples, 1)."""
        return _select(self.moments.mean, inputs)


@dataclass(frozen=True)
class Random:
    """Normal draws with the mean and variance of the selected component: their MSE is twice that variance."""

    moments: TargetMoments
    generator: torch.Generator

    def __call__(self, inputs: Tensor) -> Tensor:
        """Return a normal draw at every sample, (n_windows, n_samples, 1)."""
        noise = torch.randn((*inputs.shape[:2], 1), generator=self.generator).to(inputs.device)
        return _select(self.moments.mean, inputs) + _select(self.moments.std, inputs) * noise


def _select(values: Tensor, inputs: Tensor) -> Tensor:
    selected: Tensor = inputs[..., 1:] @ values.to(inputs.device)
    return selected[..., None]
