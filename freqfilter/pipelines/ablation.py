"""Several trainings as children of one parent run, with a comparison."""

from __future__ import annotations

import logging
import statistics
from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd

from freqfilter.config import Params
from freqfilter.errors import UserError
from freqfilter.pipelines.model_card import runs_table
from freqfilter.pipelines.run_metrics import spread_metrics
from freqfilter.pipelines.setup import setup
from freqfilter.pipelines.train import TrainingResult, train
from freqfilter.plots.training import comparison
from freqfilter.process import shutdown
from freqfilter.tracked_names import BEST_HOLDOUT_MSE, TEST_MSE, TEST_MSE_OVER_LIMIT
from freqfilter.tracking import provenance
from freqfilter.tracking.client import open_store
from freqfilter.tracking.lifecycle import open_run
from freqfilter.tracking.outbox import UndeliveredError
from freqfilter.tracking.run import Run
from freqfilter.tracking.ui_views import RunRef

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SweepResult:
    """The result of several trainings that belong together.

    Attributes:
        run: The parent run.
        results: The result of each training that ended well, by what distinguishes it.
        table: A row for each of them: size, cost and errors.
    """

    run: RunRef
    results: dict[str, TrainingResult]
    table: pd.DataFrame


def train_variants(
    variants: Mapping[str, Params], *, workflow: str, asked: Mapping[str, str], recipe: str, name: str
) -> SweepResult:
    """Train each variant in turn; a failed one is reported and does not keep the others from being trained.

    Where the variants differ in their seed alone, the parent has the mean and the spread of every metric
    (``test/mse_mean``, ``test/mse_std``): over all seeds, or not at all. Where they differ in more, somebody is
    choosing, and the comparison is of validation and holdout: the test set chooses nothing.

    Args:
        variants: Parameters of each run, by what is special about it.
        workflow: What they are trained for, a tag of the parent.
        asked: What made the variants, by the name that was typed.
        recipe: The recipe's name, which the runs keep.
        name: What the parent is called where nobody has named it.

    Raises:
        UserError: If a run has failed.
        Interrupted: If a signal was received; the parent and the current run are then KILLED.
    """
    tracking_uri = open_store()
    for params in variants.values():
        setup(params)  # what can be refused is refused before there is a run
    first, shared = next(iter(variants.values())), _shared(variants)
    with open_run(first.tracking, name=name) as run:
        run.log_params({"recipe": recipe, **asked, **shared})
        run.log_source(provenance.source())
        run.log_tags({"workflow": workflow, "recipe": recipe})
        trained, failed = _train_all(variants, run, recipe=recipe)
        only_by_chance = set(first.canonical()) - set(shared) <= {"seed"}
        table = comparison_table(trained, with_test=only_by_chance)
        if trained:
            logger.info(f"\n{runs_table(table, 'simple', with_spread=only_by_chance and not failed)}\n")
            text = runs_table(table, "github", with_spread=only_by_chance and not failed)
            _log_comparison(run, table, text, failed)
        if failed:
            first_name, reason = next(iter(failed.items()))
            raise UserError(f"{len(failed)} of {len(variants)} runs failed, the first of them {first_name}: {reason}")
        if only_by_chance:
            run.log_metrics(spread_metrics([of_run.metrics for of_run in trained.values()]), step=0)
    return SweepResult(RunRef.to(run, tracking_uri), trained, table)


def comparison_table(trained: Mapping[str, TrainingResult], *, with_test: bool) -> pd.DataFrame:
    """A row for each run: its size, its cost and how good it became.

    Args:
        trained: The runs, by what is special about them.
        with_test: Whether the test is shown, which chooses nothing.
    """
    rows = {}
    for name, of_run in trained.items():
        history, metrics = of_run.progress.history, of_run.metrics
        rows[name] = {
            "parameter_count": int(metrics["parameter_count"]),
            "epochs_run": len(history),
            "epoch_seconds": statistics.median(report.seconds for report in history),
            "best_epoch": of_run.progress.best_epoch,
            "train_loss": metrics["best/train_loss"],
            "val_mse": metrics["best/val_mse"],
            "val_mse_over_limit": metrics.get("best/val_mse_over_limit"),
            "holdout_mse": metrics.get(BEST_HOLDOUT_MSE),
        }
        if with_test:
            rows[name] |= {"test_mse": metrics[TEST_MSE], "test_mse_over_limit": metrics.get(TEST_MSE_OVER_LIMIT)}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("run")


def _shared(variants: Mapping[str, Params]) -> dict[str, str]:
    """The parameters that all variants agree upon."""
    first, *others = (params.canonical() for params in variants.values())
    return {name: value for name, value in first.items() if all(other[name] == value for other in others)}


def _train_all(
    variants: Mapping[str, Params], parent: Run, *, recipe: str
) -> tuple[dict[str, TrainingResult], dict[str, str]]:
    """What each run came to, and why those that failed did."""
    trained, failed = {}, {}
    for number, (name, params) in enumerate(variants.items(), start=1):
        shutdown.check()
        logger.info(f"\n[{number} of {len(variants)}] {name}")
        try:
            params = params.with_tracking(experiment=parent.experiment)
            trained[name] = train(params, recipe=recipe, name=name, parent=parent)
        except UndeliveredError:  # the store has gone: so will the others' be
            raise
        except UserError as error:
            failed[name] = str(error)
            logger.info(f"{name} failed: {error}")
    return trained, failed


def _log_comparison(run: Run, table: pd.DataFrame, text: str, failed: Mapping[str, str]) -> None:
    run.log_bytes(table.to_csv().encode(), "comparison/runs.csv")
    run.log_bytes(text.encode(), "comparison/runs.md")
    run.log_figure(comparison(table), "comparison/runs.png")
    run.describe("\n\n".join([text, *(f"{name} failed: {reason}" for name, reason in failed.items())]))
