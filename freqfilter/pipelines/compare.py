"""Comparison of trainings in tables and figures, as text and as a page."""

from __future__ import annotations

import base64
import io
import logging
import textwrap
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

import jinja2
import pandas as pd
from tabulate import tabulate

from freqfilter.atomic_io import atomic_write
from freqfilter.config import TrackingParams
from freqfilter.config.schema import task_differences
from freqfilter.errors import UserError
from freqfilter.evaluation.heldout import fresh_seeds, score_realizations, score_with_limit
from freqfilter.evaluation.significance import PairwiseComparison, min_realizations, pairwise_comparisons
from freqfilter.pipelines.model_card import format_interval
from freqfilter.plots.training import Curves, side_by_side
from freqfilter.process import shutdown
from freqfilter.tracked_names import (
    BEST_HOLDOUT_MSE,
    EPOCH_SECONDS,
    HOLDOUT_MSE,
    PEAK_MEMORY,
    TEST_MSE,
    TEST_MSE_OVER_LIMIT,
    VAL_LIMIT_MSE,
    VAL_MSE,
)
from freqfilter.tracking import loading
from freqfilter.tracking.client import open_store
from freqfilter.tracking.lifecycle import Job, open_run
from freqfilter.tracking.queries import Training, trainings
from freqfilter.tracking.run import diagnoses
from freqfilter.tracking.ui_views import RunRef
from freqfilter.training.device import Accelerator, wrap_memory_errors

if TYPE_CHECKING:
    from matplotlib.figure import Figure

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ComparisonResult:
    """Result of a comparison.

    Attributes:
        run: The run of the comparison.
        compared: The trainings, with their scores on fresh realizations.
    """

    run: RunRef
    compared: list[ComparedTraining]

    @property
    def figures(self) -> pd.DataFrame:
        """Errors and cost: a row for each figure, a column for each training, as text."""
        return figures_table(self.compared)

    @property
    def parameters(self) -> pd.DataFrame:
        """The parameters in which the trainings differ: a row for each, a column for each training."""
        return parameters_table(self.compared)

    @property
    def remarks(self) -> list[str]:
        """Sentences that compare each training with the first."""
        return remarks(self.compared)

    @property
    def text(self) -> str:
        """The comparison as plain text."""
        return comparison_text(self.compared, "simple")

    def figure(self) -> Figure:
        """Draw validation and holdout curves with the limit, and ratios of error to limit with their intervals."""
        return comparison_figure(self.compared)


@wrap_memory_errors()
def compare(tracking: TrackingParams, *, runs: str | None, realizations: int, page: Path | None) -> ComparisonResult:
    """Compare trainings in a tracked run and an HTML page.

    Args:
        tracking: Tracking parameters with the experiment of the runs.
        runs: Runs to compare; see ``tracking.queries.trainings``.
        realizations: Number of fresh realizations on which filters of the same task are scored.
        page: HTML file to write; None to write only the run's artifact.

    Raises:
        UserError: If there are fewer than two such trainings, or one of them cannot be read.
    """
    tracking_uri = open_store()
    selected = trainings(runs, tracking)
    if len(selected) < 2:
        raise UserError(f"runs={runs or 'the newest'}: found {len(selected)}; give at least two trainings")
    if 0 < realizations < (required := min_realizations(len(selected) - 1)):
        raise UserError(
            f"realizations={realizations}: too few for a significant difference among {len(selected)} trainings; "
            f"set at least {required}, or 0 for none"
        )
    named = dict(zip(distinct_names(selected), selected, strict=True))
    run_ids = " ".join(training.run_id for training in selected)
    options = {"runs": run_ids, "realizations": str(realizations)}
    with open_run(tracking, Job("compare", f"compare {len(selected)} trainings", options)) as run:
        comparisons: dict[str, PairwiseComparison] = {}
        for group in _by_task(named):
            comparisons |= _score(group, realizations)
        compared = [ComparedTraining(name, training, comparisons.get(name)) for name, training in named.items()]
        drawn = comparison_figure(compared)
        content = comparison_page(compared, drawn)
        if page is not None:
            with atomic_write(page) as file:
                file.write(content.encode())
        run.log_figure(drawn, "comparison/side_by_side.png")
        run.log_bytes(content.encode(), "comparison/report.html")
        run.log_bytes(figures_table(compared).to_csv(index_label="figure").encode(), "comparison/figures.csv")
        run.log_bytes(parameters_table(compared).to_csv(index_label="parameter").encode(), "comparison/parameters.csv")
        run.describe(comparison_text(compared, "github"))
    return ComparisonResult(RunRef.to(run, tracking_uri), compared)


