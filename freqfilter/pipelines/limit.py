"""The limit of a signal model as a table and a figure."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tabulate import tabulate

from freqfilter.atomic_io import atomic_write
from freqfilter.config import Params
from freqfilter.data.signal_model import SignalModel, evenly_spaced_windows
from freqfilter.evaluation import limits
from freqfilter.evaluation.limits import MAX_WINDOWS, MAX_WORK, LimitEstimates
from freqfilter.evaluation.metrics import frequency_name
from freqfilter.pipelines.run_metrics import limit_table_metrics
from freqfilter.plots.limit import limit_curves
from freqfilter.tracking import provenance
from freqfilter.tracking.client import open_store
from freqfilter.tracking.lifecycle import open_run
from freqfilter.tracking.ui_views import RunRef

if TYPE_CHECKING:
    from matplotlib.figure import Figure

logger = logging.getLogger(__name__)

LENGTHS = (10, 20, 50, 100, 200, 500, 1000)  # window lengths of the curve
MAX_WORK_PER_LENGTH = MAX_WORK / 5


@dataclass(frozen=True)
class LimitReport:
    """Limits of a signal model, for one realization or in expectation.

    Attributes:
        scores: Causal and two-sided limit.
        frequencies_hz: Frequency of each component.
    """

    scores: LimitEstimates
    frequencies_hz: tuple[float, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return all values by flat names, such as ``causal_mse`` and ``causal_mse_per_frequency``."""
        scores = self.scores
        named: dict[str, Any] = {"n_windows": scores.n_windows, "start_step": scores.start_step}
        for side, limit, excess in (
            ("causal", scores.causal, scores.causal_excess),
            ("two_sided", scores.two_sided, scores.two_sided_excess),
        ):
            named[f"{side}_mse"] = limit.mse
            named[f"{side}_mse_per_frequency"] = limit.per_frequency.tolist()
            named[f"{side}_mse_per_step"] = limit.per_step.tolist()
            named[f"{side}_mse_standard_error"] = limit.standard_error
            named[f"{side}_mse_excess"] = excess
        return named

    def remarks(self) -> str:
        """Return what the figures mean, as text."""
        scores = self.scores
        lines = [f"{scores.n_windows:,} windows. No filter of the same samples has a smaller expected error."]
        if scores.start_step > 1:
            lines.append(
                f"Only one window start in {scores.start_step} was considered: the limits are below these figures "
                f"by at most {scores.causal_excess:.4f} (causal) and {scores.two_sided_excess:.4f} (two-sided)."
            )
        return "\n".join(lines)

    def table(self, table_format: str = "simple") -> str:
        """Format the limits: a row for each side, a column for each component.

        Args:
            table_format: A format of tabulate, such as ``github`` or ``simple``.
        """
        rows = [
            [name, limit.mse, limit.standard_error, *limit.per_frequency, *limit.per_step[[0, -1]]]
            for name, limit in (("causal", self.scores.causal), ("two-sided", self.scores.two_sided))
        ]
        components = [frequency_name(frequency_hz) for frequency_hz in self.frequencies_hz]
        headers = ["limit", "MSE", "± std. error", *components, "first sample", "last sample"]
        return tabulate(rows, headers=headers, tablefmt=table_format, floatfmt=".4f")


def compute_limit(params: Params, *, noise_seed: int | None, picture: Path | None) -> LimitReport:
    """Compute the limit and, if ``picture`` is given, draw it.

    Args:
        params: Resolved parameters with the signal model and the window length.
        noise_seed: Noise seed of the realization whose windows are scored; None for the expectation over noise.
        picture: PNG file to write, if any.

    Raises:
        UserError: If the picture cannot be written.
    """
    report = _compute(params, noise_seed)
    if picture is not None:
        figure = _draw(params, report.scores)
        with atomic_write(picture) as file:
            figure.savefig(file, format="png", dpi=150)
        logger.info(f"written: {picture}")
    return report


def log_limit(params: Params, *, noise_seed: int | None, recipe: str, name: str) -> tuple[LimitReport, RunRef]:
    """Compute and draw the limit in a tracked run.

    Args:
        params: As for ``compute_limit``.
        noise_seed: As for ``compute_limit``.
        recipe: Name of the recipe, a parameter of the run.
        name: Name of the run if the user has not set one.

    Raises:
        UserError: If the store cannot be used.
    """
    tracking_uri = open_store()
    with open_run(params.tracking, name=name) as run:
        options = {"noise_seed": "null" if noise_seed is None else str(noise_seed)}
        run.log_params({"recipe": recipe} | options | params.canonical(sections=("signals", "data")))
        run.log_source(provenance.source())
        run.log_tags({"workflow": "limit"})
        report = _compute(params, noise_seed)
        run.log_metrics(limit_table_metrics(report.scores), step=0)
        run.log_bytes(json.dumps(report.to_dict(), indent=2).encode(), "limit/limit.json")
        run.log_figure(_draw(params, report.scores), "limit/limit.png")
        run.describe(f"{report.remarks()}\n\n{report.table('github')}")
    return report, RunRef.to(run, tracking_uri)


def _compute(params: Params, noise_seed: int | None) -> LimitReport:
    model, window_length = SignalModel.from_params(params.signals), params.data.window_length
    if noise_seed is None:
        scores = limits.expected_limit(model, window_length=window_length)
    else:
        max_windows = MAX_WINDOWS * len(model.components)
        scores = limits.window_limit(model, evenly_spaced_windows(model, window_length, max_windows, noise_seed))
    return LimitReport(scores, params.signals.frequencies_hz)


def _draw(params: Params, scores: LimitEstimates) -> Figure:
    """Draw the limit over the samples of a window and over window lengths."""
    model, window_length = SignalModel.from_params(params.signals), params.data.window_length
    by_length = {}
    for length in sorted({length for length in (*LENGTHS, window_length) if length <= model.n_samples}):
        logger.info(f"limit of windows of {length} samples")
        by_length[length] = limits.expected_limit(model, window_length=length, work=MAX_WORK_PER_LENGTH)
    return limit_curves(scores, by_length)
