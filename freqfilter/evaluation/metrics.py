"""Mean squared error and related measures, overall and for each component."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from freqfilter.data.windows import WindowDataset, block_means

# Anything that turns inputs (n_windows, n_samples, 1 + n_components) into estimates (n_windows, n_samples, 1).
Estimator = Callable[[Tensor], Tensor]

MEASURES = ("mse", "rmse", "mae", "r2", "pearson_r", "sdr_db")
OVERALL = "all"  # the row of all components together
MODEL = "model"  # the extractor that a run is judged by
CHUNK_SIZE = 2048  # windows


def frequency_name(frequency_hz: float) -> str:
    """The component in names of metrics and columns.

    >>> frequency_name(5.0), frequency_name(2.5), frequency_name(1e12)
    ('5hz', '2.5hz', '1000000000000hz')
    """
    return f"{np.format_float_positional(frequency_hz, trim='-')}hz"


@dataclass(frozen=True)
class Comparison:
    """Several extractors on the same windows.

    Attributes:
        table: A row for each extractor and component, ``all`` first, then each that occurs (``5hz``); columns
            ``MEASURES``:

            - ``mse``, ``rmse``, ``mae``: mean squared error, its root, mean absolute error, all ≥ 0;
            - ``r2``: 1 - mse / variance of the target, ≤ 1, NaN for a constant target;
            - ``pearson_r``: correlation of estimate and target, in [-1, 1], NaN where either is constant;
            - ``sdr_db``: signal-to-distortion ratio, power of the target over that of the error, dB; 0 of predicting
              zero, infinite of the truth, NaN for a silent target.
        per_step: Mean squared error at each position in the window: a row for each extractor, a column from 1 on for
            each position.
        per_block: Mean squared error of each block of neighbouring windows: a row for each extractor; None where
            nobody knows which windows are neighbours.
    """

    table: pd.DataFrame
    per_step: pd.DataFrame
    per_block: pd.DataFrame | None


def score(
    extractor: Estimator, windows: WindowDataset, *, frequencies_hz: Sequence[float], device: torch.device
) -> pd.DataFrame:
    """The scores of one extractor: rows and columns as in ``Comparison.table``."""
    compared = compare({MODEL: extractor}, windows, frequencies_hz=frequencies_hz, device=device)
    return pd.DataFrame(compared.table.xs(MODEL))


@torch.inference_mode()
def compare(
    extractors: Mapping[str, Estimator],
    windows: WindowDataset,
    *,
    frequencies_hz: Sequence[float],
    device: torch.device,
) -> Comparison:
    """Score extractors on windows, a batch at a time, with sums in double precision.

    Args:
        extractors: What is scored, by name.
        windows: Inputs and targets.
        frequencies_hz: Frequency of each component, (n_components,).
        device: Where the extractors compute.
    """
    sums = {name: _Sums(windows) for name in extractors}
    windows = windows.to(device)
    positions = torch.arange(len(windows), device=device)
    for some in torch.split(positions, CHUNK_SIZE):
        inputs, targets = windows.batch(some)
        for name, extractor in extractors.items():
            sums[name].add(inputs, targets, extractor(inputs))
    blocks = windows.block_ids(positions)
    tables = {name: of_extractor.table(frequencies_hz) for name, of_extractor in sums.items()}
    steps = {name: of_extractor.per_step() for name, of_extractor in sums.items()}
    per_block = None
    if blocks is not None:
        means = {name: block_means(of_extractor.of_windows(), blocks.cpu()) for name, of_extractor in sums.items()}
        per_block = pd.DataFrame.from_dict(means, orient="index")
    return Comparison(
        pd.concat(tables, names=["extractor", "component"]),
        pd.DataFrame.from_dict(steps, orient="index", columns=range(1, windows.n_samples + 1)),
        per_block,
    )


class _Sums:
    """What is added up over windows to score one extractor."""

    def __init__(self, windows: WindowDataset) -> None:
        self._of_components = torch.zeros(windows.n_components, 8, dtype=torch.float64)
        self._of_steps = torch.zeros(windows.n_samples, dtype=torch.float64)
        self._of_windows: list[Tensor] = []

    def add(self, inputs: Tensor, targets: Tensor, answers: Tensor) -> None:
        """Count a batch of windows, (n_windows, n_samples, …)."""
        estimates, truth = answers.double(), targets.double()
        error = estimates - truth
        terms = [
            torch.ones_like(truth), error**2, error.abs(), truth, truth**2, estimates, estimates**2, estimates * truth,
        ]  # fmt: skip
        of_window = torch.stack([term.sum(dim=(1, 2)) for term in terms], dim=1)
        self._of_components += (inputs[:, 0, 1:].double().T @ of_window).cpu()
        self._of_steps += (error**2).sum(dim=(0, 2)).cpu()
        self._of_windows.append((of_window[:, 1] / of_window[:, 0]).cpu())

    def table(self, frequencies_hz: Sequence[float]) -> pd.DataFrame:
        """A row for all components together and one for each that occurs."""
        rows = {OVERALL: _measures(self._of_components.sum(dim=0))}
        for frequency_hz, row in zip(frequencies_hz, self._of_components, strict=True):
            if row[0] > 0:
                rows[frequency_name(frequency_hz)] = _measures(row)
        return pd.DataFrame.from_dict(rows, orient="index", columns=list(MEASURES))

    def per_step(self) -> list[float]:
        """Mean squared error at each position."""
        n_windows = self._of_components[:, 0].sum() / len(self._of_steps)
        return [float(value) for value in self._of_steps / n_windows]

    def of_windows(self) -> Tensor:
        """Mean squared error of each window, (n_windows,)."""
        return torch.cat(self._of_windows)


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
