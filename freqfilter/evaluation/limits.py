"""The limit: the least mean squared error that any filter can expect (Bayes risk), with its standard error."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import platformdirs
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

from freqfilter.atomic_io import atomic_write
from freqfilter.config import Params
from freqfilter.data.kalman import KalmanFilter, RecordingEstimator
from freqfilter.data.posterior import MIN_NOISE_STD, MMSEEstimator, WindowMMSE
from freqfilter.data.recordings import RecordingModel
from freqfilter.data.signal_model import SignalModel, random_stream
from freqfilter.data.windows import Dataset, SlidingWindows
from freqfilter.errors import UserError
from freqfilter.evaluation.metrics import MEASURES, OVERALL, Comparison, Estimator, compare

LIMIT = "limit"  # for the view of the filter that is evaluated, causal or bidirectional

MAX_LIMIT_SAMPLES = 10_000  # of a recording; its limit is stationary, or falls with their number, long before
MAX_STARTS = 20_000  # considered for one window; thinned in longer signals
MAX_WORK = 5e9  # windows × starts × samples: some ten seconds of one processor core
MIN_WINDOWS, MAX_WINDOWS = 64, 20_000  # of an expectation, at any work
N_RESIDUES = 8  # of the thinned starts, to bound the effect of thinning
CHUNK_SIZE = 2**23  # estimates in memory at a time
VERSION = 4  # of the computation; increase it with every change of the results

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


class ValidationLimit(NamedTuple):
    """Limit on the validation windows: the mean over all of them, and that over each block of neighbouring windows."""

    mse: float
    blocks: tuple[float, ...]


def compute_expected_limit(
    model: SignalModel, *, window_length: int, seed: int = 0, work: float = MAX_WORK
) -> LimitEstimates:
    """Compute the expected limit over all window starts and the noise.

    Evenly spaced windows, each with fresh noise, are scored by their posterior variance, which has the same
    expectation as the squared error and a smaller variance.

    In a signal with more than ``MAX_STARTS`` starts only every ``start_step``-th is considered. The error of this
    estimator is above the limit; that of an estimator that knows the residue of the true start is below it, since
    more information cannot increase the error. The difference bounds the effect of thinning. ``work`` is the maximum
    of windows × starts × samples.
    """
    step = _start_step(model, window_length)
    limit = MMSEEstimator.from_model(model, n_samples=window_length, start_step=step)
    n_windows = min(_n_affordable(limit, work), MAX_WINDOWS)
    random = random_stream(seed, "limit", window_length)
    if step > 1:
        return _thinned(model, limit, step, n_windows // 2, random)
    scores = _Scores()
    for _, mixtures in _fresh_windows(model, limit, _evenly(model.n_samples - window_length + 1, n_windows), random):
        posterior = limit.posterior(mixtures)
        scores.add(posterior.causal_variance, posterior.two_sided_variance)
    return LimitEstimates(*scores.mse(), n_windows)


def compute_window_limit(model: SignalModel, windows: SlidingWindows, *, work: float = MAX_WORK) -> LimitEstimates:
    """Compute the limit on the windows of given realizations.

    All windows are scored, or as many evenly spaced ones as ``work`` allows. Neighbouring windows share their
    noise, so the standard error is that of the means over blocks of a second, or of four windows where that is longer.

    Args:
        model: The signal model of the windows.
        windows: All windows or an evenly spaced subset, each start with all of its selectors, without noise added to
            single windows.
        work: As in ``compute_expected_limit``.
    """
    step = _start_step(model, windows.n_samples)
    limit = MMSEEstimator.from_model(model, n_samples=windows.n_samples, start_step=step)
    n_starts = len(windows) // windows.n_components
    scored = _evenly(n_starts, min(n_starts, _n_affordable(limit, work)))
    positions = torch.from_numpy(scored) * windows.n_components
    block_ids = windows.block_ids(positions).numpy()
    _, start, realization = (index.numpy() for index in windows.decode(positions))
    scores = _Scores()
    for block_id in np.unique(block_ids):
        in_block = block_ids == block_id
        mixture = windows.mixtures[realization[in_block][0]].cpu()
        for chunk in _chunks(start[in_block], limit):
            posterior = limit.posterior(mixture.unfold(0, windows.n_samples, windows.stride)[chunk])
            targets = windows.components.unfold(1, windows.n_samples, windows.stride)[:, chunk].transpose(0, 1).cpu()
            scores.add((posterior.causal - targets).square(), (posterior.two_sided - targets).square())
        scores.end_block()
    excess = (0.0, 0.0)
    if step > 1:
        expected = compute_expected_limit(model, window_length=windows.n_samples, work=work)
        excess = (expected.causal_excess, expected.two_sided_excess)
    return LimitEstimates(*scores.mse(), len(scored), step, *excess)


def _start_step(model: SignalModel, window_length: int) -> int:
    return math.ceil((model.n_samples - window_length + 1) / MAX_STARTS)


def _n_affordable(limit: MMSEEstimator, work: float) -> int:
    """Number of windows that ``work`` allows."""
    return max(MIN_WINDOWS, int(work / (limit.n_starts * limit.n_samples)))


def _evenly(n_starts: int, n_windows: int) -> NDArray[np.int64]:
    """Return ``n_windows`` indices, spread evenly over those below ``n_starts``."""
    return np.linspace(0, n_starts - 1, n_windows).round().astype(np.int64)


def _thinned(
    model: SignalModel, limit: MMSEEstimator, step: int, n_windows: int, random: np.random.Generator
) -> LimitEstimates:
    upper, lower = _Scores(), _Scores()
    for residue in _evenly(step, min(step, N_RESIDUES)):
        oracle = MMSEEstimator.from_model(model, n_samples=limit.n_samples, first_start=int(residue), start_step=step)
        starts = residue + step * _evenly(oracle.n_starts, max(1, n_windows // N_RESIDUES))
        for targets, mixtures in _fresh_windows(model, limit, starts, random):
            posterior, known_residue = limit.posterior(mixtures), oracle.posterior(mixtures)
            upper.add((posterior.causal - targets).square(), (posterior.two_sided - targets).square())
            lower.add(known_residue.causal_variance, known_residue.two_sided_variance)
    excess = [max(0.0, high.mse - low.mse) for high, low in zip(upper.mse(), lower.mse(), strict=True)]
    return LimitEstimates(*upper.mse(), upper.n_windows, step, *excess)


class _Scores:
    """Sums over windows, and means over blocks of windows, of the causal and the two-sided limit.

    Without ``end_block`` each window is a block.
    """

    def __init__(self) -> None:
        self.n_windows = 0
        self._sums: list[Array | float] = [0.0, 0.0]
        self._windows: list[list[float]] = [[], []]
        self._blocks: list[list[float]] = [[], []]

    def add(self, *errors: Tensor) -> None:
        """Add squared errors or variances of both limits, (n_windows, n_components, n_samples)."""
        self.n_windows += len(errors[0])
        for side, values in enumerate(errors):
            self._sums[side] += values.double().sum(dim=0).numpy()
            self._windows[side] += values.double().mean(dim=(1, 2)).tolist()

    def end_block(self) -> None:
        for windows, blocks in zip(self._windows, self._blocks, strict=True):
            blocks.append(float(np.mean(windows)))
            windows.clear()

    def mse(self) -> tuple[LimitEstimate, LimitEstimate]:
        return self._mse(0), self._mse(1)

    def _mse(self, side: int) -> LimitEstimate:
        mean, blocks = np.asarray(self._sums[side]) / self.n_windows, self._blocks[side]
        values = blocks or self._windows[side]
        error = float(stats.sem(values)) if len(values) > 1 else math.nan
        return LimitEstimate(float(mean.mean()), mean.mean(axis=1), mean.mean(axis=0), error, np.array(blocks))


def _fresh_windows(
    model: SignalModel, limit: MMSEEstimator, starts: NDArray[np.int64], random: np.random.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield clean components and mixtures with fresh noise of the windows at ``starts``, chunk by chunk."""
    for chunk in _chunks(starts, limit):
        samples = model.clean(chunk[:, None] + np.arange(limit.n_samples))
        clean = torch.from_numpy(samples).float().transpose(0, 1)
        noise = torch.from_numpy(random.standard_normal((len(clean), limit.n_samples), dtype=np.float32))
        yield clean, clean.mean(dim=1) + model.noise_std * noise