def _by_task(named: Mapping[str, Training]) -> list[dict[str, Training]]:
    """Group the trainings by task."""
    groups: list[dict[str, Training]] = []
    for name, training in named.items():
        for group in groups:
            if not task_differences(training.params, next(iter(group.values())).params):
                group[name] = training
                break
        else:
            groups.append({name: training})
    return groups


def _score(group: Mapping[str, Training], realizations: int) -> dict[str, PairwiseComparison]:
    """Compare filters of one task on realizations that were not used in training."""
    scored = {name: training for name, training in group.items() if training.has_model}
    if not scored or not realizations:
        return {}
    first = next(iter(scored.values())).params
    if first.data.data_file is not None:
        logger.info(f"{', '.join(scored)}: trained on a data file, no fresh realizations available")
        return {}
    accelerator = Accelerator.open(first.training.model_copy(update={"device": "auto", "precision": "fp32"}))
    networks = {
        name: loading.load_run(training.run_id).module.to(accelerator.device) for name, training in scored.items()
    }
    estimators, errors = score_with_limit(networks, first), {}
    noise_seeds = fresh_seeds([training.params for training in scored.values()], realizations)
    for seed, table in score_realizations(estimators, first, noise_seeds, device=accelerator.device):
        shutdown.check()
        errors[seed] = table
        logger.info(f"realization {len(errors)} of {realizations}: {len(scored)} filters scored")
    return pairwise_comparisons(errors, list(scored))


MAX_NAME_LENGTH = 40
MAX_WIDTH = 24  # characters of a column
UNKNOWN = "–"


@dataclass(frozen=True)
class ComparedTraining:
    """A training in a comparison.

    Attributes:
        name: Name of the training, unique in the comparison.
        training: The stored training.
        comparison: Comparison on fresh realizations; None if the training has no model or no signal model.
    """

    name: str
    training: Training
    comparison: PairwiseComparison | None


def distinct_names(trainings: Sequence[Training]) -> list[str]:
    """Return a unique name for each training: the run's name without the words that all names share."""
    words = [training.name.split(" ") for training in trainings]
    shared = set(words[0]).intersection(*words)
    short = [
        " ".join([first, *(word for word in rest if word not in shared)])[:MAX_NAME_LENGTH].strip()
        for first, *rest in words
    ]
    counts = Counter(short)
    return [
        name if counts[name] == 1 else f"{name} {training.run_id[:6]}"
        for name, training in zip(short, trainings, strict=True)
    ]


def parameters_table(compared: Sequence[ComparedTraining]) -> pd.DataFrame:
    """Return the parameters in which trainings differ, without tracking parameters; a column for each run."""
    params = {item.name: item.training.params.canonical() for item in compared}
    table = pd.DataFrame(params).drop(index=sorted(TrackingParams.model_fields))
    return table[table.nunique(axis=1) > 1]


def figures_table(compared: Sequence[ComparedTraining]) -> pd.DataFrame:
    """Return errors and cost as text: a row for each figure, a column for each run.

    Figures that no run has are left out.
    """
    table = pd.DataFrame({item.name: {title: find(item) for title, find in _FIGURES.items()} for item in compared})
    return table[(table != UNKNOWN).any(axis=1)]


def remarks(compared: Sequence[ComparedTraining]) -> list[str]:
    """Return caveats of the comparison and the comparison of each training with the first, a sentence each."""
    lines = []
    for number, item in enumerate(compared):
        if differences := _differences(item, compared[0]):
            lines.append(_task_remark(item, compared[0], differences))
        tested = (other for other in compared[:number] if other.training.test_digest and not _differences(item, other))
        if (first := next(tested, None)) and item.training.test_digest not in ("", first.training.test_digest):
            lines.append(f"{item.name} has other test data than {first.name}: their test scores are not comparable.")
        if item.training.status != "FINISHED":
            lines.append(f"{item.name} is {item.training.status}: its figures are those of its last epoch.")
    for item in compared:
        if item.comparison and item.comparison.against:
            n, reference = len(item.comparison.fresh.per_realization), item.comparison.against
            lines.append(f"{item.name} compared with {reference} on {n} fresh realizations: {item.comparison.summary}.")
    return lines


def _differences(one: ComparedTraining, other: ComparedTraining) -> list[str]:
    return task_differences(one.training.params, other.training.params)


def _task_remark(item: ComparedTraining, first: ComparedTraining, differences: list[str]) -> str:
    line = f"{item.name} cannot be compared with {first.name}: it has another task ({'; '.join(differences)})"
    if item.training.params.data.data_file or first.training.params.data.data_file:
        return f"{line}."
    return f"{line} and another limit. Compare their errors over the limit instead."


