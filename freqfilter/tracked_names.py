"""Names of metrics and artifacts."""

from __future__ import annotations

LOSSES = "visualizations/07_training_loss.png"  # the original script's name
PREDICTION = "visualizations/08_prediction.png"
COMPONENTS = "visualizations/13_mse_per_frequency.png"
# Figures that MLflow's UI compares side by side for several runs, and their keys there.
COMPARED = {LOSSES: "training_loss", PREDICTION: "prediction", COMPONENTS: "mse_per_frequency"}
CHECKPOINTS = "checkpoints"  # the folder of a run's checkpoints
OUTBOX = "outbox.jsonl"  # in the folder of a run

TEST_MSE = "test/mse"
TEST_MSE_OVER_LIMIT = "test/mse_over_limit"
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

# Former names of metrics, in older runs.
LEGACY_METRICS = {"audit/mse": HOLDOUT_MSE, "best/audit_mse": BEST_HOLDOUT_MSE}


def is_repeatable(name: str) -> bool:
    """Whether a metric has the same value when a run is repeated: no time, memory or load.

    >>> is_repeatable("val/mse"), is_repeatable("system/cpu_utilization_percentage")
    (True, False)
    """
    return name not in (EPOCH_SECONDS, PEAK_MEMORY) and not name.startswith(SYSTEM)
