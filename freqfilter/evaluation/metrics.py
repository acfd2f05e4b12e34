"""Mean squared error and related measures, overall and for each component."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

from freqfilter.data.windows import Dataset, block_means

# Maps inputs (n_windows, n_samples, 1 + n_components) to estimates (n_windows, n_samples, 1), or the mixtures of
# recordings, (n_recordings, n_samples), to estimates (n_recordings, n_samples, n_components).
Estimator = Callable[[Tensor], Tensor]

MEASURES = ("mse", "rmse", "mae", "r2", "pearson_r", "sdr_db")
OVERALL = "all"  # the row of all components together
MODEL = "model"  # the estimator that is evaluated
CHUNK_SIZE, CHUNK_SAMPLES = 2048, 2**21  # windows or recordings, and their samples
CONFIDENCE = 0.95  # of every interval
ZERO_MSE = 1e-12  # of components with amplitude 1; below, an error is rounding of float32


def frequency_name(frequency_hz: float) -> str:
    """Format a frequency for names of metrics and columns.

    >>> frequency_name(5.0), frequency_name(2.5), frequency_name(1e12)
    ('5hz', '2.5hz', '1000000000000hz')
    """
    return f"{np.format_float_positional(frequency_hz, trim='-')}hz"


def half_width(values: NDArray[np.floating]) -> float:
    """Half the width of the interval (Student's t) of the mean of independent values; NaN for a single value."""
    n = len(values)
    return float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1) * stats.sem(values)) if n > 1 else math.nan


def limit_ratio(mse: float | None, limit_mse: float | None) -> float | None:
    """Ratio of a mean squared error to the limit; None if either is unknown or the limit is zero (``ZERO_MSE``)."""
    return None if mse is None or limit_mse is None or limit_mse < ZERO_MSE else mse / limit_mse


def ratio_interval(
    numerator: NDArray[np.floating], denominator: NDArray[np.floating], *, confidence: float = CONFIDENCE
) -> tuple[float, float] | None:
    """Compute the confidence interval of the ratio of two means of paired values (Fieller, Student's t).

    It has all ratios r for which a paired t-test does not find the mean of ``numerator - r * denominator`` different
    from zero. If the pairs are normally distributed, its coverage is exact for any number of them.

    Source: E. C. Fieller, "Some Problems in Interval Estimation", Journal of the Royal Statistical Society B 16, 1954.

    Args:
        numerator: Mean squared errors on independent blocks or realizations, (n_pairs,).
        denominator: Mean squared errors of the reference on the same, (n_pairs,).
        confidence: Probability that the interval has the ratio of the expectations.

    Returns:
        Its ends; None if it is unknown: there is a single pair, or the mean of the denominator is not significantly
        above zero.
    """
    n = len(numerator)
    if n < 2 or (mean := float(denominator.mean())) < ZERO_MSE:
        return None
    ratio = float(numerator.mean()) / mean
    covariance = np.cov(numerator - ratio * denominator, denominator) / n
    t_squared = float(stats.t.ppf((1 + confidence) / 2, n - 1)) ** 2
    # The ends are ratio + x for the roots x of a x² + 2 b x = c.
    a, b, c = mean**2 - t_squared * covariance[1, 1], t_squared * covariance[0, 1], t_squared * covariance[0, 0]
    if a <= 0:
        return None
    root = math.sqrt(b**2 + a * c)
    return float(ratio - (b + root) / a), float(ratio + (root - b) / a)


@dataclass(frozen=True)
class Comparison:
    """Scores of several estimators on the same windows.

    Attributes:
        table: A row for each estimator and component, ``all`` first, then each that occurs (``5hz``); columns
            ``MEASURES``:

            - ``mse``, ``rmse``, ``mae``: mean squared error, its root, mean absolute error, all ≥ 0;
            - ``r2``: 1 - mse / variance of the target, ≤ 1, NaN for a constant target;
            - ``pearson_r``: correlation of estimate and target, in [-1, 1], NaN if either is constant;
            - ``sdr_db``: signal-to-distortion ratio, power of the target over that of the error, dB; 0 if the
              estimate is zero, infinite if it is exact, NaN if the target is zero.
        per_step: Mean squared error at each position in the window: a row for each estimator, a column from 1 on for
            each position.
        per_block: Mean squared error of each block of neighbouring windows: a row for each estimator; None if
            the order of the windows is unknown.
        contexts: Errors of the model after numbers of samples of recordings (``recordings.score_contexts``); None for
            windows.
    """

    table: pd.DataFrame
    per_step: pd.DataFrame
    per_block: pd.DataFrame | None
    contexts: pd.DataFrame | None = None


