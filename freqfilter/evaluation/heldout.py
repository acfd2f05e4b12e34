"""Evaluation on the test set and on fresh noise realizations."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import count, islice

import pandas as pd
import torch
from torch import Tensor, nn

from freqfilter.config import Params
from freqfilter.data.recordings import RecordingModel, Recordings, seeded_recordings
from freqfilter.data.signal_model import SignalModel, evenly_spaced_windows, random_stream
from freqfilter.data.splits import Splits
from freqfilter.data.windows import Dataset
from freqfilter.errors import UserError
from freqfilter.evaluation.baselines import baseline_estimators
from freqfilter.evaluation.limits import LIMIT, compare_with_limit, limit_estimators
from freqfilter.evaluation.metrics import (
    MODEL,
    OVERALL,
    ZERO_MSE,
    Comparison,
    Estimator,
    half_width,
    limit_ratio,
    ratio_interval,
)
from freqfilter.evaluation.recordings import contexts, recording_baselines, score_contexts
from freqfilter.models.network import estimate
from freqfilter.tracked_names import AFTER, MAIN_CONTEXT

FIRST_NOISE_SEED = 10_000
# Of a realization, evenly spaced: neighbouring windows share nearly all of their noise, so that the windows left out
# would add almost no information.
N_WINDOWS = 8_000
N_RECORDINGS = 32  # of a noise seed
REPEATED_SIZES = (1,) * 64 + (7,) * 16 + (64,) * 8  # windows of a request, when estimates are computed again
REPEATED_SAMPLES = 50  # of a recording, when estimates are computed again
N_FILE_PARTS = 20  # of the test windows of a data file, in place of realizations


@dataclass(frozen=True)
class FreshScores:
    """Mean squared errors on fresh realizations, of the model and, if it is known, of the limit.

    Attributes:
        per_realization: A row for each noise seed: ``mse``, and ``limit_mse`` and ``mse_over_limit`` if known; the
            ratio is NaN if the limit is zero.
        mean: Over the realizations: a row for each estimator, a column for all components together and one for each.
        mse_interval: 95 % interval of the model's mean MSE over realizations (Student's t); NaN for a single one.
        ratio_interval: 95 % interval of model over limit (``metrics.ratio_interval``); None if it is unknown.
    """

    per_realization: pd.DataFrame
    mean: pd.DataFrame
    mse_interval: tuple[float, float]
    ratio_interval: tuple[float, float] | None

    @property
    def mse(self) -> float:
        """Mean squared error of the model, averaged over the realizations."""
        return float(self.mean[OVERALL][MODEL])

    @property
    def mse_over_limit(self) -> float | None:
        """Ratio of ``mse`` to that of the limit; None if the limit is unknown or zero."""
        return limit_ratio(self.mse, self.mean[OVERALL].get(LIMIT))


def fresh_seeds(trained: Sequence[Params], n_realizations: int) -> list[int]:
    """Return ``n_realizations`` noise seeds, 10,000 or larger, that no training with these parameters has used.

    Raises:
        UserError: If a filter was trained on a data file, which has no signal model.
    """
    if any(params.data.data_file is not None for params in trained):
        raise UserError("realizations: a model of a data file has no signal model; set realizations=0")
    used = {seed for params in trained for seeds in params.realizations().values() for seed in seeds}
    return list(islice((seed for seed in count(FIRST_NOISE_SEED) if seed not in used), n_realizations))


def evaluation_windows(params: Params, noise_seeds: Iterable[int] | None) -> Iterator[tuple[int, Dataset]]:
    """Yield a noise seed and the windows of its realization, or its recordings of a random signal model.

    Without seeds the parts of a data file's test windows are yielded.

    Args:
        params: Training parameters of the filter.
        noise_seeds: Noise seeds of the realizations; None for a data file, which has no signal model.
    """
    if noise_seeds is None:
        test = Splits.from_params(params).test
        inputs, _ = test.tensors()
        for number, part in enumerate(stratified_parts(inputs[:, 0, 1:].argmax(dim=1), N_FILE_PARTS)):
            yield number, test.subset(part)
        return
    if params.of_recordings:
        recordings = RecordingModel.from_params(params.signals)
        for noise_seed in noise_seeds:
            yield noise_seed, seeded_recordings(recordings, noise_seed, N_RECORDINGS, params.signals.n_samples)
        return
    model = SignalModel.from_params(params.signals)
    for noise_seed in noise_seeds:
        yield noise_seed, evenly_spaced_windows(model, params.data.window_length, N_WINDOWS, noise_seed)


def stratified_parts(selectors: Tensor, n_parts: int) -> list[Tensor]:
    """Divide windows into parts that each have windows of every component that occurs, neighbours together.

    Args:
        selectors: Component of each window, (n_windows,).
        n_parts: Number of parts; there are fewer if a component has fewer windows.

    Returns:
        Positions of each part's windows.

    >>> [part.tolist() for part in stratified_parts(torch.tensor([0, 0, 0, 0, 1, 1]), 20)]
    [[0, 1, 4], [2, 3, 5]]
    """
    components = [torch.nonzero(selectors == component).flatten() for component in sorted(set(selectors.tolist()))]
    n_parts = min(n_parts, *map(len, components))
    strata = zip(*(positions.tensor_split(n_parts) for positions in components), strict=True)
    return [torch.cat(part).sort().values for part in strata]


def score_realizations(
    estimators: Mapping[str, Estimator], params: Params, noise_seeds: Iterable[int] | None, *, device: torch.device
) -> Iterator[tuple[int, pd.DataFrame]]:
    """Score estimators on each realization of ``evaluation_windows`` in turn, all of them on the same windows.

    Yields:
        A noise seed, and mean squared errors: a row for each estimator, a column for all components together and one
        for each, and for recordings that are long enough ``AFTER``, of all components.
    """
    for number, windows in evaluation_windows(params, noise_seeds):
        compared = compare_with_limit(estimators, windows, params, device=device)
        table = compared.table["mse"].unstack("component")
        columns = compared.table.index.get_level_values("component").unique()
        scores = table.loc[list(estimators), columns]
        main = dict(contexts(windows.n_samples)).get(MAIN_CONTEXT) if params.of_recordings else None
        if main is not None:
            scores[AFTER] = compared.per_step.iloc[:, main].mean(axis=1)
        yield number, scores


@dataclass(frozen=True)
class Repetition:
    """Estimates of the same windows in requests of other sizes and orders.

    Attributes:
        difference: Largest difference from the first estimates, relative to the largest of them if that is above 1.
        milliseconds: Time of the fastest request of a single window; the others have waited for other processes.
    """

    difference: float
    milliseconds: float


def repeat_estimates(estimator: Estimator, inputs: Tensor, estimates: Tensor) -> Repetition:
    """Compute estimates again: in reverse order, then shuffled in requests of ``REPEATED_SIZES`` windows.

    Of recordings only the first ``REPEATED_SAMPLES`` samples are sent: estimates do not depend on later ones.

    Args:
        estimator: The estimator.
        inputs: (n_windows, n_samples, 1 + n_components), or (n_recordings, n_samples).
        estimates: Its estimates of them.
    """
    if inputs.dim() == 2:
        inputs, estimates = inputs[:, :REPEATED_SAMPLES].contiguous(), estimates[:, :REPEATED_SAMPLES]
    order = torch.from_numpy(random_stream(0, "repeat").permutation(len(inputs)))
    sizes, n_left = [], len(inputs)
    for size in (*REPEATED_SIZES, len(inputs)):
        sizes.append(min(size, n_left))
        n_left -= sizes[-1]
    differences, times = [], []
    for positions in (torch.arange(len(inputs)).flip(0), *torch.split(order, [size for size in sizes if size])):
        started = time.perf_counter()
        repeated = estimator(inputs[positions])
        if len(positions) == 1:
            times.append(time.perf_counter() - started)
        differences.append(float((repeated - estimates[positions]).abs().max()))
    scale = max(1.0, float(estimates.abs().max()))
    return Repetition(max(differences) / scale, 1000 * min(times))


def score_with_limit(networks: Mapping[str, nn.Module], params: Params) -> dict[str, Estimator]:
    """Return networks of one task, in evaluation mode, as estimators, with their limit if it is known."""
    known = limit_estimators(params)
    estimators: dict[str, Estimator] = {name: partial(estimate, network) for name, network in networks.items()}
    return estimators | ({LIMIT: known[LIMIT]} if known else {})


def summarize(errors: Mapping[int, pd.DataFrame]) -> FreshScores:
    """Average the scores of ``model`` and, if known, ``limit`` over realizations, as ``score_realizations`` yields."""
    tables = pd.concat(errors)
    overall = tables[OVERALL].unstack()
    columns = {"mse": overall[MODEL]}
    ratio = None
    if LIMIT in overall:
        limit = overall[LIMIT]
        columns |= {"limit_mse": limit, "mse_over_limit": overall[MODEL] / limit.where(limit >= ZERO_MSE)}
        ratio = ratio_interval(overall[MODEL].to_numpy(), limit.to_numpy())
    mse = overall[MODEL].to_numpy()
    mean, half = float(mse.mean()), half_width(mse)
    per_realization = pd.DataFrame(columns).rename_axis("noise_seed")
    return FreshScores(per_realization, tables.groupby(level=1, sort=False).mean(), (mean - half, mean + half), ratio)


def score_test_set(network: nn.Module, splits: Splits, params: Params, *, device: torch.device) -> Comparison:
    """Score a network, in evaluation mode and on ``device``, and its baselines on the test set."""
    estimator = partial(estimate, network)
    compared = compare_with_limit({MODEL: estimator} | baselines(params, splits), splits.test, params, device=device)
    if not isinstance(splits.test, Recordings):
        return compared
    return replace(compared, contexts=score_contexts(estimator, splits.test.to(device), params))


def baselines(params: Params, splits: Splits | None = None) -> dict[str, Estimator]:
    """Create the baselines of a filter of windows or of recordings, by name, in the order of a table.

    Those of windows need the data, which is generated or read if ``splits`` is None.
    """
    if params.of_recordings:
        return recording_baselines(params)
    return baseline_estimators(params, splits or Splits.from_params(params))
