"""Comparison of trainings in tables and figures, as text and as a page."""

from __future__ import annotations

import base64
import logging
import textwrap
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

import jinja2
import pandas as pd

from freqfilter.atomic_io import atomic_write, check_writable
from freqfilter.config import TrackingParams
from freqfilter.config.schema import task_differences
from freqfilter.errors import UserError
from freqfilter.evaluation.heldout import fresh_seeds, score_realizations, score_with_limit
from freqfilter.evaluation.metrics import ZERO_MSE
from freqfilter.evaluation.significance import PairwiseComparison, min_realizations, pairwise_comparisons
from freqfilter.pipelines.model_card import UNKNOWN, escape_markdown, format_metric
from freqfilter.pipelines.run_metrics import fresh_metrics
from freqfilter.plots.style import render
from freqfilter.plots.training import Curves, side_by_side
from freqfilter.process import shutdown
from freqfilter.tracked_names import (
    BEST_HOLDOUT_MSE,
    EPOCH_SECONDS,
    HOLDOUT_MSE,
    PEAK_MEMORY,
    TEST_LIMIT_MSE,
    TEST_MSE,
    TEST_MSE_AFTER,
    TEST_MSE_OVER_LIMIT,
    TEST_MSE_OVER_LIMIT_AFTER,
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

MAX_NAME_LENGTH = 40
MAX_WIDTH = 24  # characters of a column
# Rows of the table of errors and cost: the metric and its format.
METRICS = {
    "test MSE": (TEST_MSE, ".4f"),
    "test MSE over the limit": (TEST_MSE_OVER_LIMIT, ".3f"),
    "test MSE after 1,000 samples": (TEST_MSE_AFTER, ".4f"),
    "over the limit after 1,000": (TEST_MSE_OVER_LIMIT_AFTER, ".3f"),
    "MSE on fresh realizations": ("fresh/mse", ".4f"),
    "fresh MSE over the limit": ("fresh/mse_over_limit", ".3f"),
    "validation loss": ("best/val_loss", ".4f"),
    "holdout MSE": (BEST_HOLDOUT_MSE, ".4f"),
    "best epoch": ("best/epoch", ".0f"),
    "epochs": ("epochs_run", ".0f"),
    "weights": ("parameter_count", ",.0f"),
    "memory, MB": (PEAK_MEMORY, ",.0f"),
}


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

    def task_differences(self, other: ComparedTraining) -> list[str]:
        """The task parameters that differ from another training's."""
        return task_differences(self.training.params, other.training.params)

    def figures(self) -> dict[str, str]:
        """Errors and cost as text; ``UNKNOWN`` if not measured."""
        metrics, tags = self.training.metrics, self.training.tags
        if self.comparison:
            metrics = metrics | fresh_metrics(self.comparison.fresh)
        seconds = self.training.curves.get(EPOCH_SECONDS)
        return {
            "version": tags.get("model_version", UNKNOWN),
            **{title: format_metric(metrics, name, spec) for title, (name, spec) in METRICS.items()},
            "training, s": UNKNOWN if seconds is None else f"{seconds.sum():.0f} ({seconds.median():.1f} per epoch)",
            "diagnoses": ", ".join(sorted(diagnoses(tags))) or UNKNOWN,
        }

    def curves(self) -> Curves:
        """Validation and holdout curves with the limit, and the ratio of error to limit with its interval."""
        curves, fresh, ratio = self.training.curves, self.comparison.fresh if self.comparison else None, None
        if fresh and fresh.mse_over_limit is not None and fresh.ratio_interval:
            ratio = (fresh.mse_over_limit, *fresh.ratio_interval)
        limit_mse = self.training.metrics.get(VAL_LIMIT_MSE)
        return Curves(curves.get(VAL_MSE), curves.get(HOLDOUT_MSE), limit_mse, ratio)


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
        """Errors and cost as text: a row for each figure that a training has, a column for each training."""
        table = pd.DataFrame({item.name: item.figures() for item in self.compared})
        return table[(table != UNKNOWN).any(axis=1)]

    @property
    def parameters(self) -> pd.DataFrame:
        """The parameters in which the trainings differ, except those of tracking; a column for each training."""
        params = {item.name: item.training.params.canonical() for item in self.compared}
        table = pd.DataFrame(params).drop(index=sorted(TrackingParams.model_fields))
        return table[table.nunique(axis=1) > 1]

    @property
    def remarks(self) -> list[str]:
        """Caveats, and the comparison of each training with the first, a sentence each."""
        lines, names = [], {item.training.run_id: item.name for item in self.compared}
        for number, item in enumerate(self.compared):
            training, first = item.training, self.compared[0]
            if differences := item.task_differences(first):
                from_file = training.params.data.data_file or first.training.params.data.data_file
                remedy = "" if from_file else " and another limit. Compare their errors over the limit instead"
                task = f"it has another task ({'; '.join(differences)})"
                lines.append(f"{item.name} cannot be compared with {first.name}: {task}{remedy}.")
            same_task = (other for other in self.compared[:number] if not item.task_differences(other))
            tested = next((other for other in same_task if other.training.test_digest), None)
            if tested and training.test_digest not in ("", tested.training.test_digest):
                lines.append(
                    f"{item.name} has other test data than {tested.name}: their test scores are not comparable."
                )
            metrics = training.metrics
            if TEST_MSE_OVER_LIMIT in metrics and f"{TEST_MSE_OVER_LIMIT}_low" not in metrics:
                lines.append(f"{item.name} has too little test data for an interval of its MSE over the limit.")
            if metrics.get(TEST_LIMIT_MSE, ZERO_MSE) < ZERO_MSE:
                lines.append(f"The limit of {item.name} is zero: there is no ratio to it.")
            if training.status != "FINISHED":
                lines.append(f"{item.name} is {training.status}: its figures are those of its last epoch.")
        for item in self.compared:
            if item.comparison and item.comparison.against:
                pair = f"{item.name} compared with {names[item.comparison.against]}"
                n_realizations = len(item.comparison.fresh.per_realization)
                lines.append(f"{pair} on {n_realizations} fresh realizations: {item.comparison.summary}.")
        return lines

    @property
    def text(self) -> str:
        """The comparison as plain text, with columns of at most ``MAX_WIDTH`` characters."""
        return self._format("simple", partial(textwrap.fill, width=MAX_WIDTH))

    @property
    def markdown(self) -> str:
        """The comparison as Markdown."""
        return self._format("github", escape_markdown)

    def _format(self, table_format: str, wrap: Callable[[str], str]) -> str:
        remarks = self.remarks if table_format == "simple" else [escape_markdown(line) for line in self.remarks]

        def shown(table: pd.DataFrame, corner: str) -> str:
            wrapped = table.map(wrap).rename(columns=wrap).rename_axis(corner)
            return str(wrapped.to_markdown(tablefmt=table_format, disable_numparse=True))

        parameters = self.parameters
        same = "Their parameters are the same."
        tables = [same if parameters.empty else shown(parameters, "parameter"), shown(self.figures, "figure")]
        return "\n\n".join([*remarks, *tables])

    def figure(self) -> Figure:
        """Draw validation and holdout curves with the limit, and ratios of error to limit with their intervals."""
        return side_by_side({item.name: item.curves() for item in self.compared})

    def page(self) -> str:
        """The comparison with its figure, if it can be drawn, as a self-contained HTML page."""
        picture = b"".join(render(self.figure, "the figure of the page", 110))
        template = files("freqfilter.pipelines").joinpath("comparison.html").read_text(encoding="utf-8")
        environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
        return environment.from_string(template).render(
            compared=self.compared,
            parameters=self.parameters,
            figures=self.figures,
            remarks=self.remarks,
            picture=base64.b64encode(picture).decode(),
        )


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
    if page is not None:
        check_writable("page", page)
    selected = trainings(runs, tracking)
    if len(selected) < 2:
        raise UserError(f"runs={runs or 'the newest'}: found {len(selected)}; give at least two trainings")
    if 0 < realizations < (required := min_realizations(len(selected) - 1)):
        raise UserError(
            f"realizations={realizations}: too few for a significant difference among {len(selected)} trainings; "
            f"set at least {required}, or 0 for none"
        )
    run_ids = " ".join(training.run_id for training in selected)
    options = {"runs": run_ids, "realizations": str(realizations)}
    with open_run(tracking, Job("compare", f"compare {len(selected)} trainings", options)) as run:
        comparisons: dict[str, PairwiseComparison] = {}
        for training in selected:
            task = [other for other in selected if not task_differences(other.params, training.params)]
            if training is task[0]:
                comparisons |= _score(task, realizations)
        compared = [
            ComparedTraining(name, training, comparisons.get(training.run_id))
            for name, training in zip(distinct_names(selected), selected, strict=True)
        ]
        result = ComparisonResult(RunRef.to(run, tracking_uri), compared)
        content = result.page().encode()
        if page is not None:
            with atomic_write(page) as file:
                file.write(content)
        run.log_figure(result.figure, "comparison/side_by_side.png")
        run.log_bytes(content, "comparison/report.html")
        run.log_bytes(result.figures.to_csv(index_label="figure").encode(), "comparison/figures.csv")
        run.log_bytes(result.parameters.to_csv(index_label="parameter").encode(), "comparison/parameters.csv")
        run.describe(result.markdown)
    return result


def distinct_names(trainings: Sequence[Training]) -> list[str]:
    """Return a unique name of one line for each training: the run's name without the words that all names share.

    Names that would be equal are extended by the run's id, shortened or in full.
    """
    words = [training.name.split() or ["run"] for training in trainings]
    shared = set(words[0]).intersection(*words)
    names = [
        " ".join([first, *(word for word in rest if word not in shared)])[:MAX_NAME_LENGTH].strip()
        for first, *rest in words
    ]
    for length in (6, 32):
        counts = Counter(names)
        names = [
            name if counts[name] == 1 else f"{name} {training.run_id[:length]}"
            for name, training in zip(names, trainings, strict=True)
        ]
    return names


def _score(group: Sequence[Training], realizations: int) -> dict[str, PairwiseComparison]:
    """Compare filters of one task on realizations that were not used in training, by run id."""
    scored = [training for training in group if training.has_model]
    if not scored or not realizations:
        return {}
    first = scored[0].params
    if first.data.data_file is not None:
        names = ", ".join(distinct_names(scored))
        logger.info(f"{names}: trained on a data file, no fresh realizations available")
        return {}
    accelerator = Accelerator.open(first.training.model_copy(update={"device": "auto", "precision": "fp32"}))
    # Keyed by id: a user may have named a run as an estimator is, such as `limit`.
    run_ids = [training.run_id for training in scored]
    networks = {run_id: loading.load_run(run_id).module.to(accelerator.device) for run_id in run_ids}
    estimators, errors = score_with_limit(networks, first), {}
    noise_seeds = fresh_seeds([training.params for training in scored], realizations)
    for seed, table in score_realizations(estimators, first, noise_seeds, device=accelerator.device):
        shutdown.check()
        errors[seed] = table
        logger.info(f"realization {len(errors)} of {realizations}: {len(scored)} filters scored")
    return pairwise_comparisons(errors, run_ids)
