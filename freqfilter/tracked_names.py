"""Names of metrics and artifacts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

Value = TypeVar("Value")

LOSSES = "visualizations/07_training_loss.png"  # the original script's name
PREDICTION = "visualizations/08_prediction.png"
COMPONENTS = "visualizations/13_mse_per_frequency.png"
OVER_SAMPLES = "visualizations/15_mse_over_samples.png"
# Figures that MLflow's UI compares side by side for several runs, and their keys there.
COMPARED = {LOSSES: "training_loss", PREDICTION: "prediction", COMPONENTS: "mse_per_frequency"}
COMPARED_OF_RECORDINGS = COMPARED | {OVER_SAMPLES: "mse_over_samples"}
CHECKPOINTS = "checkpoints"  # the folder of a run's checkpoints
OUTBOX, FILES = "outbox.jsonl", "files.jsonl"  # in the folder of a run: its messages, and its files to deliver

TEST_MSE = "test/mse"
TEST_MSE_OVER_LIMIT = "test/mse_over_limit"
TEST_LIMIT_MSE = "test/limit_mse"
# Of recordings, over the range of samples from so many up to twice as many.
MAIN_CONTEXT = 1000
AFTER = f"after_{MAIN_CONTEXT}"
TEST_MSE_AFTER, TEST_MSE_OVER_LIMIT_AFTER = f"{TEST_MSE}_{AFTER}", f"{TEST_MSE_OVER_LIMIT}_{AFTER}"
TRAIN_LOSS = "train/loss"
VAL_LOSS = "val/loss"
VAL_MSE = "val/mse"
VAL_MSE_OVER_LIMIT = "val/mse_over_limit"
VAL_LIMIT_MSE = "val/limit_mse"
HOLDOUT_MSE = "holdout/mse"
BEST_HOLDOUT_MSE = "best/holdout_mse"
EPOCH_SECONDS = "train/epoch_seconds"
PEAK_MEMORY = "peak_memory_mb"
SYSTEM = "system/"  # prefix of system metrics, which MLflow's UI shows in a tab
SUGGESTED_LEARNING_RATE = "range_test/suggested_learning_rate"

# Present names of parameters, metrics, and data and results in checkpoints, by the name under which they were stored.
LEGACY_NAMES = {
    "audit_noise_seed": "holdout_noise_seed",
    "audit_every": "holdout_every",
    "audit_windows": "holdout_windows",
    "audit/mse": HOLDOUT_MSE,
    "best/audit_mse": BEST_HOLDOUT_MSE,
    "audit": "holdout",
    "audit_mse": "holdout_mse",
}


def with_current_names(values: Mapping[str, Value]) -> dict[str, Value]:
    """Rename stored values to their present names.

    >>> with_current_names({"audit/mse": 0.2, "val/mse": 0.3})
    {'holdout/mse': 0.2, 'val/mse': 0.3}
    """
    return {LEGACY_NAMES.get(name, name): value for name, value in values.items()}
