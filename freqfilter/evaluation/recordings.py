"""Scores of filters on recordings of random signals: baselines, and errors after so many samples."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pandas as pd
import torch
from scipy import signal
from torch import Tensor

from freqfilter.config import Params
from freqfilter.data.kalman import KalmanFilter, RecordingEstimator
from freqfilter.data.recordings import RecordingModel, Recordings
from freqfilter.evaluation.baselines import LINEAR_MMSE, butterworth_bands
from freqfilter.evaluation.limits import LIMIT, MAX_LIMIT_SAMPLES, limit_estimators, other_view
from freqfilter.evaluation.metrics import CHUNK_SAMPLES, ZERO_MSE, Estimator, half_width, limit_ratio, ratio_interval
from freqfilter.tracked_names import MAIN_CONTEXT

CONTEXTS = (50, 200, 500, 1000, 2000)  # numbers of samples after which errors are reported
CONTEXT_RANGE = 0.1  # around a context, as a share of it


def recording_baselines(params: Params) -> dict[str, Estimator]:
    """Create the baselines of a filter of recordings, by name, in the order of a table."""
    model = RecordingModel.from_params(params.signals)
    best = limit_estimators(params)
    if not best:
        kalman = KalmanFilter(model)
        best = {
            LINEAR_MMSE: RecordingEstimator(kalman),
            f"{LINEAR_MMSE}_{other_view(params)}": RecordingEstimator(kalman, two_sided=True),
        }
    return best | {"band_pass": BandPass(model), "zero": Zero(model.n_components)}


@torch.inference_mode()
def score_contexts(estimator: Estimator, recordings: Recordings, params: Params) -> pd.DataFrame:
    """Score a causal filter after each number of samples in ``CONTEXTS`` for which the recordings are long enough.

    Where the Kalman estimate is the conditional mean, the ratio to the limit is measured without the noise of the
    truth, as ``1 + mean (estimate - Kalman estimate)² / limit``, which has the expectation of the ratio of the errors.

    Args:
        estimator: The filter.
        recordings: Recordings that it was neither trained nor chosen on.
        params: Parameters with their distribution.

    Returns:
        A row for each number of samples, with columns ``mse``, ``limit_mse`` (expected) and ``mse_over_limit``, and
        ``measured_over_limit``, the ratio of the errors measured. Ratios have 95 % intervals over recordings, with the
        suffixes ``_low`` and ``_high``; NaN if unknown. Where the limit is unknown, ``linear_mmse`` takes its place,
        and only the measured ratio exists.
    """
    kalman = KalmanFilter(RecordingModel.from_params(params.signals))
    exact = params.signals.gaussian
    reference, expected = (LIMIT if exact else LINEAR_MMSE), kalman.variances(recordings.n_samples).mean(axis=1)
    ranges = dict(contexts(recordings.n_samples))
    sums = {context: np.zeros((3, len(recordings))) for context in ranges}
    best = RecordingEstimator(kalman)
    positions = torch.arange(len(recordings), device=recordings.mixtures.device)
    for rows in torch.split(positions, max(1, CHUNK_SAMPLES // recordings.n_samples)):
        mixtures, components = recordings.batch(rows)
        estimates, best_estimates = (each(mixtures).double().cpu() for each in (estimator, best))
        truth = components.cpu()
        differences = estimates - best_estimates, estimates - truth, best_estimates - truth
        for context, samples in ranges.items():
            sums[context][:, rows.cpu()] = [part[:, samples].square().mean(dim=(1, 2)).numpy() for part in differences]
    scores = {}
    for context, samples in ranges.items():
        excess, errors, best_errors = sums[context]
        reference_mse = float(expected[samples].mean())
        row = {"mse": float(errors.mean()), f"{reference}_mse": reference_mse}
        if exact and reference_mse >= ZERO_MSE:
            ratios = 1 + excess / reference_mse
            mean, half = float(ratios.mean()), half_width(ratios)
            row |= _with_interval(f"mse_over_{reference}", mean, (mean - half, mean + half))
        measured = limit_ratio(float(errors.mean()), float(best_errors.mean()))
        row |= _with_interval(f"measured_over_{reference}", measured, ratio_interval(errors, best_errors))
        scores[context] = row
    return pd.DataFrame.from_dict(scores, orient="index").rename_axis("samples")


def _with_interval(name: str, value: float | None, interval: tuple[float, float] | None) -> dict[str, float]:
    low, high = interval or (math.nan, math.nan)
    return {name: math.nan if value is None else value, f"{name}_low": low, f"{name}_high": high}


def contexts(n_samples: int) -> Iterator[tuple[int, slice]]:
    """Yield numbers of samples and the positions that stand for them, in recordings of this length.

    >>> list(contexts(300))
    [(50, slice(45, 55, None)), (200, slice(180, 220, None))]
    """
    for context in CONTEXTS:
        around = round(CONTEXT_RANGE * context)
        samples = slice(context, 2 * context) if context == MAIN_CONTEXT else slice(context - around, context + around)
        if samples.stop <= n_samples:
            yield context, samples


def close_components(params: Params) -> Iterator[str]:
    """Yield a line for each pair of neighbouring components that a recording is too short to tell apart."""
    signals = params.signals
    n_samples = min(signals.n_samples, MAX_LIMIT_SAMPLES)
    duration_s = n_samples / signals.sample_rate_hz
    order = np.argsort(signals.frequencies_hz)
    close = [pair for pair in pairwise(order) if np.diff(np.take(signals.frequencies_hz, pair)) < 1 / duration_s]
    if not close:
        return
    errors = KalmanFilter(RecordingModel.from_params(signals)).variances(n_samples)[-1]
    for low, high in close:
        low_hz, high_hz, power = (
            signals.frequencies_hz[low],
            signals.frequencies_hz[high],
            signals.amplitudes[low] ** 2 / 2,
        )
        yield (
            f"{low_hz:g} and {high_hz:g} Hz are closer than 1 / {duration_s:g} s: after {n_samples:,} samples the "
            f"expected error of {low_hz:g} Hz is still {errors[low]:.3g}, and its power is {power:.3g}."
        )


class BandPass:
    """Butterworth band-pass around each component, extending halfway to its nearest neighbour; causal.

    Source: SciPy, ``butter`` and ``sosfilt``.

    Args:
        model: The distribution of recordings.
    """

    def __init__(self, model: RecordingModel) -> None:
        self._bands = list(butterworth_bands(model.frequencies_hz, model.sample_rate_hz))

    def __call__(self, inputs: Tensor) -> Tensor:
        """Estimates (n_recordings, n_samples, n_components) of mixtures (n_recordings, n_samples)."""
        mixtures = inputs.double().cpu().numpy()
        filtered = [signal.sosfilt(sections, mixtures, axis=1) for sections in self._bands]
        estimates = len(self._bands) * np.stack(filtered, axis=2)
        return torch.from_numpy(estimates).to(inputs.device, inputs.dtype)


@dataclass(frozen=True)
class Zero:
    """Estimator of zero: the mean squared error is the power of the components."""

    n_components: int

    def __call__(self, inputs: Tensor) -> Tensor:
        """Return zeros, (n_recordings, n_samples, n_components)."""
        return inputs.new_zeros(*inputs.shape, self.n_components)
