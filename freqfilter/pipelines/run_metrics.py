"""Metrics of a run, from the results of training and evaluation."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence

from freqfilter.evaluation.heldout import FreshScores
from freqfilter.evaluation.limits import LIMIT
from freqfilter.evaluation.metrics import MEASURES, MODEL, OVERALL, Comparison, limit_ratio, ratio_interval
from freqfilter.tracked_names import (
    BEST_HOLDOUT_MSE,
    EPOCH_SECONDS,
    HOLDOUT_MSE,
    PEAK_MEMORY,
    TEST_MSE_OVER_LIMIT,
    TRAIN_LOSS,
    VAL_LIMIT_MSE,
    VAL_LOSS,
    VAL_MSE,
    VAL_MSE_OVER_LIMIT,
)
from freqfilter.training.reports import EpochReport
from freqfilter.training.state import TrainingState


def epoch_metrics(report: EpochReport, *, val_limit_mse: float | None) -> dict[str, float]:
    """Return the metrics of an epoch, logged at ``step`` = epoch; those not measured are omitted.

    Args:
        report: Report of the epoch.
        val_limit_mse: The limit on the validation windows, if known.
    """
    metrics = {
        TRAIN_LOSS: report.train_loss,
        "train/learning_rate": report.learning_rate,
        "train/gradient_norm": report.gradient_norm,
        EPOCH_SECONDS: report.seconds,
        VAL_LOSS: report.val_loss,
        VAL_MSE: report.val_mse,
        VAL_LIMIT_MSE: val_limit_mse,
        VAL_MSE_OVER_LIMIT: limit_ratio(report.val_mse, val_limit_mse),
        HOLDOUT_MSE: report.holdout_mse,
    }
    return {name: value for name, value in metrics.items() if value is not None}


def best_metrics(state: TrainingState, *, holdout_mse: float | None, val_limit_mse: float | None) -> dict[str, float]:
    """Return the metrics of the best epoch, the number of epochs and the size of the network.

    Args:
        state: State at the end of training.
        holdout_mse: MSE of the best weights on the whole holdout realization, if there is one.
        val_limit_mse: The limit on the validation windows, if known.
    """
    progress = state.progress
    metrics = {
        "parameter_count": state.n_parameters,
        "epochs_run": len(progress.history),
        "best/epoch": progress.best_epoch,
        "best/train_loss": progress.best.train_loss,
        "best/val_loss": progress.best.val_loss,
        "best/val_mse": progress.best.val_mse,
        "best/val_mse_over_limit": limit_ratio(progress.best.val_mse, val_limit_mse),
        BEST_HOLDOUT_MSE: holdout_mse,
        PEAK_MEMORY: state.accelerator.peak_memory_mb(),
    }
    return {name: value for name, value in metrics.items() if value is not None}


def spread_metrics(metrics: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return mean and sample standard deviation over runs: ``test/mse_mean``, ``test/mse_std``.

    Args:
        metrics: Metrics of each run; only those of all runs are used.
    """
    shared = [name for name in metrics[0] if all(name in run for run in metrics)]
    values = {name: [run[name] for run in metrics] for name in shared}
    spread = {f"{name}_std": statistics.stdev(sample) for name, sample in values.items() if len(sample) > 1}
    return {f"{name}_mean": statistics.fmean(sample) for name, sample in values.items()} | spread


def limit_metrics(expected_mse: float) -> dict[str, float]:
    """Return the expected limit for the view of the filter."""
    return {"limit/expected_mse": expected_mse}


def score_metrics(compared: Comparison) -> dict[str, float]:
    """Return the scores on the test set.

    These are ``test/mse``, ``test/mse_5hz``, ``test/zero_mse`` for the baseline ``zero``, and, if the limit is known,
    ``test/mse_over_limit`` with its 95 % interval, in decibels, and for each component. A ratio to a limit of zero and
    an interval that is unknown are omitted.
    """
    table, metrics = compared.table, dict[str, float]()
    for (estimator, component), scores in zip(table.index, table.to_dict("records"), strict=True):
        suffix = "" if component == OVERALL else f"_{component}"
        if estimator == MODEL:
            metrics |= {f"test/{measure}{suffix}": scores[measure] for measure in MEASURES}
        elif component == OVERALL:
            metrics[f"test/{estimator}_mse"] = scores["mse"]
        if estimator == LIMIT:
            metrics |= _ratio_metrics("test", suffix, float(table["mse"][MODEL, component]), scores["mse"])
    if LIMIT in compared.per_step.index and compared.per_block is not None:
        model, limit = (compared.per_block.loc[name].to_numpy() for name in (MODEL, LIMIT))
        metrics |= _interval_metrics(TEST_MSE_OVER_LIMIT, ratio_interval(model, limit))
    if compared.contexts is not None:
        for samples, row in compared.contexts.iterrows():
            for name, value in row.items():
                measure = str(name).removesuffix("_low").removesuffix("_high")
                metrics[f"test/{measure}_after_{samples}{str(name).removeprefix(measure)}"] = float(value)
    return _finite(metrics)


def fresh_metrics(scores: FreshScores) -> dict[str, float]:
    """Return ``fresh/mse`` and, if the limit is known, ``fresh/mse_over_limit``, each with its 95 % interval."""
    low, high = scores.mse_interval
    metrics = {"fresh/realizations": len(scores.per_realization), "fresh/mse_low": low, "fresh/mse_high": high}
    for component in scores.mean.columns:
        suffix = "" if component == OVERALL else f"_{component}"
        metrics[f"fresh/mse{suffix}"] = mse = float(scores.mean[component][MODEL])
        if LIMIT in scores.mean.index:
            metrics[f"fresh/limit_mse{suffix}"] = limit_mse = float(scores.mean[component][LIMIT])
            metrics |= _ratio_metrics("fresh", suffix, mse, limit_mse)
    return _finite(metrics | _interval_metrics("fresh/mse_over_limit", scores.ratio_interval))


def _interval_metrics(name: str, interval: tuple[float, float] | None) -> dict[str, float]:
    return {} if interval is None else {f"{name}_low": interval[0], f"{name}_high": interval[1]}


def _ratio_metrics(data: str, suffix: str, mse: float, limit_mse: float) -> dict[str, float]:
    """Return the ratio of MSE to limit and, for all components together, the same in decibels."""
    ratio = limit_ratio(mse, limit_mse)
    metrics = {} if ratio is None else {f"{data}/mse_over_limit{suffix}": ratio}
    return metrics | ({f"{data}/db_over_limit": 10 * math.log10(ratio)} if ratio and not suffix else {})


def _finite(metrics: Mapping[str, float]) -> dict[str, float]:
    """Return the finite metrics: a store cannot sort NaN and Inf."""
    return {name: value for name, value in metrics.items() if math.isfinite(value)}
