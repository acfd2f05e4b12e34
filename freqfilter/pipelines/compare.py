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
from freqfilter.tracking import loading, provenance
from freqfilter.tracking.client import open_store
from freqfilter.tracking.lifecycle import open_run
from freqfilter.tracking.queries import Training, trainings
from freqfilter.tracking.run import diagnoses
from freqfilter.tracking.ui_views import RunRef
from freqfilter.training.device import Accelerator, wrap_memory_errors

if TYPE_CHECKING:
    from matplotlib.figure import Figure

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ComparisonResult:
    """The result of a comparison.

    Attributes:
        run: The run that holds it.
        compared: The trainings, each with its scores on fresh realizations.
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
        """How each training compares with the first, a sentence each."""
        return remarks(self.compared)

    @property
    def text(self) -> str:
        """Everything as plain text."""
        return comparison_text(self.compared, "simple")

    def figure(self) -> Figure:
        """Validation and holdout curves beside the limit, and errors over the limit with their intervals."""
        return comparison_figure(self.compared)


@wrap_memory_errors()
def compare(tracking: TrackingParams, *, runs: str | None, realizations: int, page: Path | None) -> ComparisonResult:
    """Compare trainings, as a run of its own in the experiment and as a page.

    Args:
        tracking: Where the runs are.
        runs: Which; see ``tracking.queries.trainings``.
        realizations: Fresh ones that filters of one task are scored on, all of them on the same.
        page: The HTML file to write; None: it is among the run's artifacts alone.

    Raises:
        UserError: If there are fewer than two such trainings, or one of them cannot be read.
    """
    tracking_uri = open_store()
    found = trainings(runs, tracking)
    if len(found) < 2:
        raise UserError(f"runs={runs or 'the newest'}: found {len(found)}, to compare takes two")
    if 0 < realizations < (least := min_realizations(len(found) - 1)):
        raise UserError(
            f"realizations={realizations}: so few tell no difference among {len(found)} trainings from chance; "
            f"{least} at least, or 0 for none"
        )
    named = dict(zip(distinct_names(found), found, strict=True))
    with open_run(tracking, name=f"compare {len(found)} trainings") as run:
        run.log_params({"runs": " ".join(training.run_id for training in found), "realizations": str(realizations)})
        run.log_source(provenance.source())
        run.log_tags({"workflow": "compare"})
        standing: dict[str, PairwiseComparison] = {}
        for group in _by_task(named):
            standing |= _score(group, realizations)
        compared = [ComparedTraining(name, training, standing.get(name)) for name, training in named.items()]
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
    """Trainings of the same task together."""
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
    """How filters of one task stand on realizations that none of them has seen."""
    scored = {name: training for name, training in group.items() if training.has_model}
    if not scored or not realizations:
        return {}
    first = next(iter(scored.values())).params
    if first.data.data_file is not None:
        logger.info(f"{', '.join(scored)}: trained on a data file, from which no fresh realizations can be drawn")
        return {}
    accelerator = Accelerator.open(first.training.model_copy(update={"device": "auto", "precision": "fp32"}))
    networks = {
        name: loading.load_run(training.run_id).module.to(accelerator.device) for name, training in scored.items()
    }
    extractors, errors = score_with_limit(networks, first), {}
    noise_seeds = fresh_seeds([training.params for training in scored.values()], realizations)
    for seed, table in score_realizations(extractors, first, noise_seeds, device=accelerator.device):
        shutdown.check()
        errors[seed] = table
        logger.info(f"realization {len(errors)} of {realizations}: {len(scored)} filters scored")
    return pairwise_comparisons(errors, list(scored))


MAX_NAME_LENGTH = 40
MAX_WIDTH = 24  # letters of a column
UNKNOWN = "–"


@dataclass(frozen=True)
class ComparedTraining:
    """A training among others.

    Attributes:
        name: What it is called here, different from all others.
        training: As the store has it.
        standing: On fresh realizations; None where that cannot be said, since it has no model or no signal model.
    """

    name: str
    training: Training
    standing: PairwiseComparison | None


def distinct_names(trainings: Sequence[Training]) -> list[str]:
    """A name for each, different from all others: its run's, without the words that all of them share."""
    words = [training.name.split(" ") for training in trainings]
    shared = set(words[0]).intersection(*words)
    short = [
        " ".join([first, *(word for word in rest if word not in shared)])[:MAX_NAME_LENGTH].strip()
        for first, *rest in words
    ]
    often = Counter(short)
    return [
        name if often[name] == 1 else f"{name} {training.run_id[:6]}"
        for name, training in zip(short, trainings, strict=True)
    ]


def parameters_table(compared: Sequence[ComparedTraining]) -> pd.DataFrame:
    """The parameters in which trainings differ, but for where they were kept: a row for each, a column for each run."""
    every = {of.name: of.training.params.canonical() for of in compared}
    kept = set(TrackingParams.model_fields)
    table = pd.DataFrame(every).drop(index=sorted(kept))
    return table[table.nunique(axis=1) > 1]


def figures_table(compared: Sequence[ComparedTraining]) -> pd.DataFrame:
    """What each training came to and what it cost, as text: a row for each figure, a column for each run.

    Figures that no run has are left out.
    """
    table = pd.DataFrame({of.name: {title: find(of) for title, find in _FIGURES.items()} for of in compared})
    return table[(table != UNKNOWN).any(axis=1)]


