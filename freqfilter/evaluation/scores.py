"""Scores of an extractor: mean squared error and its relatives, overall and for each component."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from freqfilter.signals.windows import WindowSet, batches

# Anything that turns inputs (n_windows, n_samples, 1 + n_components) into estimates (n_windows, n_samples, 1).
Extractor = Callable[[Tensor], Tensor]

MEASURES = ("mse", "rmse", "mae", "r2", "pearson_r")
OVERALL = "all"  # the row of all components together
MODEL = "model"  # the extractor that a run is judged by
SCORED_AT_ONCE = 1024  # windows


def frequency_name(frequency_hz: float) -> str:
    """The component in names of metrics and columns.

    >>> frequency_name(5.0), frequency_name(2.5), frequency_name(1e12)
    ('5hz', '2.5hz', '1000000000000hz')
    """
    return f"{np.format_float_positional(frequency_hz, trim='-')}hz"


@torch.inference_mode()
def score(
    extractor: Extractor, windows: WindowSet, *, frequencies_hz: Sequence[float], device: torch.device
) -> pd.DataFrame:
    """Score an extractor on windows, a batch at a time, with sums in double precision.

    Args:
        extractor: What is scored.
        windows: Inputs and targets.
        frequencies_hz: Frequency of each component, (n_components,).
        device: Where the extractor computes.

    Returns:
        A row for ``all`` and one for each component that occurs (``5hz``), columns ``MEASURES``:

        - ``mse``, ``rmse``, ``mae``: mean squared error, its root, mean absolute error, all ≥ 0;
        - ``r2``: 1 - mse / variance of the target, ≤ 1, NaN for a constant target;
        - ``pearson_r``: correlation of estimate and target, in [-1, 1], NaN where either is constant.
    """
    sums = torch.zeros(windows.n_components, 8, dtype=torch.float64)
    windows = windows.to(device)
    for inputs, targets in batches(windows, SCORED_AT_ONCE, device):
        estimates = extractor(inputs).double()
        truth = targets.double()
        error = estimates - truth
        terms = [
            torch.ones_like(truth), error**2, error.abs(), truth, truth**2, estimates, estimates**2, estimates * truth,
        ]  # fmt: skip
        of_window = torch.stack([term.sum(dim=(1, 2)) for term in terms], dim=1)
        sums += (inputs[:, 0, 1:].double().T @ of_window).cpu()
    rows = {OVERALL: _measures(sums.sum(dim=0))}
    for frequency_hz, row in zip(frequencies_hz, sums, strict=True):
        if row[0] > 0:
            rows[frequency_name(frequency_hz)] = _measures(row)
    return pd.DataFrame.from_dict(rows, orient="index", columns=list(MEASURES))


def compare(
    extractors: Mapping[str, Extractor],
    windows: WindowSet,
    *,
    frequencies_hz: Sequence[float],
    device: torch.device,
) -> pd.DataFrame:
    """The scores of several extractors on the same windows, rows (extractor, component)."""
    tables = {
        name: score(extractor, windows, frequencies_hz=frequencies_hz, device=device)
        for name, extractor in extractors.items()
    }
    return pd.concat(tables, names=["extractor", "component"])


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
    return [mse, mse**0.5, absolute / count, r2, pearson_r]