def comparison_figure(compared: Sequence[ComparedTraining]) -> Figure:
    """Draw the curves of the trainings and their ratios of error to limit."""
    drawn = {}
    for item in compared:
        curves, fresh = item.training.curves, item.comparison.fresh if item.comparison else None
        ratio = None
        if fresh and fresh.mse_over_limit is not None and fresh.ratio_interval:
            ratio = (fresh.mse_over_limit, *fresh.ratio_interval)
        drawn[item.name] = Curves(
            validation=curves.get(VAL_MSE),
            holdout=curves.get(HOLDOUT_MSE),
            limit_mse=item.training.metrics.get(VAL_LIMIT_MSE),
            over_limit=ratio,
        )
    return side_by_side(drawn)


def comparison_text(compared: Sequence[ComparedTraining], table_format: str) -> str:
    """Return tables and remarks as text.

    Args:
        compared: The trainings.
        table_format: One of tabulate's, such as ``github`` or ``simple``.
    """
    parameters = parameters_table(compared)
    shown = _text(parameters, "parameter", table_format) if len(parameters) else "Their parameters are the same."
    return "\n\n".join([*remarks(compared), shown, _text(figures_table(compared), "figure", table_format)])


def comparison_page(compared: Sequence[ComparedTraining], drawn: Figure) -> str:
    """Return the comparison as a self-contained HTML page."""
    picture = io.BytesIO()
    drawn.savefig(picture, format="png", dpi=110)
    template = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(
        files("freqfilter.pipelines").joinpath("comparison.html").read_text(encoding="utf-8")
    )
    return template.render(
        compared=compared,
        parameters=parameters_table(compared),
        figures=figures_table(compared),
        remarks=remarks(compared),
        picture=base64.b64encode(picture.getvalue()).decode(),
    )


def _text(table: pd.DataFrame, corner: str, table_format: str) -> str:
    def shown(cell: str) -> str:
        # Markdown and HTML viewers wrap lines themselves.
        return textwrap.fill(cell, MAX_WIDTH) if table_format == "simple" else cell

    rows = [[name, *map(shown, row)] for name, row in zip(table.index, table.to_numpy().tolist(), strict=True)]
    headers = [corner, *map(shown, table.columns)]
    return tabulate(rows, headers=headers, tablefmt=table_format, disable_numparse=True)


def _metric(name: str, digits: str) -> Callable[[ComparedTraining], str]:
    return lambda item: format(value, digits) if (value := item.training.metrics.get(name)) is not None else UNKNOWN


def _with_interval(name: str) -> Callable[[ComparedTraining], str]:
    def find(item: ComparedTraining) -> str:
        metrics = item.training.metrics
        value = metrics.get(name)
        return (
            UNKNOWN
            if value is None
            else format_interval(value, metrics.get(f"{name}_low"), metrics.get(f"{name}_high"))
        )

    return find


def _fresh(over_limit: bool) -> Callable[[ComparedTraining], str]:
    def find(item: ComparedTraining) -> str:
        if item.comparison is None:
            return UNKNOWN
        fresh = item.comparison.fresh
        if not over_limit:
            return format_interval(fresh.mse, *fresh.mse_interval, digits=4)
        if fresh.mse_over_limit is None or fresh.ratio_interval is None:
            return UNKNOWN
        return format_interval(fresh.mse_over_limit, *fresh.ratio_interval)

    return find


def _seconds(item: ComparedTraining) -> str:
    seconds = item.training.curves.get(EPOCH_SECONDS)
    return UNKNOWN if seconds is None else f"{seconds.sum():.0f} ({seconds.median():.1f} per epoch)"


def _diagnoses(item: ComparedTraining) -> str:
    return ", ".join(sorted(diagnoses(item.training.tags))) or UNKNOWN


_FIGURES: dict[str, Callable[[ComparedTraining], str]] = {
    "version": lambda item: item.training.tags.get("model_version", UNKNOWN),
    "test MSE": _metric(TEST_MSE, ".4f"),
    "test MSE over the limit": _with_interval(TEST_MSE_OVER_LIMIT),
    "MSE on fresh realizations": _fresh(over_limit=False),
    "fresh MSE over the limit": _fresh(over_limit=True),
    "validation loss": _metric("best/val_loss", ".4f"),
    "holdout MSE": _metric(BEST_HOLDOUT_MSE, ".4f"),
    "best epoch": _metric("best/epoch", ".0f"),
    "epochs": _metric("epochs_run", ".0f"),
    "weights": _metric("parameter_count", ",.0f"),
    "training, s": _seconds,
    "memory, MB": _metric(PEAK_MEMORY, ",.0f"),
    "diagnoses": _diagnoses,
}
