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

LENGTHS = (10, 20, 50, 100, 200, 500, 1000)  # of the curve
WORK_OF_A_LENGTH = MAX_WORK / 5


@dataclass(frozen=True)
class LimitReport:
    """The limits of a signal model, for one realization or in expectation.

    Attributes:
        scores: Causal and two-sided.
        frequencies_hz: Of the components.
    """

    scores: LimitEstimates
    frequencies_hz: tuple[float, ...]

    def to_dict(self) -> dict[str, Any]:
        """Everything under flat names: ``causal_mse``, ``causal_mse_per_frequency``, …, for programs."""
        scores = self.scores
        named: dict[str, Any] = {"n_windows": scores.n_windows, "start_step": scores.start_step}
        for side, of_side, excess in (
            ("causal", scores.causal, scores.causal_excess),
            ("two_sided", scores.two_sided, scores.two_sided_excess),
        ):
            named[f"{side}_mse"] = of_side.mse
            named[f"{side}_mse_per_frequency"] = of_side.per_frequency.tolist()
            named[f"{side}_mse_per_step"] = of_side.per_step.tolist()
            named[f"{side}_mse_standard_error"] = of_side.standard_error
            named[f"{side}_mse_excess"] = excess
        return named

    def remarks(self) -> str:
        """What the figures are, in words."""
        scores = self.scores
        lines = [f"{scores.n_windows:,} windows. No filter that sees the same samples can expect less."]
        if scores.start_step > 1:
            lines.append(
                f"Only one start in {scores.start_step} of this long signal was considered: the limits lie below these "
                f"figures by at most {scores.causal_excess:.4f} (causal) and {scores.two_sided_excess:.4f} (two-sided)."
            )
        return "\n".join(lines)

    def table(self, table_format: str = "simple") -> str:
        """A row for each side, a column for each component.

        Args:
            table_format: One of tabulate's.
        """
        rows = [
            [name, of_side.mse, of_side.standard_error, *of_side.per_frequency, *of_side.per_step[[0, -1]]]
            for name, of_side in (("causal", self.scores.causal), ("two-sided", self.scores.two_sided))
        ]
        components = [frequency_name(frequency_hz) for frequency_hz in self.frequencies_hz]
        headers = ["limit", "MSE", "± std. error", *components, "first sample", "last sample"]
        return tabulate(rows, headers=headers, tablefmt=table_format, floatfmt=".4f")


def compute_limit(params: Params, *, noise_seed: int | None, picture: Path | None) -> LimitReport:
    """Compute the limit, and draw it where a picture is asked for.

    Args:
        params: Resolved parameters: the signal model and the window length.
        noise_seed: The realization all of whose windows are scored; None: the expectation over all noise.
        picture: The file to draw, if any.

    Raises:
        UserError: If the picture cannot be written.
    """
    found = _compute(params, noise_seed)
    if picture is not None:
        figure = _draw(params, found.scores)
        with atomic_write(picture) as file:
            figure.savefig(file, format="png", dpi=150)
        logger.info(f"written: {picture}")
    return found


def log_limit(params: Params, *, noise_seed: int | None, recipe: str, name: str) -> tuple[LimitReport, RunRef]:
    """Compute and draw the limit as a run with metrics and artifacts.

    Args:
        params: As for ``compute_limit``.
        noise_seed: As for ``compute_limit``.
        recipe: Name of the recipe, a parameter of the run.
        name: Name of the run where the user has not named it.

    Raises:
        UserError: If the store cannot be used.
    """
    tracking_uri = open_store()
    with open_run(params.tracking, name=name) as run:
        asked = {"noise_seed": "null" if noise_seed is None else str(noise_seed)}
        run.log_params({"recipe": recipe} | asked | params.canonical(sections=("signals", "data")))
        run.log_source(provenance.source())
        run.log_tags({"workflow": "limit"})
        found = _compute(params, noise_seed)
        run.log_metrics(limit_table_metrics(found.scores), step=0)
        run.log_bytes(json.dumps(found.to_dict(), indent=2).encode(), "limit/limit.json")
        run.log_figure(_draw(params, found.scores), "limit/limit.png")
        run.describe(f"{found.remarks()}\n\n{found.table('github')}")
    return found, RunRef.to(run, tracking_uri)


def _compute(params: Params, noise_seed: int | None) -> LimitReport:
    model, window_length = SignalModel.from_params(params.signals), params.data.window_length
    if noise_seed is None:
        scores = limits.expected_limit(model, window_length=window_length)
    else:
        most = MAX_WINDOWS * len(model.components)
        scores = limits.window_limit(model, evenly_spaced_windows(model, window_length, most, noise_seed))
    return LimitReport(scores, params.signals.frequencies_hz)


def _draw(params: Params, scores: LimitEstimates) -> Figure:
    """The limit over the samples of a window, and over the window's length."""
    model, window_length = SignalModel.from_params(params.signals), params.data.window_length
    of_lengths = {}
    for length in sorted({length for length in (*LENGTHS, window_length) if length <= model.n_samples}):
        logger.info(f"limit of windows of {length} samples")
        of_lengths[length] = limits.expected_limit(model, window_length=length, work=WORK_OF_A_LENGTH)
    return limit_curves(scores, of_lengths)
