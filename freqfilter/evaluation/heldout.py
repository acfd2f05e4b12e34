"""Evaluation on the test set and on fresh noise realizations."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count, islice

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import nn

from freqfilter.config import Params
from freqfilter.data.signal_model import SignalModel, evenly_spaced_windows
from freqfilter.data.splits import Splits
from freqfilter.data.windows import WindowDataset
from freqfilter.errors import UserError
from freqfilter.evaluation.baselines import baseline_estimators
from freqfilter.evaluation.limits import CONFIDENCE, LIMIT, limit_estimators, ratio_interval
from freqfilter.evaluation.metrics import MODEL, OVERALL, Comparison, Estimator, compare
from freqfilter.models.network import estimate

FIRST_NOISE_SEED = 10_000
# Of a realization, spread evenly: neighbouring windows share nearly all of their noise, so that those left out would
# say next to nothing new.
N_WINDOWS = 8_000
N_FILE_PARTS = 20  # of its test windows, in place of realizations


@dataclass(frozen=True)
class FreshScores:
    """Mean squared errors on fresh realizations, of the model and, where it is known, of its limit.

    Attributes:
        of_realizations: A row for each, by noise seed: ``mse``, and ``limit_mse`` and ``mse_over_limit`` if known.
        mean: Over the realizations: a row for each extractor, a column for all components together and one for each.
        mse_interval: 95 % interval of the model's mean, from its scatter over the realizations; NaN for a single one.
        ratio_interval: 95 % interval of model over limit, by resampling realizations; NaN for a single one, None
            where the limit is not known.
    """

    of_realizations: pd.DataFrame
    mean: pd.DataFrame
    mse_interval: tuple[float, float]
    ratio_interval: tuple[float, float] | None

    @property
    def mse(self) -> float:
        """Mean squared error of the model, the mean over the realizations."""
        return float(self.mean[OVERALL][MODEL])

    @property
    def mse_over_limit(self) -> float | None:
        """The same over the limit's; None where that is not known."""
        return self.mse / float(self.mean[OVERALL][LIMIT]) if self.ratio_interval else None


def fresh_seeds(trained: Sequence[Params], n_realizations: int) -> list[int]:
    """Noise seeds of realizations that no filter's own run has used, the first of them from 10,000 on.

    Args:
        trained: The parameters that each filter was trained with.
        n_realizations: How many, at least 1.

    Raises:
        UserError: If there is no signal model to draw them from.
    """
    if any(params.data.data_file is not None for params in trained):
        raise UserError("realizations: the model was trained on a data file, which has no signal model to draw from")
    used = {seed for params in trained for seeds in params.realizations().values() for seed in seeds}
    return list(islice((seed for seed in count(FIRST_NOISE_SEED) if seed not in used), n_realizations))


def evaluation_windows(params: Params, noise_seeds: Iterable[int] | None) -> Iterator[tuple[int, WindowDataset]]:
    """What a filter is judged on: windows of one realization after another, or parts of a file's test windows.

    Args:
        params: The parameters that it was trained with.
        noise_seeds: Of the realizations; None for a user's own data, which has no signal model to draw any from.

    Yields:
        A noise seed, or a part's number, and its windows.
    """
    if noise_seeds is None:
        test = Splits.from_params(params).test
        for number, part in enumerate(torch.arange(len(test)).tensor_split(min(N_FILE_PARTS, len(test)))):
            yield number, test.subset(part)
        return
    model = SignalModel.from_params(params.signals)
    for noise_seed in noise_seeds:
        yield noise_seed, evenly_spaced_windows(model, params.data.window_length, N_WINDOWS, noise_seed)


def score_realizations(
    extractors: Mapping[str, Estimator], params: Params, noise_seeds: Iterable[int] | None, *, device: torch.device
) -> Iterator[tuple[int, pd.DataFrame]]:
    """Score extractors on one realization after another, all of them on the same windows.

    Args:
        extractors: What is scored, by name.
        params: The parameters that a filter among them was trained with.
        noise_seeds: Of the realizations; see ``evaluation_windows``.
        device: Where the extractors compute.

    Yields:
        A noise seed, and mean squared errors: a row for each extractor, a column for all components together and one
        for each.
    """
    for number, windows in evaluation_windows(params, noise_seeds):
        compared = compare(extractors, windows, frequencies_hz=params.signals.frequencies_hz, device=device)
        table = compared.table["mse"].unstack("component")
        columns = compared.table.index.get_level_values("component").unique()
        yield number, table.loc[list(extractors), columns]


def score_with_limit(networks: Mapping[str, nn.Module], params: Params) -> dict[str, Estimator]:
    """Networks of one task, in evaluation mode, and their limit where that is known."""
    known = limit_estimators(params)
    extractors: dict[str, Estimator] = {name: partial(estimate, network) for name, network in networks.items()}
    return extractors | ({LIMIT: known[LIMIT]} if known else {})


def summarize(errors: Mapping[int, pd.DataFrame]) -> FreshScores:
    """What the scores on several realizations come to, all of which count the same.

    Args:
        errors: Mean squared errors of ``model`` and, where it is known, ``limit``, by noise seed; see
            ``score_realizations``.
    """
    tables = pd.concat(errors)
    overall = tables[OVERALL].unstack()
    columns = {"mse": overall[MODEL]}
    ratio = None
    if LIMIT in overall:
        columns |= {"limit_mse": overall[LIMIT], "mse_over_limit": overall[MODEL] / overall[LIMIT]}
        ratio = ratio_interval(overall.T, MODEL, LIMIT)
    return FreshScores(
        pd.DataFrame(columns).rename_axis("noise_seed"),
        tables.groupby(level=1, sort=False).mean(),
        _interval_of_mean(overall[MODEL].to_numpy()),
        ratio,
    )


def _interval_of_mean(values: NDArray[np.float64]) -> tuple[float, float]:
    if len(values) < 2:
        return math.nan, math.nan
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1) * stats.sem(values))
    return float(values.mean()) - half, float(values.mean()) + half


def score_test_set(network: nn.Module, splits: Splits, params: Params, *, device: torch.device) -> Comparison:
    """Score a network, in evaluation mode and on ``device``, beside what it is held against.

    Args:
        network: The network.
        splits: The data.
        params: The parameters that it was trained with.
        device: Where it computes.
    """
    extractors = {MODEL: partial(estimate, network)} | baseline_estimators(params, splits)
    return compare(extractors, splits.test, frequencies_hz=params.signals.frequencies_hz, device=device)
