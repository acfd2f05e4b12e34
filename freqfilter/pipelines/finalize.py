"""End of a training: its files, its test, its registered model."""

from __future__ import annotations

import hashlib
import json
import logging
import math
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from freqfilter.config import Params
from freqfilter.data.splits import Splits
from freqfilter.data.windows import Dataset
from freqfilter.evaluation import limits
from freqfilter.evaluation.heldout import score_test_set
from freqfilter.evaluation.metrics import Comparison
from freqfilter.models.network import FrequencyFilterLSTM, KalmanFilter
from freqfilter.pipelines.evaluate import log_evaluation
from freqfilter.pipelines.model_card import model_card, run_description
from freqfilter.pipelines.run_metrics import best_metrics, score_metrics
from freqfilter.pipelines.setup import TrainingSetup
from freqfilter.plots.training import training_loss
from freqfilter.process import shutdown
from freqfilter.tracked_names import COMPARED, LOSSES, TEST_MSE, TEST_MSE_OVER_LIMIT
from freqfilter.tracking import registry
from freqfilter.tracking.lifecycle import wrap_delivery_errors
from freqfilter.tracking.run import Run, diagnoses, picture_url
from freqfilter.training.checkpoint import write_weights
from freqfilter.training.loop import validate
from freqfilter.training.state import Progress, TrainingState

logger = logging.getLogger(__name__)

GOLDEN_WINDOWS, GOLDEN_SAMPLES = 16, 500  # windows or recordings, and samples of a recording
# Tags of a run that its version has as well.
VERSION_TAGS = (
    "recipe", "params_digest", "git_commit", "git_path", "git_patch_sha256", "freqfilter_version",
    "distributions_sha256",
)  # fmt: skip


def finalize(
    run: Run, prepared: TrainingSetup, *, val_limit_mse: float | None
) -> tuple[Comparison, dict[str, float], int | None]:
    """Log the files of a training, test its best weights, and log and register its model.

    Args:
        run: The open run.
        prepared: The training, at its end.
        val_limit_mse: The limit on the validation windows; None if it is unknown.

    Returns:
        Scores on the test set, the final metrics, and the registered version; None if it is not registered.
    """
    params, splits, state = prepared.params, prepared.splits, prepared.state
    log_training_files(run, state, params, val_limit_mse=val_limit_mse)
    compared, metrics = evaluate_best_weights(run, state, splits, params, val_limit_mse=val_limit_mse)
    version = None
    if run.online:
        shutdown.ignore_signals()  # registration takes seconds
        version = log_version(run, state.network.cpu(), splits, params, compared, metrics, progress=state.progress)
    return compared, metrics, version


def log_training_files(run: Run, state: TrainingState, params: Params, *, val_limit_mse: float | None) -> None:
    """Log the loss curves, the best weights and the history, under the names of the original script."""
    history = state.progress.history
    draw = partial(
        training_loss,
        history,
        loss=params.loss_name,
        best_epoch=state.progress.best_epoch,
        val_limit_mse=val_limit_mse,
    )
    run.log_figure(draw, LOSSES, dpi=300, key=COMPARED[LOSSES])
    write_weights(run.folder / "models/best_model.pth", state.best_weights)
    run.log_file(run.folder / "models/best_model.pth")
    run.log_arrays(
        "models/training_history.npz",
        train_losses=[report.train_loss for report in history],
        val_losses=[math.nan if report.val_loss is None else report.val_loss for report in history],
        num_epochs=len(history),
    )


def evaluate_best_weights(
    run: Run, state: TrainingState, splits: Splits, params: Params, *, val_limit_mse: float | None
) -> tuple[Comparison, dict[str, float]]:
    """Score the best weights on the test set, which nothing else reads; its scores, and the final metrics."""
    logger.info("scoring the best weights on the test set")
    accelerator = state.accelerator
    compared = score_test_set(state.network, splits, params, device=accelerator.device)
    holdout_mse = None
    if splits.holdout:
        holdout_mse = validate(state, splits.holdout, params.training).mse
    log_evaluation(run, state.network, splits, compared, signals=params.signals, accelerator=accelerator)
    return compared, best_metrics(state, holdout_mse=holdout_mse, val_limit_mse=val_limit_mse) | score_metrics(compared)


def log_version(
    run: Run,
    module: FrequencyFilterLSTM | KalmanFilter,
    splits: Splits,
    params: Params,
    compared: Comparison,
    metrics: dict[str, float],
    *,
    progress: Progress | None,
) -> int | None:
    """Log a filter as the model of a run, describe the run, and register the model if ``register`` is true.

    Args:
        run: The open run, which has a store.
        module: The filter, in evaluation mode, on the CPU.
        splits: The data.
        params: Parameters of the run.
        compared: Scores on the test set.
        metrics: Metrics of the model.
        progress: Progress of its training; None for a classical filter.

    Returns:
        The version; None if it is not registered.
    """
    tracking, step = params.tracking, progress.best_epoch if progress else 0
    card = model_card(params, module.arguments, compared.table, metrics, run.tags | {"run_id": run.run_id})
    run.log_bytes(card.encode(), "model_card.md")
    run.deliver()
    package = registry.ModelPackage(
        module,
        params,
        golden=golden_inputs(splits.test),
        step=step,
        limit_mse=limits.expected_limit_mse(params),
        card=card,
    )
    found = diagnoses(run.tags).values()
    describe = partial(run_description, progress, compared.table, metrics, diagnoses=found)
    with wrap_delivery_errors("the model"):
        model_id = registry.log_and_check_model(run.run_id, package, folder=run.folder)
        run.log_metrics(metrics, step=step, model_id=model_id)
        version = None
        if tracking.register:
            version = registry.register(
                model_id,
                tracking.model_name,
                tags=_version_tags(run, splits, metrics),
                description=describe(run_id=run.run_id),
            )
            run.log_tags({"model_version": str(version)})
    picture = picture_url(run.run_id, COMPARED[LOSSES]) if progress else None
    run.describe(describe(model_name=tracking.model_name, version=version, picture=picture))
    return version


def golden_inputs(test: Dataset) -> NDArray[np.float32]:
    """Inputs of the golden predictions: test windows, or the start of test recordings, spread evenly."""
    inputs, _ = test.batch(torch.linspace(0, len(test) - 1, GOLDEN_WINDOWS).round().long())
    return inputs.numpy() if inputs.dim() == 3 else inputs[:, :GOLDEN_SAMPLES].contiguous().numpy()


def _version_tags(run: Run, splits: Splits, metrics: dict[str, float]) -> dict[str, str]:
    """Tags of a version: its origin and its scores."""
    origin = {name: run.tags[name] for name in VERSION_TAGS if name in run.tags}
    data = hashlib.sha256(json.dumps(splits.digests, sort_keys=True).encode()).hexdigest()
    figures = {name: f"{metrics[name]:.6g}" for name in (TEST_MSE, TEST_MSE_OVER_LIMIT) if name in metrics}
    return origin | figures | {"run_id": run.run_id, "data_sha256": data, "diagnoses": " ".join(diagnoses(run.tags))}
