"""Hold trainings against each other: what differs, what each came to, and whether that is more than chance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from freqfilter.errors import UserError
from freqfilter.evaluation.fresh import beside_limit, fresh_seeds, score_realizations
from freqfilter.evaluation.standing import Standing, least_realizations, standings
from freqfilter.files import replacing
from freqfilter.filters.compute import Compute, memory_errors
from freqfilter.params import TrackingParams
from freqfilter.params.task import other_task
from freqfilter.stopping import Stopping
from freqfilter.tracking import loading, provenance
from freqfilter.tracking.opening import open_run
from freqfilter.tracking.selection import Training, trainings
from freqfilter.tracking.store import open_store
from freqfilter.workflows.comparison import (
    Compared,
    as_page,
    as_text,
    figure,
    figures_table,
    names_of,
    parameters_table,
    remarks,
)
from freqfilter.workflows.console import Console
from freqfilter.workflows.run_ref import RunRef

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class ComparisonResult:
    """The result of a comparison.

    Attributes:
        run: The run that holds it.
        compared: The trainings, each with its scores on fresh realizations.
    """

    run: RunRef
    compared: list[Compared]

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
        return as_text(self.compared, "simple")

    def figure(self) -> Figure:
        """Validation and audit curves beside the limit, and errors over the limit with their intervals."""
        return figure(self.compared)


@memory_errors()
def compare(
    tracking: TrackingParams,
    *,
    runs: str | None,
    realizations: int,
    page: Path | None,
    stopping: Stopping,
    console: Console,
) -> ComparisonResult:
    """Compare trainings, as a run of its own in the experiment and as a page.

    Args:
        tracking: Where the runs are.
        runs: Which; see ``tracking.selection.trainings``.
        realizations: Fresh ones that filters of one task are scored on, all of them on the same.
        page: The HTML file to write; None: it is among the run's artifacts alone.
        stopping: Tells when to stop.
        console: Hears how it goes.

    Raises:
        UserError: If there are fewer than two such trainings, or one of them cannot be read.
    """
    tracking_uri = open_store()
    found = trainings(runs, tracking)
    if len(found) < 2:
        raise UserError(f"runs={runs or 'the newest'}: found {len(found)}, to compare takes two")
    if 0 < realizations < (least := least_realizations(len(found) - 1)):
        raise UserError(
            f"realizations={realizations}: so few tell no difference among {len(found)} trainings from chance; "
            f"{least} at least, or 0 for none"
        )
    named = dict(zip(names_of(found), found, strict=True))
    with open_run(tracking, name=f"compare {len(found)} trainings", stopping=stopping) as run:
        run.log_params({"runs": " ".join(training.run_id for training in found), "realizations": str(realizations)})
        run.log_source(provenance.source())
        run.log_tags({"workflow": "compare"})
        standing: dict[str, Standing] = {}
        for group in _by_task(named):
            standing |= _score(group, realizations, stopping=stopping, console=console)
        compared = [Compared(name, training, standing.get(name)) for name, training in named.items()]
        drawn = figure(compared)
        content = as_page(compared, drawn)
        if page is not None:
            with replacing(page) as file:
                file.write(content.encode())
        run.log_figure(drawn, "comparison/side_by_side.png")
        run.log_bytes(content.encode(), "comparison/report.html")
        run.log_bytes(figures_table(compared).to_csv(index_label="figure").encode(), "comparison/figures.csv")
        run.log_bytes(parameters_table(compared).to_csv(index_label="parameter").encode(), "comparison/parameters.csv")
        run.describe(as_text(compared, "github"))
    return ComparisonResult(RunRef.to(run, tracking_uri), compared)


def _by_task(named: Mapping[str, Training]) -> list[dict[str, Training]]:
    """Trainings of the same task together."""
    groups: list[dict[str, Training]] = []
    for name, training in named.items():
        for group in groups:
            if not other_task(training.params, next(iter(group.values())).params):
                group[name] = training
                break
        else:
            groups.append({name: training})
    return groups


def _score(
    group: Mapping[str, Training], realizations: int, *, stopping: Stopping, console: Console
) -> dict[str, Standing]:
    """How filters of one task stand on realizations that none of them has seen."""
    scored = {name: training for name, training in group.items() if training.has_model}
    if not scored or not realizations:
        return {}
    first = next(iter(scored.values())).params
    if first.data.data_file is not None:
        console.say(f"{', '.join(scored)}: trained on a data file, from which no fresh realizations can be drawn")
        return {}
    compute = Compute.open(first.training.model_copy(update={"device": "auto", "precision": "fp32"}))
    networks = {name: loading.load_run(training.run_id).module.to(compute.device) for name, training in scored.items()}
    extractors, errors = beside_limit(networks, first), {}
    noise_seeds = fresh_seeds([training.params for training in scored.values()], realizations)
    for seed, table in score_realizations(extractors, first, noise_seeds, device=compute.device):
        stopping.check()
        errors[seed] = table
        console.say(f"realization {len(errors)} of {realizations}: {len(scored)} filters scored")
    return standings(errors, list(scored))
