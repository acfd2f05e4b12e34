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

LIMIT = "limit"  # the least error for a filter that sees as much as the one that is judged

MAX_STARTS = 20_000  # considered for one window; of longer signals only some
MAX_WORK = 5e9  # windows × starts × samples: some ten seconds of one processor core
MIN_WINDOWS, MAX_WINDOWS = 64, 20_000  # of an expectation, whatever the work
N_RESAMPLES = 10_000
CONFIDENCE = 0.95  # of every interval
N_RESIDUES = 8  # of the starts that are left out, to bound what that costs
CHUNK_SIZE = 2**23  # estimates in memory together

Array = NDArray[np.float64]


@dataclass(frozen=True)
class LimitEstimate:
    """Mean squared error of a limit.

    Attributes:
        mse: Over components and samples.
        per_frequency: For each component, (n_components,).
        per_step: For each position in the window, (n_samples,).
        standard_error: Of ``mse``, by chance of the windows and the noise in them; NaN where it cannot be told.
        per_block: For each block of neighbouring windows, (n_blocks,); empty in expectation.
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
        causal: From the samples so far.
        two_sided: From the whole window.
        n_windows: How many windows were scored.
        start_step: From one considered start to the next; 1: all of them.
        causal_excess: How much ``causal.mse`` may lie above the limit since only some starts were considered.
        two_sided_excess: The same for ``two_sided``.
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
    """What the best filter has to expect, over all starts and all noise.

    Windows spread evenly over the starts, each with fresh noise, are scored by the variance that their posterior
    leaves, which has the same mean as the squared error and scatters less.

    Of a signal with very many starts only every ``start_step``-th is considered. Such an estimator is one that a
    filter may use, so that its error is above the limit; one that is told which starts are left out has an error
    below it, since to know more never hurts. The difference bounds what thinning costs.

    Args:
        model: The signal model.
        window_length: Samples of a window.
        seed: Of the noise.
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
        for some in _chunks(starts, all_starts):
            clean = _clean(model, window_length, some)
            posterior = all_starts.posterior(_noisy(clean, model, random))
            causal.add(posterior.causal_variance)
            two_sided.add(posterior.two_sided_variance)
        return LimitEstimates(causal.mse(), two_sided.mse(), n_windows)
    return _thinned(model, all_starts, step, n_windows // 2, random)


def compute_window_limit(model: SignalModel, windows: SlidingWindows, *, work: float = MAX_WORK) -> LimitEstimates:
    """What the best filter reaches on the windows of given realizations.

    All windows are scored, or as many of them, spread evenly, as ``work`` allows. Neighbouring windows share their
    noise, so the standard error is that of the means over blocks of a second, or of a window where that is longer.

    Args:
        model: The signal model that the windows are of.
        windows: A full set or one that is spread over it, each start with all of its selectors, without noise of each
            window's own.
        work: Bound on windows × starts × samples.
    """
    step = _start_step(model, windows.n_samples)
    limit = MMSEEstimator.from_model(model, n_samples=windows.n_samples, start_step=step)
    n_starts = len(windows) // windows.n_components
    scored = np.linspace(0, n_starts - 1, min(n_starts, _n_affordable(limit, work))).round().astype(np.int64)
    positions = torch.from_numpy(scored) * windows.n_components
    of_block = windows.block_ids(positions).numpy()
    _, start, realization = (place.numpy() for place in windows.decode(positions))
    causal, two_sided = _Scores(), _Scores()
    for block in np.unique(of_block):
        here = of_block == block
        mixture = windows.mixtures[realization[here][0]].cpu()
        for some in _chunks(start[here], limit):
            posterior = limit.posterior(mixture.unfold(0, windows.n_samples, windows.stride)[some])
            targets = windows.components.unfold(1, windows.n_samples, windows.stride)[:, some].transpose(0, 1).cpu()
            causal.add((posterior.causal - targets).square())
            two_sided.add((posterior.two_sided - targets).square())
        causal.end_block()
        two_sided.end_block()
    excess = (0.0, 0.0)
    if step > 1:
        in_expectation = compute_expected_limit(model, window_length=windows.n_samples, work=work)
        excess = (in_expectation.causal_excess, in_expectation.two_sided_excess)
    return LimitEstimates(causal.mse(), two_sided.mse(), causal.n_windows, step, *excess)


def _start_step(model: SignalModel, window_length: int) -> int:
    return math.ceil((model.n_samples - window_length + 1) / MAX_STARTS)


def _n_affordable(limit: MMSEEstimator, work: float) -> int:
    """How many windows may be scored."""
    return max(MIN_WINDOWS, int(work / (limit.n_starts * limit.n_samples)))


def _thinned(
    model: SignalModel, limit: MMSEEstimator, step: int, n_windows: int, random: np.random.Generator
) -> LimitEstimates:
    above, below = (_Scores(), _Scores()), (_Scores(), _Scores())
    for residue in np.linspace(0, step - 1, min(step, N_RESIDUES)).round().astype(np.int64):
        told = MMSEEstimator.from_model(model, n_samples=limit.n_samples, first_start=int(residue), start_step=step)
        chosen = np.linspace(0, told.n_starts - 1, max(1, n_windows // N_RESIDUES)).round().astype(np.int64)
        for some in _chunks(residue + step * chosen, limit):
            targets = _clean(model, limit.n_samples, some)
            mixtures = _noisy(targets, model, random)
            untold = limit.posterior(mixtures)
            above[0].add((untold.causal - targets).square())
            above[1].add((untold.two_sided - targets).square())
            knowing = told.posterior(mixtures)
            below[0].add(knowing.causal_variance)
            below[1].add(knowing.two_sided_variance)
    causal, two_sided = (scores.mse() for scores in above)
    excess = [max(0.0, high.mse - low.mse().mse) for high, low in zip((causal, two_sided), below, strict=True)]
    return LimitEstimates(causal, two_sided, above[0].n_windows, step, *excess)


class _Scores:
    """Sums over windows, and the means of blocks of them; without ``end_block`` each window is a block of its own."""

    def __init__(self) -> None:
        self._sum: Array | float = 0.0
        self.n_windows = 0
        self._windows: list[float] = []
        self._blocks: list[float] = []

    def add(self, errors: Tensor) -> None:
        """Squared errors of some windows, (n_windows, n_components, n_samples)."""
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
    """The starts, as many at a time as memory should hold the estimates of."""
    at_once = max(1, CHUNK_SIZE // (len(limit.components) * limit.n_samples))
    yield from np.array_split(starts, math.ceil(len(starts) / at_once))


def _clean(model: SignalModel, window_length: int, starts: NDArray[np.int64]) -> Tensor:
    """The clean components of windows, (n_windows, n_components, n_samples)."""
    clean = model.clean(starts[:, None] + np.arange(window_length))
    return torch.from_numpy(clean).float().transpose(0, 1)


def _noisy(clean: Tensor, model: SignalModel, random: np.random.Generator) -> Tensor:
    """Mixtures of clean components with fresh noise, (n_windows, n_samples)."""
    noise = torch.from_numpy(random.standard_normal((len(clean), clean.shape[2]), dtype=np.float32))
    return clean.mean(dim=1) + model.noise_std * noise


def ratio_interval(
    per_block: pd.DataFrame, name: str, reference: str, *, confidence: float = CONFIDENCE, seed: int = 0
) -> tuple[float, float]:
    """Interval of the ratio of two mean squared errors on the same windows, by resampling blocks of them.

    Args:
        per_block: Mean squared error of each block of neighbouring windows, a row for each extractor.
        name: The row above the line.
        reference: The row below.
        confidence: Share of such intervals that hold the truth.
        seed: Of the resampling.

    Returns:
        Its ends; NaN where there are fewer than two blocks, or nothing is left of the reference in one of them.

    Source: B. Efron and R. J. Tibshirani, "An Introduction to the Bootstrap", 1993, chapters 8 and 13.
    """
    pair = per_block.loc[[name, reference]].to_numpy()
    n_blocks = pair.shape[1]
    if n_blocks < 2 or not (pair[1] > 0).all():
        return math.nan, math.nan
    drawn = random_stream(seed, "bootstrap").integers(n_blocks, size=(N_RESAMPLES, n_blocks))
    above, below = (of_row[drawn].mean(axis=1) for of_row in pair)
    low, high = np.quantile(above / below, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


VERSION = 3  # of the computation; whatever changes its results raises it


def expected_limit(model: SignalModel, *, window_length: int, work: float = MAX_WORK) -> LimitEstimates:
    """``limits.expected``, computed once for a signal model and a window length."""
    facts = {"model": asdict(model), "window_length": window_length, "work": work}
    return _cached(facts, lambda: compute_expected_limit(model, window_length=window_length, work=work))


def window_limit(model: SignalModel, windows: SlidingWindows) -> LimitEstimates:
    """``limits.of_windows``, computed once for a signal model and its windows."""
    facts = {"model": asdict(model), "windows": windows.digest()}
    return _cached(facts, lambda: compute_window_limit(model, windows))


def validation_limit(params: Params, validation: WindowDataset) -> ValidationLimit | None:
    """The limit on validation windows, for a filter like the one that is trained.

    Returns:
        None where nobody knows it: the signal model is unknown, the signal too long, or the windows do not cover the
        starts evenly, so that those which the filter has to expect are others.
    """
    if not (known := limit_estimators(params)) or params.data.split == "blocked":
        return None
    if isinstance(validation, SlidingWindows) and params.data.split == "independent":
        scores = window_limit(SignalModel.from_params(params.signals), validation)
        of_side = scores.two_sided if params.model.bidirectional else scores.causal
        return ValidationLimit(of_side.mse, tuple(of_side.per_block.tolist()))
    frequencies_hz = params.signals.frequencies_hz
    found = compare({LIMIT: known[LIMIT]}, validation, frequencies_hz=frequencies_hz, device=torch.device("cpu"))
    blocks = () if found.per_block is None else tuple(float(value) for value in found.per_block.to_numpy()[0])
    return ValidationLimit(float(found.table["mse"][LIMIT, OVERALL]), blocks)


def expected_limit_mse(params: Params) -> float | None:
    """The least error that a filter like the one that is trained can expect; None where nobody knows it."""
    if params.data.data_file is not None:
        return None
    scores = expected_limit(SignalModel.from_params(params.signals), window_length=params.data.window_length)
    if scores.start_step > 1:  # of so long a signal it is known between two bounds; `freqfilter limit` states them
        return None
    return (scores.two_sided if params.model.bidirectional else scores.causal).mse


def _cached(facts: dict[str, Any], compute: Callable[[], LimitEstimates]) -> LimitEstimates:
    digest = hashlib.sha256(json.dumps({"version": VERSION, **facts}, sort_keys=True).encode()).hexdigest()
    path = Path(platformdirs.user_cache_dir("freqfilter")) / "limits" / f"{digest}.json"
    if (found := _read(path)) is not None:
        return found
    scores = compute()
    try:
        with atomic_write(path) as file:
            file.write(json.dumps(asdict(scores), default=np.ndarray.tolist).encode())
    except UserError:
        pass  # a cache that cannot be written costs time, nothing else
    return scores


def _read(path: Path) -> LimitEstimates | None:
    """What stands in a file; None where it is missing or damaged."""
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        for side in ("causal", "two_sided"):
            of_side = {field.name: stored[side][field.name] for field in fields(LimitEstimate)}
            for name in ("per_frequency", "per_step", "per_block"):
                of_side[name] = np.array(of_side[name], dtype=np.float64)
            stored[side] = LimitEstimate(**of_side)
        return LimitEstimates(**stored)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def limit_estimators(params: Params) -> dict[str, Estimator]:
    """The limit, and that of the other view of the window; nothing where it is unknown or takes too long."""
    model, n_samples = SignalModel.from_params(params.signals), params.data.window_length
    if params.data.data_file is not None or model.n_samples - n_samples + 1 > MAX_STARTS:
        return {}
    limit = WindowMMSE(MMSEEstimator.from_model(model, n_samples=n_samples), two_sided=params.model.bidirectional)
    return {LIMIT: limit, f"{LIMIT}_{other_view(params)}": limit.other_view()}


def other_view(params: Params) -> str:
    """The view of the window that the filter does not have: ``causal`` or ``two_sided``."""
    return "causal" if params.model.bidirectional else "two_sided"


@dataclass(frozen=True)
class ValidationLimit:
    """The limit on certain windows.

    Attributes:
        mse: Over all of them.
        block_ids: For each block of neighbouring windows.
    """

    mse: float
    blocks: tuple[float, ...]
