"""Evaluation of a registered version or of a run's model on the test set of its own parameters."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import pandas as pd
from torch import nn

from freqfilter.config import Params, SignalParams, TrackingParams
from freqfilter.data.recordings import Recordings
from freqfilter.data.splits import Splits
from freqfilter.errors import UserError
from freqfilter.evaluation.heldout import (
    FreshScores,
    fresh_seeds,
    score_realizations,
    score_test_set,
    score_with_limit,
    summarize,
)
from freqfilter.evaluation.limits import LIMIT
from freqfilter.evaluation.metrics import MODEL, OVERALL, Comparison
from freqfilter.models.network import estimate
from freqfilter.pipelines.model_card import heldout_summary, limit_summary, scores_table
from freqfilter.pipelines.run_metrics import fresh_metrics, score_metrics
from freqfilter.plots import catalog
from freqfilter.process import shutdown
from freqfilter.tracked_names import COMPARED_OF_RECORDINGS
from freqfilter.tracking import aliases, loading, provenance
from freqfilter.tracking.client import open_store
from freqfilter.tracking.lifecycle import Job, open_run
from freqfilter.tracking.run import Run
from freqfilter.tracking.ui_views import RunRef
from freqfilter.training.device import Accelerator, wrap_memory_errors

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EvaluationResult:
    """Result of an evaluation.

    Attributes:
        run: The run of the evaluation.
        uri: URI of the model.
        metrics: Metrics on the test set and on fresh realizations.
        compared: Scores of the model and its baselines on the test set.
        fresh: Scores on fresh realizations; None if ``realizations`` is 0.
    """

    run: RunRef
    uri: str
    metrics: dict[str, float]
    compared: Comparison
    fresh: FreshScores | None

    @property
    def scores(self) -> pd.DataFrame:
        """Scores on the test set: a row for each estimator and component, a column for each measure."""
        return self.compared.table


@wrap_memory_errors()
def evaluate(
    tracking: TrackingParams, *, version: int | None, run_id: str | None, realizations: int
) -> EvaluationResult:
    """Evaluate a model and its baselines in a tracked run.

    Args:
        tracking: Tracking parameters with the experiment and the name of the model.
        version: Version number; the newest of ``model_name`` if neither it nor ``run_id`` is given.
        run_id: Run whose model is evaluated, instead of a version.
        realizations: Number of fresh realizations, in addition to the test set.

    Raises:
        UserError: If both ``version`` and ``run_id`` are given, there is no such model, its data file is missing,
            it has no signal model for fresh realizations, or memory runs out.
    """
    if version and run_id:
        raise UserError("version and run_id: both select a model; give one")
    tracking_uri = open_store()
    if run_id:
        chosen, model = {"run_id": run_id}, loading.load_run(run_id)
    else:
        found = aliases.candidate_version(tracking.model_name, version)
        chosen, model = {"model_name": found.model_name, "version": str(found.version)}, loading.load_uri(found.uri)
    params = model.params
    noise_seeds = fresh_seeds([params], realizations) if realizations else []
    # Models are used in float32, on the available device.
    accelerator = Accelerator.open(params.training.model_copy(update={"device": "auto", "precision": "fp32"}))
    splits = Splits.from_params(params)
    options = chosen | ({"realizations": str(realizations)} if realizations else {})
    with open_run(tracking, Job("evaluate", f"evaluate {model.uri}", options)) as run:
        run.log_tags({"model_uri": model.uri} | provenance.machine_tags(accelerator))
        run.log_data(splits.test, name="test", context="test")
        logger.info(f"scoring {model.uri} on {len(splits.test):,} {splits.test.items}")
        module = model.module.to(accelerator.device)
        compared = score_test_set(module, splits, params, device=accelerator.device)
        metrics = score_metrics(compared)
        run.log_metrics(metrics, step=0, model_id=model.model_id)
        log_evaluation(run, module, splits, compared, signals=params.signals, accelerator=accelerator)
        summaries, fresh = [limit_summary(metrics)], None
        logger.info(f"\n{scores_table(compared.table, 'simple')}\n\n{summaries[0]}")
        if noise_seeds:
            fresh = _score_fresh(module, params, noise_seeds, accelerator=accelerator)
            run.log_bytes(fresh.per_realization.to_csv().encode(), "evaluation/fresh_realizations.csv")
            metrics_on_fresh = fresh_metrics(fresh)
            run.log_metrics(metrics_on_fresh, step=0, model_id=model.model_id)
            metrics |= metrics_on_fresh
            summaries.append(heldout_summary(metrics_on_fresh))
            logger.info(summaries[1])
        paragraphs = [f"Scores of `{model.uri}` on its test set.", *summaries, scores_table(compared.table, "github")]
        run.describe("\n\n".join(paragraphs))
    return EvaluationResult(RunRef.to(run, tracking_uri), model.uri, metrics, compared, fresh)


def _score_fresh(
    network: nn.Module, params: Params, noise_seeds: Sequence[int], *, accelerator: Accelerator
) -> FreshScores:
    tables = {}
    estimators = score_with_limit({MODEL: network}, params)
    for noise_seed, errors in score_realizations(estimators, params, noise_seeds, device=accelerator.device):
        shutdown.check()
        tables[noise_seed], mse = errors, errors[OVERALL]
        limit = f", limit {mse[LIMIT]:.4f}" if LIMIT in mse else ""
        logger.info(f"realization {noise_seed}, {len(tables)} of {len(noise_seeds)}: MSE {mse[MODEL]:.4f}{limit}")
    return summarize(tables)


def log_evaluation(
    run: Run,
    network: nn.Module,
    splits: Splits,
    compared: Comparison,
    *,
    signals: SignalParams,
    accelerator: Accelerator,
) -> None:
    """Log the table of scores and the figures of the test set."""
    run.log_bytes(compared.table.to_csv().encode(), "evaluation/test_scores.csv")
    run.log_bytes(scores_table(compared.table, "github").encode(), "evaluation/test_scores.md")
    estimator, extent = partial(estimate, network), "window"
    if isinstance(splits.test, Recordings) and compared.contexts is not None:
        extent = "recording"
        run.log_bytes(compared.contexts.to_csv().encode(), "evaluation/test_mse_after.csv")
        figures = catalog.recording_figures(estimator, splits.test, compared, signals)
    else:
        figures = catalog.evaluation_figures(
            estimator,
            splits.test,
            splits.first_windows,
            compared,
            frequencies_hz=signals.frequencies_hz,
            sample_rate_hz=signals.sample_rate_hz,
            device=accelerator.device,
        )
    run.log_bytes(compared.per_step.T.to_csv(index_label="sample").encode(), f"evaluation/test_mse_over_{extent}.csv")
    for artifact, draw in figures:
        run.log_figure(draw, artifact, key=COMPARED_OF_RECORDINGS.get(artifact))
