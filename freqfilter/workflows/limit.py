"""State the least error that any filter can expect of a signal model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tabulate import tabulate

from freqfilter.evaluation import limit_cache
from freqfilter.evaluation.figures.limit import limit_curves
from freqfilter.evaluation.limits import MOST_WINDOWS, MOST_WORK, LimitScores
from freqfilter.evaluation.scores import frequency_name
from freqfilter.files import replacing
from freqfilter.params import Params
from freqfilter.signals.model import SignalModel
from freqfilter.signals.realizations import some_windows
from freqfilter.workflows.console import Console

LENGTHS = (10, 20, 50, 100, 200, 500, 1000)  # of the curve
WORK_OF_A_LENGTH = MOST_WORK / 5


@dataclass(frozen=True)
class Limits:
    """The limits of a signal model, for one realization or in expectation.

    Attributes:
        scores: Causal and two-sided.
        frequencies_hz: Of the components.
    """

    scores: LimitScores
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

    def table(self) -> str:
        """A row for each side, a column for each component."""
        rows = [
            [name, of_side.mse, of_side.standard_error, *of_side.per_frequency, *of_side.per_step[[0, -1]]]
            for name, of_side in (("causal", self.scores.causal), ("two-sided", self.scores.two_sided))
        ]
        components = [frequency_name(frequency_hz) for frequency_hz in self.frequencies_hz]
        headers = ["limit", "MSE", "± std. error", *components, "first sample", "last sample"]
        return tabulate(rows, headers=headers, floatfmt=".4f")


def limit(params: Params, *, noise_seed: int | None, picture: Path | None, console: Console) -> Limits:
    """Compute the limit, and draw it where a picture is asked for.

    Args:
        params: Resolved parameters: the signal model and the window length.
        noise_seed: The realization all of whose windows are scored; None: the expectation over all noise.
        picture: The file to draw, if any.
        console: Hears how it goes.

    Raises:
        UserError: If the picture cannot be written.
    """
    model, window_length = SignalModel.from_params(params.signals), params.data.window_length
    if noise_seed is None:
        scores = limit_cache.expected(model, window_length=window_length)
    else:
        most = MOST_WINDOWS * len(model.components)
        scores = limit_cache.of_windows(model, some_windows(model, window_length, most, noise_seed))
    if picture is not None:
        lengths = sorted({length for length in (*LENGTHS, window_length) if length <= model.n_samples})
        of_lengths = {}
        for length in lengths:
            console.say(f"limit of windows of {length} samples")
            of_lengths[length] = limit_cache.expected(model, window_length=length, work=WORK_OF_A_LENGTH)
        with replacing(picture) as file:
            limit_curves(scores, of_lengths).savefig(file, format="png", dpi=150)
        console.say(f"written: {picture}")
    return Limits(scores, params.signals.frequencies_hz)