def _chunks(starts: NDArray[np.int64], limit: MMSEEstimator) -> list[NDArray[np.int64]]:
    """Split the starts into chunks of at most ``CHUNK_SIZE`` estimates."""
    n_starts = max(1, CHUNK_SIZE // (len(limit.components) * limit.n_samples))
    return np.array_split(starts, math.ceil(len(starts) / n_starts))


def expected_limit(model: SignalModel, *, window_length: int, work: float = MAX_WORK) -> LimitEstimates:
    """Return ``compute_expected_limit`` from a cache on disk, by signal model and window length."""
    if model.noise_std < MIN_NOISE_STD:
        return _zero(model, window_length, per_block=np.zeros(0))
    key = {"model": asdict(model), "window_length": window_length, "work": work}
    return _cached(key, lambda: compute_expected_limit(model, window_length=window_length, work=work))


def window_limit(model: SignalModel, windows: SlidingWindows) -> LimitEstimates:
    """Return ``compute_window_limit`` from a cache on disk, by signal model and windows."""
    if model.noise_std < MIN_NOISE_STD:
        n_blocks = len(np.unique(windows.block_ids(torch.arange(len(windows))).numpy()))
        return _zero(model, windows.n_samples, per_block=np.zeros(n_blocks))
    key = {"model": asdict(model), "windows": windows.digest()}
    return _cached(key, lambda: compute_window_limit(model, windows))


def _zero(model: SignalModel, window_length: int, *, per_block: Array) -> LimitEstimates:
    """Limits without noise: the samples determine the components, and a computed error would be rounding."""
    zero = LimitEstimate(0.0, np.zeros(len(model.components)), np.zeros(window_length), 0.0, per_block)
    return LimitEstimates(zero, zero, n_windows=model.n_samples - window_length + 1)


def recording_limits(model: RecordingModel, n_samples: int) -> LimitEstimates:
    """Compute the expected error of the Kalman filter and smoother at each sample of a recording.

    With Rayleigh amplitudes it is the limit, exactly; with fixed ones that of the best linear filter.
    """
    kalman = KalmanFilter(model)
    smoothed = kalman.smooth(np.zeros((0, n_samples))).variances
    return LimitEstimates(_exact(kalman.variances(n_samples)), _exact(smoothed), n_windows=1)


def _exact(variances: Array) -> LimitEstimate:
    """Limit with these expected errors, (n_samples, n_components)."""
    return LimitEstimate(float(variances.mean()), variances.mean(axis=0), variances.mean(axis=1), 0.0, np.zeros(0))


def compare_with_limit(
    estimators: Mapping[str, Estimator], windows: Dataset, params: Params, *, device: torch.device
) -> Comparison:
    """Score estimators as ``compare`` does; without noise the errors of the limits are zero, not their rounding."""
    compared = compare(estimators, windows, frequencies_hz=params.signals.frequencies_hz, device=device)
    if not (params.data.data_file or params.of_recordings) and params.signals.noise_std < MIN_NOISE_STD:
        rows = [name for name in (LIMIT, f"{LIMIT}_{other_view(params)}") if name in estimators]
        compared.table.loc[rows, list(MEASURES)] = (0.0, 0.0, 0.0, 1.0, 1.0, math.inf)
        for errors in (compared.per_step, compared.per_block):
            if errors is not None:
                errors.loc[rows] = 0.0
    return compared


def validation_limit(params: Params, validation: Dataset) -> ValidationLimit | None:
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
    compared = compare_with_limit({LIMIT: known[LIMIT]}, validation, params, device=torch.device("cpu"))
    blocks = () if compared.per_block is None else tuple(float(value) for value in compared.per_block.to_numpy()[0])
    return ValidationLimit(float(compared.table["mse"][LIMIT, OVERALL]), blocks)


def expected_limit_mse(params: Params) -> float | None:
    """Return the expected limit for the view of the trained filter; None if it is unknown."""
    if params.data.data_file is not None:
        return None
    if params.of_recordings:
        kalman = KalmanFilter(RecordingModel.from_params(params.signals))
        return float(kalman.variances(params.signals.n_samples).mean()) if params.signals.gaussian else None
    scores = expected_limit(SignalModel.from_params(params.signals), window_length=params.data.window_length)
    if scores.start_step > 1:  # only bounds are known, which `freqfilter limit` prints
        return None
    return (scores.two_sided if params.model.bidirectional else scores.causal).mse


def _cached(key: dict[str, Any], compute: Callable[[], LimitEstimates]) -> LimitEstimates:
    digest = hashlib.sha256(json.dumps({"version": VERSION, **key}, sort_keys=True).encode()).hexdigest()
    path = Path(platformdirs.user_cache_dir("freqfilter")) / "limits" / f"{digest}.json"
    with suppress(OSError, ValueError, KeyError, TypeError):  # the file is missing or corrupt
        stored = json.loads(path.read_text(encoding="utf-8"))
        for side in ("causal", "two_sided"):
            for name in ("per_frequency", "per_step", "per_block"):
                stored[side][name] = np.array(stored[side][name], dtype=np.float64)
            stored[side] = LimitEstimate(**stored[side])
        return LimitEstimates(**stored)
    scores = compute()
    with suppress(UserError), atomic_write(path) as file:  # without a cache the next run computes it again
        file.write(json.dumps(asdict(scores), default=np.ndarray.tolist).encode())
    return scores


def limit_estimators(params: Params) -> dict[str, Estimator]:
    """Create the limit for both views of the window; empty if it is unknown or the signal is too long."""
    if params.of_recordings:
        if not params.signals.gaussian:
            return {}
        kalman = KalmanFilter(RecordingModel.from_params(params.signals))
        return {
            LIMIT: RecordingEstimator(kalman),
            f"{LIMIT}_{other_view(params)}": RecordingEstimator(kalman, two_sided=True),
        }
    model, n_samples = SignalModel.from_params(params.signals), params.data.window_length
    if params.data.data_file is not None or model.n_samples - n_samples + 1 > MAX_STARTS:
        return {}
    limit = WindowMMSE(MMSEEstimator.from_model(model, n_samples=n_samples), two_sided=params.model.bidirectional)
    return {LIMIT: limit, f"{LIMIT}_{other_view(params)}": limit.other_view()}


def other_view(params: Params) -> str:
    """Return the other view of the window than the filter's: ``causal`` or ``two_sided``."""
    return "causal" if params.model.bidirectional else "two_sided"
