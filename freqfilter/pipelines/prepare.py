"""Data of a signal model without a training: its windows as a file, its figures, and its limit."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tabulate import tabulate

from freqfilter.atomic_io import atomic_write, check_writable
from freqfilter.config import Params
from freqfilter.data import npz
from freqfilter.data.kalman import KalmanFilter
from freqfilter.data.recordings import RecordingModel
from freqfilter.data.signal_model import SignalModel, evenly_spaced_windows, first_windows
from freqfilter.data.splits import FIRST_SAMPLES, Splits
from freqfilter.errors import UserError
from freqfilter.evaluation import limits
from freqfilter.evaluation.limits import MAX_LIMIT_SAMPLES, MAX_WINDOWS, MAX_WORK, LimitEstimates
from freqfilter.evaluation.metrics import frequency_name
from freqfilter.evaluation.recordings import CONTEXTS, close_components
from freqfilter.plots import catalog
from freqfilter.plots.limit import SIDES, limit_curves
from freqfilter.plots.recordings import limit_over_samples
from freqfilter.plots.style import render
from freqfilter.tracking.client import open_store
from freqfilter.tracking.lifecycle import Job, check_launched_run, open_run
from freqfilter.tracking.ui_views import RunRef

if TYPE_CHECKING:
    from matplotlib.figure import Figure

logger = logging.getLogger(__name__)

LENGTHS = (10, 20, 50, 100, 200, 500, 1000)  # window lengths of the curve
MAX_WORK_PER_LENGTH = MAX_WORK / 5


def prepare(params: Params, *, output: Path, recipe: str, name: str) -> RunRef:
    """Write ``X_train X_val X_test y_train y_val y_test`` to a file, and draw the data in a tracked run.

    Args:
        params: Resolved parameters, with fixed noise.
        output: The ``.npz`` file, replaced atomically.
        recipe: Name of the recipe, a parameter of the run.
        name: Name of the run if the user has not set one.

    Raises:
        UserError: If the store cannot be used or the file cannot be written.
    """
    check_writable("output", output)
    tracking_uri, data = open_store(), params.data
    job = Job("prepare", name, {"recipe": recipe} | params.canonical(sections=("signals", "data")))
    check_launched_run(job)
    splits = Splits.from_params(params)
    parts = {"train": splits.train, "val": splits.validation, "test": splits.test}
    npz.write(output, parts)
    for part, windows in parts.items():
        shape = (len(windows), windows.n_samples)
        logger.info(f"X_{part} {(*shape, 1 + windows.n_components)}, y_{part} {(*shape, 1)}")
    logger.info(f"written: {output} ({output.stat().st_size / 1e6:.1f} MB)")
    with open_run(params.tracking, job) as run:
        run.log_tags({"output": str(output)})
        for part, windows in parts.items():
            run.log_data(windows, name=part, context=part)
        logger.info("drawing the data")
        model = SignalModel.from_params(params.signals)
        drawn = first_windows(model, data.window_length, FIRST_SAMPLES, data.train_noise_seed)
        for artifact, draw in catalog.data_figures(params.signals, drawn):
            run.log_figure(draw, artifact)
    return RunRef.to(run, tracking_uri)


@dataclass(frozen=True)
class LimitReport:
    """Limits of a signal model, for one realization or in expectation.

    Attributes:
        scores: Causal and two-sided limit or, where it is unknown, the errors of the best linear filters.
        params: The parameters.
    """

    scores: LimitEstimates
    params: Params

    @property
    def exact(self) -> bool:
        """Whether the scores are limits, and not the errors of the best linear filters."""
        return not self.params.of_recordings or self.params.signals.gaussian

    def mean_errors(self) -> dict[str, float]:
        """Mean squared errors by name: ``causal_mse`` and ``two_sided_mse``, of linear filters ``linear_…``."""
        prefix = "" if self.exact else "linear_"
        return {f"{prefix}{side}_mse": getattr(self.scores, side).mse for side in SIDES}

    def to_dict(self) -> dict[str, Any]:
        """Return all values by flat names, such as ``causal_mse`` and ``causal_mse_after_50``."""
        scores = self.scores
        named: dict[str, Any] = {}
        if not self.params.of_recordings:
            named = {"n_windows": scores.n_windows, "start_step": scores.start_step}
        for name, side in zip(self.mean_errors(), SIDES, strict=True):
            limit = getattr(scores, side)
            named |= {
                name: limit.mse,
                f"{name}_per_frequency": limit.per_frequency.tolist(),
                f"{name}_per_step": limit.per_step.tolist(),
                f"{name}_standard_error": limit.standard_error,
                f"{name}_excess": getattr(scores, f"{side}_excess"),
            }
            named |= {f"{name}_after_{n}": limit.per_step[n - 1] for n in CONTEXTS if n <= len(limit.per_step)}
        return named

    def remarks(self) -> str:
        """Return what the figures mean, as text."""
        scores = self.scores
        if self.params.of_recordings:
            return "\n".join(self._remarks_on_recordings())
        lines = [f"{scores.n_windows:,} windows. No filter of the same samples has a smaller expected error."]
        if scores.start_step > 1:
            lines.append(
                f"Only one window start in {scores.start_step} was considered: the limits are below these figures "
                f"by at most {scores.causal_excess:.4f} (causal) and {scores.two_sided_excess:.4f} (two-sided)."
            )
        return "\n".join(lines)

    def table(self, table_format: str = "simple") -> str:
        """Format the limits in a format of tabulate: a row for each side, a column for each component."""
        frequencies = [frequency_name(frequency_hz) for frequency_hz in self.params.signals.frequencies_hz]
        sides = (("causal", self.scores.causal), ("two-sided", self.scores.two_sided))
        if self.params.of_recordings:
            n_samples = len(self.scores.causal.per_step)
            known = [n for n in CONTEXTS if n <= n_samples]
            after = [
                [name, limit.mse, *limit.per_step[[n - 1 for n in known]], *limit.per_frequency]
                for name, limit in sides
            ]
            headers = ["limit" if self.exact else "best linear", f"mean of {n_samples:,}"]
            headers += [f"sample {n:,}" for n in known] + frequencies
            return tabulate(after, headers=headers, tablefmt=table_format, floatfmt=".5f")
        rows = [
            [name, limit.mse, limit.standard_error, *limit.per_frequency, *limit.per_step[[0, -1]]]
            for name, limit in sides
        ]
        headers = ["limit", "MSE", "± std. error", *frequencies, "first sample", "last sample"]
        return tabulate(rows, headers=headers, tablefmt=table_format, floatfmt=".4f")

    def _remarks_on_recordings(self) -> Iterator[str]:
        n_samples, computed = self.params.signals.n_samples, len(self.scores.causal.per_step)
        if self.exact:
            yield "Exact, the variances of the Kalman filter and smoother: no filter has a smaller expected error."
        else:
            yield (
                "The limit is not known for fixed amplitudes with uniform phases. These are the expected errors of the "
                "Kalman filter and smoother, the best linear filters; another filter may have smaller ones."
            )
        if computed < n_samples:
            yield f"Computed for the first {computed:,} of {n_samples:,} samples."
        yield from close_components(self.params)


def compute_limit(params: Params, *, noise_seed: int | None, picture: Path | None) -> LimitReport:
    """Compute the limit and, if ``picture`` is given, draw it.

    Args:
        params: Resolved parameters with the signal model and the window length.
        noise_seed: Noise seed of the realization whose windows are scored; None for the expectation over noise.
        picture: PNG file to write, if any.

    Raises:
        UserError: If the picture cannot be written.
    """
    if picture is not None:
        check_writable("picture", picture)
    scores = _limits(params, noise_seed)
    if picture is not None:
        for content in render(_drawing(params, scores), str(picture), 150):
            with atomic_write(picture) as file:
                file.write(content)
            logger.info(f"written: {picture}")
    return LimitReport(scores, params)


def _limits(params: Params, noise_seed: int | None) -> LimitEstimates:
    if params.of_recordings:
        if noise_seed is not None:
            raise UserError("noise_seed: the limit of random signals is exact in expectation; omit it")
        n_samples = min(params.signals.n_samples, MAX_LIMIT_SAMPLES)
        logger.info(f"Kalman filter and smoother of {n_samples:,} samples")
        return limits.recording_limits(RecordingModel.from_params(params.signals), n_samples)
    model, window_length = SignalModel.from_params(params.signals), params.data.window_length
    if noise_seed is None:
        return limits.expected_limit(model, window_length=window_length)
    max_windows = MAX_WINDOWS * len(model.components)
    return limits.window_limit(model, evenly_spaced_windows(model, window_length, max_windows, noise_seed))


def log_limit(params: Params, *, noise_seed: int | None, recipe: str, name: str) -> tuple[LimitReport, RunRef]:
    """Compute and draw the limit, as ``compute_limit`` does, in a tracked run.

    Args:
        params: Resolved parameters with the signal model and the window length.
        noise_seed: Noise seed of the realization whose windows are scored; None for the expectation over noise.
        recipe: Name of the recipe, a parameter of the run.
        name: Name of the run if the user has not set one.

    Raises:
        UserError: If the store cannot be used.
    """
    tracking_uri = open_store()
    options = {"recipe": recipe, "noise_seed": "null" if noise_seed is None else str(noise_seed)}
    with open_run(params.tracking, Job("limit", name, options | params.canonical(sections=("signals", "data")))) as run:
        report = compute_limit(params, noise_seed=noise_seed, picture=None)
        scores = report.scores
        run.log_metrics({f"limit/{name}": mse for name, mse in report.mean_errors().items()}, step=0)
        run.log_bytes(json.dumps(report.to_dict(), indent=2).encode(), "limit/limit.json")
        run.log_figure(_drawing(params, scores), "limit/limit.png")
        run.describe(f"{report.remarks()}\n\n{report.table('github')}")
    return report, RunRef.to(run, tracking_uri)


def _drawing(params: Params, scores: LimitEstimates) -> Callable[[], Figure]:
    """Compute the limit over window lengths, and return what draws it and the limit over the samples of a window."""
    if params.of_recordings:
        by_component = KalmanFilter(RecordingModel.from_params(params.signals)).variances(len(scores.causal.per_step))
        return partial(limit_over_samples, scores, by_component, frequencies_hz=params.signals.frequencies_hz)
    model, window_length = SignalModel.from_params(params.signals), params.data.window_length
    by_length = {}
    for length in sorted({length for length in (*LENGTHS, window_length) if length <= model.n_samples}):
        logger.info(f"limit of windows of {length} samples")
        by_length[length] = limits.expected_limit(model, window_length=length, work=MAX_WORK_PER_LENGTH)
    return partial(limit_curves, scores, by_length)
