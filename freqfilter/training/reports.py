"""Reports of the training loop, after a step and after an epoch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class StepReport:
    """Progress within an epoch: ``batch`` of ``n_batches`` steps are done."""

    epoch: int
    batch: int
    n_batches: int


@dataclass(frozen=True)
class EpochReport:
    """Results of an epoch.

    Attributes:
        epoch: Number of the epoch, counted from 1.
        train_loss: Training loss, mean over the batches.
        gradient_norm: Gradient norm before clipping, mean over the batches.
        learning_rate: Learning rate of the last step.
        seconds: Wall time of training and validation, without the holdout.
        val_loss: Validation loss, mean over samples or batches (``validation_average``); None without one.
        val_mse: Mean squared error over all validation samples, for any loss.
        val_blocks: The same for each block of neighbouring windows; empty if the neighbours are unknown.
        improved: Whether the validation loss is the best so far.
        holdout_mse: Mean squared error on the holdout windows; None without a holdout evaluation.
    """

    epoch: int
    train_loss: float
    gradient_norm: float
    learning_rate: float
    seconds: float
    val_loss: float | None = None
    val_mse: float | None = None
    val_blocks: tuple[float, ...] = ()
    improved: bool = False
    holdout_mse: float | None = None