def remarks(compared: Sequence[ComparedTraining]) -> list[str]:
    """What has to be known before one is held against another, and how the others stand against the first."""
    lines = []
    for number, of in enumerate(compared):
        if different := _differ(of, compared[0]):
            lines.append(_of_another_task(of, compared[0], different))
        tested = (other for other in compared[:number] if other.training.test_digest and not _differ(of, other))
        if (first := next(tested, None)) and of.training.test_digest not in ("", first.training.test_digest):
            lines.append(f"{of.name} was tested on other data than {first.name}: their test figures do not compare.")
        if of.training.status != "FINISHED":
            lines.append(f"{of.name} is {of.training.status}: its figures are those of its last epoch.")
    for of in compared:
        if of.standing and of.standing.against:
            many = len(of.standing.fresh.of_realizations)
            lines.append(
                f"{of.name}, beside {of.standing.against} on {many} fresh realizations: {of.standing.summary}."
            )
    return lines


def _differ(one: ComparedTraining, other: ComparedTraining) -> list[str]:
    return task_differences(one.training.params, other.training.params)


def _of_another_task(of: ComparedTraining, first: ComparedTraining, different: list[str]) -> str:
    line = f"{of.name} cannot be held against {first.name}: it is for another task ({'; '.join(different)})"
    if of.training.params.data.data_file or first.training.params.data.data_file:
        return f"{line}."
    return f"{line}, and has another limit. Only their errors over the limit can be set side by side."


def comparison_figure(compared: Sequence[ComparedTraining]) -> Figure:
    """Curves and distances from the limit."""
    drawn = {}
    for of in compared:
        curves, fresh = of.training.curves, of.standing.fresh if of.standing else None
        over = None
        if fresh and fresh.mse_over_limit is not None and fresh.ratio_interval:
            over = (fresh.mse_over_limit, *fresh.ratio_interval)
        drawn[of.name] = Curves(
            validation=curves.get(VAL_MSE),
            holdout=curves.get(HOLDOUT_MSE),
            limit_mse=of.training.metrics.get(VAL_LIMIT_MSE),
            over_limit=over,
        )
    return side_by_side(drawn)


def comparison_text(compared: Sequence[ComparedTraining], table_format: str) -> str:
    """Tables and remarks as text.

    Args:
        compared: The trainings.
        table_format: One of tabulate's, such as ``github`` or ``simple``.
    """
    parameters = parameters_table(compared)
    shown = _text(parameters, "parameter", table_format) if len(parameters) else "Their parameters are the same."
    return "\n\n".join([*remarks(compared), shown, _text(figures_table(compared), "figure", table_format)])


def comparison_page(compared: Sequence[ComparedTraining], drawn: Figure) -> str:
    """Everything on one page of HTML that needs nothing beside it."""
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
        # In the terminal; a page breaks lines itself.
        return textwrap.fill(cell, MAX_WIDTH) if table_format == "simple" else cell

    rows = [[name, *map(shown, row)] for name, row in zip(table.index, table.to_numpy().tolist(), strict=True)]
    headers = [corner, *map(shown, table.columns)]
    return tabulate(rows, headers=headers, tablefmt=table_format, disable_numparse=True)


def _metric(name: str, digits: str) -> Callable[[ComparedTraining], str]:
    return lambda of: format(value, digits) if (value := of.training.metrics.get(name)) is not None else UNKNOWN


def _with_interval(name: str) -> Callable[[ComparedTraining], str]:
    def find(of: ComparedTraining) -> str:
        metrics = of.training.metrics
        value = metrics.get(name)
        return (
            UNKNOWN
            if value is None
            else format_interval(value, metrics.get(f"{name}_low"), metrics.get(f"{name}_high"))
        )

    return find


def _fresh(over_limit: bool) -> Callable[[ComparedTraining], str]:
    def find(of: ComparedTraining) -> str:
        if of.standing is None:
            return UNKNOWN
        fresh = of.standing.fresh
        if not over_limit:
            return format_interval(fresh.mse, *fresh.mse_interval, digits=4)
        if fresh.mse_over_limit is None or fresh.ratio_interval is None:
            return UNKNOWN
        return format_interval(fresh.mse_over_limit, *fresh.ratio_interval)

    return find


def _seconds(of: ComparedTraining) -> str:
    seconds = of.training.curves.get(EPOCH_SECONDS)
    return UNKNOWN if seconds is None else f"{seconds.sum():.0f} ({seconds.median():.1f} for an epoch)"


def _diagnoses(of: ComparedTraining) -> str:
    return ", ".join(sorted(diagnoses(of.training.tags))) or UNKNOWN


_FIGURES: dict[str, Callable[[ComparedTraining], str]] = {
    "version": lambda of: of.training.tags.get("model_version", UNKNOWN),
    "test MSE": _metric(TEST_MSE, ".4f"),
    "test MSE over the limit": _with_interval(TEST_MSE_OVER_LIMIT),
    "MSE on fresh realizations": _fresh(over_limit=False),
    "the same over the limit": _fresh(over_limit=True),
    "validation loss": _metric("best/val_loss", ".4f"),
    "holdout MSE": _metric(BEST_HOLDOUT_MSE, ".4f"),
    "best epoch": _metric("best/epoch", ".0f"),
    "epochs": _metric("epochs_run", ".0f"),
    "weights": _metric("parameter_count", ",.0f"),
    "training, s": _seconds,
    "memory, MB": _metric(PEAK_MEMORY, ",.0f"),
    "diagnoses": _diagnoses,
}
