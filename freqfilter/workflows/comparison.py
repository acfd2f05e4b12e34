"""Trainings side by side in tables and words, as text and as a page of its own."""

from __future__ import annotations

import base64
import io
import textwrap
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING

import jinja2
import pandas as pd
from tabulate import tabulate

from freqfilter.evaluation.figures.comparing import Curves, side_by_side
from freqfilter.evaluation.standing import Standing
from freqfilter.params import TrackingParams
from freqfilter.params.task import other_task
from freqfilter.tracking.metric_names import (
    AUDIT_MSE,
    EPOCH_SECONDS,
    PEAK_MEMORY,
    TEST_MSE,
    TEST_MSE_OVER_LIMIT,
    VAL_LIMIT_MSE,
    VAL_MSE,
)
from freqfilter.tracking.runs import diagnoses
from freqfilter.tracking.selection import Training
from freqfilter.workflows.description import interval

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LONGEST_NAME = 40
WIDEST = 24  # letters of a column
NOT_KNOWN = "–"


@dataclass(frozen=True)
class Compared:
    """A training among others.

    Attributes:
        name: What it is called here, different from all others.
        training: As the store has it.
        standing: On fresh realizations; None where that cannot be said, since it has no model or no signal model.
    """

    name: str
    training: Training
    standing: Standing | None


def names_of(trainings: Sequence[Training]) -> list[str]:
    """A name for each, different from all others: its run's, without the words that all of them share."""
    words = [training.name.split(" ") for training in trainings]
    shared = set(words[0]).intersection(*words)
    short = [
        " ".join([first, *(word for word in rest if word not in shared)])[:LONGEST_NAME].strip()
        for first, *rest in words
    ]
    often = Counter(short)
    return [
        name if often[name] == 1 else f"{name} {training.run_id[:6]}"
        for name, training in zip(short, trainings, strict=True)
    ]


def parameters_table(compared: Sequence[Compared]) -> pd.DataFrame:
    """The parameters in which trainings differ, but for where they were kept: a row for each, a column for each run."""
    every = {of.name: of.training.params.canonical() for of in compared}
    kept = set(TrackingParams.model_fields)
    table = pd.DataFrame(every).drop(index=sorted(kept))
    return table[table.nunique(axis=1) > 1]


def figures_table(compared: Sequence[Compared]) -> pd.DataFrame:
    """What each training came to and what it cost, as text: a row for each figure, a column for each run.

    Figures that no run has are left out.
    """
    table = pd.DataFrame({of.name: {title: find(of) for title, find in _FIGURES.items()} for of in compared})
    return table[(table != NOT_KNOWN).any(axis=1)]


def remarks(compared: Sequence[Compared]) -> list[str]:
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
            lines.append(f"{of.name}, beside {of.standing.against} on {many} fresh realizations: {of.standing.words}.")
    return lines


def _differ(one: Compared, other: Compared) -> list[str]:
    return other_task(one.training.params, other.training.params)


def _of_another_task(of: Compared, first: Compared, different: list[str]) -> str:
    line = f"{of.name} cannot be held against {first.name}: it is for another task ({'; '.join(different)})"
    if of.training.params.data.data_file or first.training.params.data.data_file:
        return f"{line}."
    return f"{line}, and has another limit. Only their errors over the limit can be set side by side."


def figure(compared: Sequence[Compared]) -> Figure:
    """Curves and distances from the limit."""
    drawn = {}
    for of in compared:
        curves, fresh = of.training.curves, of.standing.fresh if of.standing else None
        over = None
        if fresh and fresh.mse_over_limit is not None and fresh.ratio_interval:
            over = (fresh.mse_over_limit, *fresh.ratio_interval)
        drawn[of.name] = Curves(
            validation=curves.get(VAL_MSE),
            audit=curves.get(AUDIT_MSE),
            limit_mse=of.training.metrics.get(VAL_LIMIT_MSE),
            over_limit=over,
        )
    return side_by_side(drawn)


def as_text(compared: Sequence[Compared], table_format: str) -> str:
    """Tables and remarks as text.

    Args:
        compared: The trainings.
        table_format: One of tabulate's, such as ``github`` or ``simple``.
    """
    parameters = parameters_table(compared)
    shown = _text(parameters, "parameter", table_format) if len(parameters) else "Their parameters are the same."
    return "\n\n".join([*remarks(compared), shown, _text(figures_table(compared), "figure", table_format)])


def as_page(compared: Sequence[Compared], drawn: Figure) -> str:
    """Everything on one page of HTML that needs nothing beside it."""
    picture = io.BytesIO()
    drawn.savefig(picture, format="png", dpi=110)
    template = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(
        files("freqfilter.workflows").joinpath("comparison.html").read_text(encoding="utf-8")
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
        return textwrap.fill(cell, WIDEST) if table_format == "simple" else cell

    rows = [[name, *map(shown, row)] for name, row in zip(table.index, table.to_numpy().tolist(), strict=True)]
    headers = [corner, *map(shown, table.columns)]
    return tabulate(rows, headers=headers, tablefmt=table_format, disable_numparse=True)


def _metric(name: str, digits: str) -> Callable[[Compared], str]:
    return lambda of: format(value, digits) if (value := of.training.metrics.get(name)) is not None else NOT_KNOWN


def _with_interval(name: str) -> Callable[[Compared], str]:
    def find(of: Compared) -> str:
        metrics = of.training.metrics
        value = metrics.get(name)
        return NOT_KNOWN if value is None else interval(value, metrics.get(f"{name}_low"), metrics.get(f"{name}_high"))

    return find


def _fresh(over_limit: bool) -> Callable[[Compared], str]:
    def find(of: Compared) -> str:
        if of.standing is None:
            return NOT_KNOWN
        fresh = of.standing.fresh
        if not over_limit:
            return interval(fresh.mse, *fresh.mse_interval, digits=4)
        if fresh.mse_over_limit is None or fresh.ratio_interval is None:
            return NOT_KNOWN
        return interval(fresh.mse_over_limit, *fresh.ratio_interval)

    return find


def _seconds(of: Compared) -> str:
    seconds = of.training.curves.get(EPOCH_SECONDS)
    return NOT_KNOWN if seconds is None else f"{seconds.sum():.0f} ({seconds.median():.1f} for an epoch)"


def _diagnoses(of: Compared) -> str:
    return ", ".join(sorted(diagnoses(of.training.tags))) or NOT_KNOWN


_FIGURES: dict[str, Callable[[Compared], str]] = {
    "version": lambda of: of.training.tags.get("model_version", NOT_KNOWN),
    "test MSE": _metric(TEST_MSE, ".4f"),
    "test MSE over the limit": _with_interval(TEST_MSE_OVER_LIMIT),
    "MSE on fresh realizations": _fresh(over_limit=False),
    "the same over the limit": _fresh(over_limit=True),
    "validation loss": _metric("best/val_loss", ".4f"),
    "audit MSE": _metric("best/audit_mse", ".4f"),
    "best epoch": _metric("best/epoch", ".0f"),
    "epochs": _metric("epochs_run", ".0f"),
    "weights": _metric("parameter_count", ",.0f"),
    "training, s": _seconds,
    "memory, MB": _metric(PEAK_MEMORY, ",.0f"),
    "diagnoses": _diagnoses,
}
