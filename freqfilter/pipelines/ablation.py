"""Several trainings as children of one parent run, with a comparison."""

from __future__ import annotations

import logging
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import pandas as pd

from freqfilter.config import Params
from freqfilter.config.load import require_online
from freqfilter.errors import UserError
from freqfilter.pipelines.model_card import escape_markdown, runs_table
from freqfilter.pipelines.run_metrics import spread_metrics
from freqfilter.pipelines.setup import setup
from freqfilter.pipelines.train import TrainingResult, train
from freqfilter.plots.training import comparison
from freqfilter.process import shutdown
from freqfilter.tracked_names import BEST_HOLDOUT_MSE, TEST_MSE, TEST_MSE_OVER_LIMIT
from freqfilter.tracking.lifecycle import Job, open_run
from freqfilter.tracking.outbox import UndeliveredError
from freqfilter.tracking.run import Run
from freqfilter.tracking.ui_views import RunRef

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SweepResult:
    """Result of an ablation.

    Attributes:
        run: The parent run.
        results: Result of each successful training, by name of the variant.
        table: Size, cost and errors: a row for each successful training.
    """

    run: RunRef
    results: dict[str, TrainingResult]
    table: pd.DataFrame


def train_variants(
    variants: Mapping[str, Params], *, workflow: str, options: Mapping[str, str], recipe: str, name: str
) -> SweepResult:
    """Train each variant in turn; a failed training is reported and the next one starts.

    If the variants differ only in their seed, the parent has the mean and standard deviation of every metric
    (``test/mse_mean``, ``test/mse_std``), unless a training failed. Otherwise the comparison serves model selection and
    has validation and holdout only, since the test set must not be used for selection.

    Args:
        variants: Parameters of each run, by name of the variant.
        workflow: Value of the parent's tag ``workflow``.
        options: Options that define the variants, logged as parameters of the parent.
        recipe: Name of the recipe, a parameter of the runs.
        name: Name of the parent run if the user has not set one.

    Raises:
        UserError: If a variant states ``tracking=offline``, or a run failed.
        Interrupted: If a signal was received; the parent and the current run are then KILLED.
    """
    for params in variants.values():  # errors are raised before a run is created
        require_online(params)
        tracking_uri = setup(params).tracking_uri
    canonical = [params.canonical() for params in variants.values()]
    shared = {name: value for name, value in canonical[0].items() if all(each[name] == value for each in canonical)}
    # Not repeatable: it would train the finished children again.
    job = Job(workflow, name, {"recipe": recipe, **options, **shared}, repeatable=False)
    with open_run(next(iter(variants.values())).tracking, job) as run:
        run.log_tags({"recipe": recipe})
        trained, failed = _train_all(variants, run, recipe=recipe)
        only_seed_differs = set(canonical[0]) - set(shared) <= {"seed"}
        table = comparison_table(trained, with_test=only_seed_differs)
        if trained:
            with_spread = only_seed_differs and not failed
            logger.info(f"\n{runs_table(table, 'simple', with_spread=with_spread)}\n")
            text = runs_table(table, "github", with_spread=with_spread)
            run.log_bytes(table.to_csv().encode(), "comparison/runs.csv")
            run.log_bytes(text.encode(), "comparison/runs.md")
            run.log_figure(partial(comparison, table), "comparison/runs.png")
            run.describe(
                "\n\n".join([text, *(escape_markdown(f"{name} failed: {reason}") for name, reason in failed.items())])
            )
        if failed:
            first_name, reason = next(iter(failed.items()))
            raise UserError(f"{len(failed)} of {len(variants)} runs failed; first: {first_name}: {reason}")
        if only_seed_differs:
            run.log_metrics(spread_metrics([result.metrics for result in trained.values()]), step=0)
    return SweepResult(RunRef.to(run, tracking_uri), trained, table)


def comparison_table(trained: Mapping[str, TrainingResult], *, with_test: bool) -> pd.DataFrame:
    """Return size, cost and errors, with or without test scores: a row for each run."""
    rows = {}
    for name, result in trained.items():
        history, metrics = result.progress.history, result.metrics
        rows[name] = {
            "parameter_count": int(metrics["parameter_count"]),
            "epochs_run": len(history),
            "epoch_seconds": statistics.median(report.seconds for report in history),
            "best_epoch": result.progress.best_epoch,
            "train_loss": metrics["best/train_loss"],
            "val_mse": metrics["best/val_mse"],
            "val_mse_over_limit": metrics.get("best/val_mse_over_limit"),
            "holdout_mse": metrics.get(BEST_HOLDOUT_MSE),
        }
        if with_test:
            rows[name] |= {"test_mse": metrics[TEST_MSE], "test_mse_over_limit": metrics.get(TEST_MSE_OVER_LIMIT)}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("run")


def _train_all(
    variants: Mapping[str, Params], parent: Run, *, recipe: str
) -> tuple[dict[str, TrainingResult], dict[str, str]]:
    """Return the results of successful runs and the errors of failed ones."""
    trained, failed = {}, {}
    for number, (name, params) in enumerate(variants.items(), start=1):
        shutdown.check()
        logger.info(f"\n[{number} of {len(variants)}] {name}")
        try:
            params = params.with_tracking(experiment=parent.experiment)
            trained[name] = train(params, recipe=recipe, name=name, parent=parent)
        except UndeliveredError:  # the other runs could not be delivered either
            raise
        except UserError as error:
            failed[name] = str(error)
            logger.info(f"{name} failed: {error}")
    return trained, failed