def score(
    estimator: Estimator, windows: Dataset, *, frequencies_hz: Sequence[float], device: torch.device
) -> pd.DataFrame:
    """Score one estimator: rows and columns as in ``Comparison.table``."""
    compared = compare({MODEL: estimator}, windows, frequencies_hz=frequencies_hz, device=device)
    return pd.DataFrame(compared.table.xs(MODEL))


@torch.inference_mode()
def compare(
    estimators: Mapping[str, Estimator],
    windows: Dataset,
    *,
    frequencies_hz: Sequence[float],
    device: torch.device,
) -> Comparison:
    """Score estimators on windows in batches on their device, with sums in double precision.

    ``frequencies_hz`` has the frequency of each component, (n_components,).
    """
    sums = {name: _Sums(windows) for name in estimators}
    windows = windows.to(device)
    positions = torch.arange(len(windows), device=device)
    for chunk in torch.split(positions, max(1, min(CHUNK_SIZE, CHUNK_SAMPLES // windows.n_samples))):
        inputs, targets = windows.batch(chunk)
        for name, estimator in estimators.items():
            sums[name].add(inputs, targets, estimator(inputs))
    blocks = windows.block_ids(positions)
    tables = {name: total.table(frequencies_hz) for name, total in sums.items()}
    steps = {name: total.per_step() for name, total in sums.items()}
    per_block = None
    if blocks is not None:
        means = {name: block_means(torch.cat(total.window_mse), blocks.cpu()) for name, total in sums.items()}
        per_block = pd.DataFrame.from_dict(means, orient="index")
    return Comparison(
        pd.concat(tables, names=["estimator", "component"]),
        pd.DataFrame.from_dict(steps, orient="index", columns=range(1, windows.n_samples + 1)),
        per_block,
    )


class _Sums:
    """Sums over windows from which the scores of one estimator follow."""

    def __init__(self, windows: Dataset) -> None:
        self._component_sums = torch.zeros(windows.n_components, 8, dtype=torch.float64)
        self._step_sums = torch.zeros(windows.n_samples, dtype=torch.float64)
        self.window_mse: list[Tensor] = []

    def add(self, inputs: Tensor, targets: Tensor, predictions: Tensor) -> None:
        """Add a batch of windows, (n_windows, n_samples, …)."""
        estimates, truth = predictions.double(), targets.double()
        error = estimates - truth
        terms = [
            torch.ones_like(truth), error**2, error.abs(), truth, truth**2, estimates, estimates**2, estimates * truth,
        ]  # fmt: skip
        if inputs.dim() == 2:
            component_sums = torch.stack([term.sum(dim=1) for term in terms], dim=2)
            window_sums = component_sums.sum(dim=1)
            self._component_sums += component_sums.sum(dim=0).cpu()
        else:
            window_sums = torch.stack([term.sum(dim=(1, 2)) for term in terms], dim=1)
            self._component_sums += (inputs[:, 0, 1:].double().T @ window_sums).cpu()
        self._step_sums += (error**2).sum(dim=(0, 2)).cpu()
        self.window_mse.append((window_sums[:, 1] / window_sums[:, 0]).cpu())

    def table(self, frequencies_hz: Sequence[float]) -> pd.DataFrame:
        """Return a row for all components together and one for each that occurs."""
        rows = {OVERALL: _measures(self._component_sums.sum(dim=0))}
        for frequency_hz, row in zip(frequencies_hz, self._component_sums, strict=True):
            if row[0] > 0:
                rows[frequency_name(frequency_hz)] = _measures(row)
        return pd.DataFrame.from_dict(rows, orient="index", columns=list(MEASURES))

    def per_step(self) -> list[float]:
        """Return the mean squared error at each position."""
        n_windows = self._component_sums[:, 0].sum() / len(self._step_sums)
        values: list[float] = (self._step_sums / n_windows).tolist()
        return values


def _measures(sums: Tensor) -> list[float]:
    count, squared, absolute, truth, truth2, estimate, estimate2, product = sums.tolist()
    mse = squared / count
    truth_variance = max(truth2 / count - (truth / count) ** 2, 0.0)
    estimate_variance = max(estimate2 / count - (estimate / count) ** 2, 0.0)
    covariance = product / count - truth / count * (estimate / count)
    # Rounding leaves a constant signal a variance near 1e-16 of its power.
    truth_varies = truth_variance > 1e-12 * truth2 / count
    estimate_varies = estimate_variance > 1e-12 * estimate2 / count
    r2 = 1 - mse / truth_variance if truth_varies else float("nan")
    pearson_r = float("nan")
    if truth_varies and estimate_varies:
        pearson_r = covariance / (truth_variance * estimate_variance) ** 0.5
    sdr_db = 10 * math.log10(truth2 / squared) if truth2 and squared else (math.inf if truth2 else math.nan)
    return [mse, mse**0.5, absolute / count, r2, pearson_r, sdr_db]
