"""The limit: the least mean squared error that any filter can expect (Bayes risk), with its standard error."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import platformdirs
import torch
from numpy.typing import NDArray
from torch import Tensor

from freqfilter.atomic_io import atomic_write
from freqfilter.config import Params
from freqfilter.data.posterior import MMSEEstimator, WindowMMSE
from freqfilter.data.signal_model import SignalModel, random_stream
from freqfilter.data.windows import SlidingWindows, WindowDataset
from freqfilter.errors import UserError
from freqfilter.evaluation.metrics import OVERALL, Estimator, compare

LIMIT = "limit"  # for the view of the filter that is evaluated, causal or bidirectional

MAX_STARTS = 20_000  # considered for one window; thinned in longer signals
MAX_WORK = 5e9  # windows × starts × samples: some ten seconds of one processor core
MIN_WINDOWS, MAX_WINDOWS = 64, 20_000  # of an expectation, at any work
N_RESAMPLES = 10_000
CONFIDENCE = 0.95  # of every interval
N_RESIDUES = 8  # of the thinned starts, to bound the effect of thinning
CHUNK_SIZE = 2**23  # estimates in memory at a time

Array = NDArray[np.float64]


@dataclass(frozen=True)
class LimitEstimate:
    """Mean squared error of a limit.

    Attributes:
        mse: Mean over components and samples.
        per_frequency: For each component, (n_components,).
        per_step: For each position in the window, (n_samples,).
        standard_error: Standard error of ``mse``, over windows and their noise; NaN if there is one block or window.
        per_block: For each block of neighbouring windows, (n_blocks,); empty for an expectation.
    """

    mse: float
    per_frequency: Array
    per_step: Array
    standard_error: float
    per_block: Array


@dataclass(frozen=True)
class LimitEstimates:
    """The limits of a signal model.

    Attributes:
        causal: Limit for estimates from the samples so far.
        two_sided: Limit for estimates from the whole window.
        n_windows: Number of windows scored.
        start_step: Step between considered starts; 1 for all of them.
        causal_excess: Upper bound of ``causal.mse`` minus the limit, due to thinned starts.
        two_sided_excess: Upper bound of ``two_sided.mse`` minus the limit.
    """

    causal: LimitEstimate
    two_sided: LimitEstimate
    n_windows: int
    start_step: int = 1
    causal_excess: float = 0.0
    two_sided_excess: float = 0.0


def compute_expected_limit(
    model: SignalModel, *, window_length: int, seed: int = 0, work: float = MAX_WORK
) -> LimitEstimates:
    """Compute the expected limit over all window starts and the noise.

    Evenly spaced windows, each with fresh noise, are scored by their posterior variance, which has the same
    expectation as the squared error and a smaller variance.

    In a signal with more than ``MAX_STARTS`` starts only every ``start_step``-th is considered. The error of this
    estimator is above the limit; that of an estimator that knows the residue of the true start is below it, since
    more information cannot increase the error. The difference bounds the effect of thinning.

    Args:
        model: The signal model.
        window_length: Samples of a window.
        seed: Seed of the noise.
        work: Bound on windows × starts × samples.
    """
    signal_starts = model.n_samples - window_length + 1
    step = _start_step(model, window_length)
    all_starts = MMSEEstimator.from_model(model, n_samples=window_length, start_step=step)
    n_windows = min(_n_affordable(all_starts, work), MAX_WINDOWS)
    random = random_stream(seed, "limit", window_length)
    if step == 1:
        starts = np.linspace(0, signal_starts - 1, n_windows).round().astype(np.int64)
        causal, two_sided = _Scores(), _Scores()
        for chunk in _chunks(starts, all_starts):
            clean = _clean(model, window_length, chunk)
            posterior = all_starts.posterior(_noisy(clean, model, random))
            causal.add(posterior.causal_variance)
            two_sided.add(posterior.two_sided_variance)
        return LimitEstimates(causal.mse(), two_sided.mse(), n_windows)
    return _thinned(model, all_starts, step, n_windows // 2, random)


def compute_window_limit(model: SignalModel, windows: SlidingWindows, *, work: float = MAX_WORK) -> LimitEstimates:
    """Compute the limit on the windows of given realizations.

    All windows are scored, or as many evenly spaced ones as ``work`` allows. Neighbouring windows share their
    noise, so the standard error is that of the means over blocks of a second, or of a window where that is longer.

    Args:
        model: The signal model of the windows.
        windows: All windows or an evenly spaced subset, each start with all of its selectors, without noise added to
            single windows.
        work: Bound on windows × starts × samples.
    """
    step = _start_step(model, windows.n_samples)
    limit = MMSEEstimator.from_model(model, n_samples=windows.n_samples, start_step=step)
    n_starts = len(windows) // windows.n_components
    scored = np.linspace(0, n_starts - 1, min(n_starts, _n_affordable(limit, work))).round().astype(np.int64)
    positions = torch.from_numpy(scored) * windows.n_components
    block_ids = windows.block_ids(positions).numpy()
    _, start, realization = (index.numpy() for index in windows.decode(positions))
    causal, two_sided = _Scores(), _Scores()
    for block_id in np.unique(block_ids):
        in_block = block_ids == block_id
        mixture = windows.mixtures[realization[in_block][0]].cpu()
        for chunk in _chunks(start[in_block], limit):
            posterior = limit.posterior(mixture.unfold(0, windows.n_samples, windows.stride)[chunk])
            targets = windows.components.unfold(1, windows.n_samples, windows.stride)[:, chunk].transpose(0, 1).cpu()
            causal.add((posterior.causal - targets).square())
            two_sided.add((posterior.two_sided - targets).square())
        causal.end_block()
        two_sided.end_block()
    excess = (0.0, 0.0)
    if step > 1:
        expected = compute_expected_limit(model, window_length=windows.n_samples, work=work)
        excess = (expected.causal_excess, expected.two_sided_excess)
    return LimitEstimates(causal.mse(), two_sided.mse(), causal.n_windows, step, *excess)


def _start_step(model: SignalModel, window_length: int) -> int:
    return math.ceil((model.n_samples - window_length + 1) / MAX_STARTS)


def _n_affordable(limit: MMSEEstimator, work: float) -> int:
    """Number of windows that ``work`` allows."""
    return max(MIN_WINDOWS, int(work / (limit.n_starts * limit.n_samples)))


def _thinned(
    model: SignalModel, limit: MMSEEstimator, step: int, n_windows: int, random: np.random.Generator
) -> LimitEstimates:
    upper, lower = (_Scores(), _Scores()), (_Scores(), _Scores())
    for residue in np.linspace(0, step - 1, min(step, N_RESIDUES)).round().astype(np.int64):
        oracle = MMSEEstimator.from_model(model, n_samples=limit.n_samples, first_start=int(residue), start_step=step)
        indices = np.linspace(0, oracle.n_starts - 1, max(1, n_windows // N_RESIDUES)).round().astype(np.int64)
        for chunk in _chunks(residue + step * indices, limit):
            targets = _clean(model, limit.n_samples, chunk)
            mixtures = _noisy(targets, model, random)
            posterior = limit.posterior(mixtures)
            upper[0].add((posterior.causal - targets).square())
            upper[1].add((posterior.two_sided - targets).square())
            oracle_posterior = oracle.posterior(mixtures)
            lower[0].add(oracle_posterior.causal_variance)
            lower[1].add(oracle_posterior.two_sided_variance)
    causal, two_sided = (scores.mse() for scores in upper)
    excess = [max(0.0, high.mse - low.mse().mse) for high, low in zip((causal, two_sided), lower, strict=True)]
    return LimitEstimates(causal, two_sided, upper[0].n_windows, step, *excess)


class _Scores:
    """Sums over windows, and means over blocks of windows; without ``end_block`` each window is a block."""

    def __init__(self) -> None:
        self._sum: Array | float = 0.0
        self.n_windows = 0
        self._windows: list[float] = []
        self._blocks: list[float] = []

    def add(self, errors: Tensor) -> None:
        """Add squared errors, (n_windows, n_components, n_samples)."""
        self._sum = self._sum + errors.double().sum(dim=0).numpy()
        self.n_windows += len(errors)
        self._windows += errors.double().mean(dim=(1, 2)).tolist()

    def end_block(self) -> None:
        self._blocks.append(float(np.mean(self._windows)))
        self._windows = []

    def mse(self) -> LimitEstimate:
        mean = np.asarray(self._sum) / self.n_windows
        values = self._blocks or self._windows
        error = float(np.std(values, ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan
        return LimitEstimate(float(mean.mean()), mean.mean(axis=1), mean.mean(axis=0), error, np.array(self._blocks))


def _chunks(starts: NDArray[np.int64], limit: MMSEEstimator) -> Iterator[NDArray[np.int64]]:
    """Split the starts into chunks of at most ``CHUNK_SIZE`` estimates."""
    n_starts = max(1, CHUNK_SIZE // (len(limit.components) * limit.n_samples))
    yield from np.array_split(starts, math.ceil(len(starts) / n_starts))


def _clean(model: SignalModel, window_length: int, starts: NDArray[np.int64]) -> Tensor:
    """Return the clean components of windows, (n_windows, n_components, n_samples)."""
    clean = model.clean(starts[:, None] + np.arange(window_length))
    return torch.from_numpy(clean).float().transpose(0, 1)


def _noisy(clean: Tensor, model: SignalModel, random: np.random.Generator) -> Tensor:
    """Return mixtures of clean components with fresh noise, (n_windows, n_samples)."""
    noise = torch.from_numpy(random.standard_normal((len(clean), clean.shape[2]), dtype=np.float32))
    return clean.mean(dim=1) + model.noise_std * noise


def ratio_interval(
    per_block: pd.DataFrame, name: str, reference: str, *, confidence: float = CONFIDENCE, seed: int = 0
) -> tuple[float, float]:
    """Compute the bootstrap interval of the ratio of two mean squared errors, resampling blocks of windows.

    Args:
        per_block: Mean squared error of each block of neighbouring windows, a row for each estimator.
        name: Row of the numerator.
        reference: Row of the denominator.
        confidence: Confidence level.
        seed: Seed of the resampling.

    Returns:
        Its ends; NaN if there are fewer than two blocks, or the reference is zero in one of them.

    Source: B. Efron and R. J. Tibshirani, "An Introduction to the Bootstrap", 1993, chapters 8 and 13.
    """
    pair = per_block.loc[[name, reference]].to_numpy()
    n_blocks = pair.shape[1]
    if n_blocks < 2 or not (pair[1] > 0).all():
        return math.nan, math.nan
    drawn = random_stream(seed, "bootstrap").integers(n_blocks, size=(N_RESAMPLES, n_blocks))
    numerator, denominator = (row[drawn].mean(axis=1) for row in pair)
    low, high = np.quantile(numerator / denominator, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


VERSION = 3  # of the computation; increase it with every change of the results


def expected_limit(model: SignalModel, *, window_length: int, work: float = MAX_WORK) -> LimitEstimates:
    """Return ``compute_expected_limit`` from a cache on disk, by signal model and window length."""
    key = {"model": asdict(model), "window_length": window_length, "work": work}
    return _cached(key, lambda: compute_expected_limit(model, window_length=window_length, work=work))


def window_limit(model: SignalModel, windows: SlidingWindows) -> LimitEstimates:
    """Return ``compute_window_limit`` from a cache on disk, by signal model and windows."""
    key = {"model": asdict(model), "windows": windows.digest()}
    return _cached(key, lambda: compute_window_limit(model, windows))


def validation_limit(params: Params, validation: WindowDataset) -> ValidationLimit | None:
    """Return the limit on the validation windows, for the view of the trained filter.

    Returns:
        None if it is unknown: there is no signal model, the signal is too long, or the windows do not cover the starts
        evenly and so do not represent the expectation.
    """
    if not (known := limit_estimators(params)) or params.data.split == "blocked":
        return None
    if isinstance(validation, SlidingWindows) and params.data.split == "independent":
        scores = window_limit(SignalModel.from_params(params.signals), validation)
        estimate = scores.two_sided if params.model.bidirectional else scores.causal
        return ValidationLimit(estimate.mse, tuple(estimate.per_block.tolist()))
    frequencies_hz = params.signals.frequencies_hz
    compared = compare({LIMIT: known[LIMIT]}, validation, frequencies_hz=frequencies_hz, device=torch.device("cpu"))
    blocks = () if compared.per_block is None else tuple(float(value) for value in compared.per_block.to_numpy()[0])
    return ValidationLimit(float(compared.table["mse"][LIMIT, OVERALL]), blocks)


def expected_limit_mse(params: Params) -> float | None:
    """Return the expected limit for the view of the trained filter; None if it is unknown."""
    if params.data.data_file is not None:
        return None
    scores = expected_limit(SignalModel.from_params(params.signals), window_length=params.data.window_length)
    if scores.start_step > 1:  # only bounds are known, which `freqfilter limit` prints
        return None
    return (scores.two_sided if params.model.bidirectional else scores.causal).mse


def _cached(key: dict[str, Any], compute: Callable[[], LimitEstimates]) -> LimitEstimates:
    digest = hashlib.sha256(json.dumps({"version": VERSION, **key}, sort_keys=True).encode()).hexdigest()
    path = Path(platformdirs.user_cache_dir("freqfilter")) / "limits" / f"{digest}.json"
    if (cached := _read(path)) is not None:
        return cached
    scores = compute()
    try:
        with atomic_write(path) as file:
            file.write(json.dumps(asdict(scores), default=np.ndarray.tolist).encode())
    except UserError:
        pass  # without a cache the next run computes it again
    return scores


def _read(path: Path) -> LimitEstimates | None:
    """Read a cached limit; None if the file is missing or corrupt."""
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        for side in ("causal", "two_sided"):
            values = {field.name: stored[side][field.name] for field in fields(LimitEstimate)}
            for name in ("per_frequency", "per_step", "per_block"):
                values[name] = np.array(values[name], dtype=np.float64)
            stored[side] = LimitEstimate(**values)
        return LimitEstimates(**stored)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def limit_estimators(params: Params) -> dict[str, Estimator]:
    """Create the limit for both views of the window; empty if it is unknown or the signal is too long."""
    model, n_samples = SignalModel.from_params(params.signals), params.data.window_length
    if params.data.data_file is not None or model.n_samples - n_samples + 1 > MAX_STARTS:
        return {}
    limit = WindowMMSE(MMSEEstimator.from_model(model, n_samples=n_samples), two_sided=params.model.bidirectional)
    return {LIMIT: limit, f"{LIMIT}_{other_view(params)}": limit.other_view()}


def other_view(params: Params) -> str:
    """Return the other view of the window than the filter's: ``causal`` or ``two_sided``."""
    return "causal" if params.model.bidirectional else "two_sided"


@dataclass(frozen=True)
class ValidationLimit:
    """Limit on the validation windows.

    Attributes:
        mse: Mean over all windows.
        blocks: For each block of neighbouring windows.
    """

    mse: float
    blocks: tuple[float, ...]
