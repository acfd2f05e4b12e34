"""The names of all metrics, in one place: ``split/measure``."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence

import pandas as pd

from freqfilter.evaluation.scores import MEASURES, MODEL, OVERALL
from freqfilter.filters.state import EpochReport, TrainingState

TEST_MSE = "test/mse"
SUGGESTED_LEARNING_RATE = "range_test/suggested_learning_rate"


def epoch_metrics(report: EpochReport) -> dict[str, float]:
    """What is charted for an epoch, at ``step`` = epoch; what was not measured is left out."""
    metrics = {
        "train/loss": report.train_loss,
        "train/learning_rate": report.learning_rate,
        "train/gradient_norm": report.gradient_norm,
        "train/epoch_seconds": report.seconds,
        "val/loss": report.val_loss,
        "val/mse": report.val_mse,
        "audit/mse": report.audit_mse,
    }
    return {name: value for name, value in metrics.items() if value is not None}


def range_test_metrics(learning_rate: float, loss: float, smoothed: float) -> dict[str, float]:
    """What is charted for a step of a learning-rate range test, at ``step`` = step."""
    return {
        "range_test/learning_rate": learning_rate,
        "range_test/loss": loss,
        "range_test/smoothed_loss": smoothed,
    }


def best_metrics(state: TrainingState, *, audit_mse: float | None) -> dict[str, float]:
    """What the best epoch came to, how many were run, and how large the network is."""
    progress = state.progress
    metrics = {
        "parameter_count": state.n_parameters,
        "epochs_run": len(progress.history),
        "best/epoch": progress.best_epoch,
        "best/train_loss": progress.best.train_loss,
        "best/val_loss": progress.best.val_loss,
        "best/val_mse": progress.best.val_mse,
        "best/audit_mse": audit_mse,
    }
    return {name: value for name, value in metrics.items() if value is not None}


def spread_metrics(metrics: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Mean and sample standard deviation over several runs: ``test/mse_mean``, ``test/mse_std``.

    Args:
        metrics: The metrics of each run. Those that every run has are taken.
    """
    shared = [name for name in metrics[0] if all(name in of_run for of_run in metrics)]
    values = {name: [of_run[name] for of_run in metrics] for name in shared}
    spread = {f"{name}_std": statistics.stdev(found) for name, found in values.items() if len(found) > 1}
    return {f"{name}_mean": statistics.fmean(found) for name, found in values.items()} | spread


def score_metrics(scores: pd.DataFrame) -> dict[str, float]:
    """Scores on the test set: ``test/mse``, ``test/mse_5hz``, and ``test/zero_mse`` for the extractor ``zero``.

    Args:
        scores: Rows (extractor, component), a column for each measure, as ``evaluation.scores.compare`` gives them.
    """
    metrics = {}
    for extractor, component in scores.index:
        for measure in MEASURES:
            value = float(scores.loc[(extractor, component), measure])
            if extractor == MODEL:
                suffix = "" if component == OVERALL else f"_{component}"
                metrics[f"test/{measure}{suffix}"] = value
            elif component == OVERALL and measure == "mse":
                metrics[f"test/{extractor}_mse"] = value
    return {name: value for name, value in metrics.items() if not math.isnan(value)}
