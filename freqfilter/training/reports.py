"""Reports of the training loop, after a step and after an epoch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class StepReport:
    """Where training stands within an epoch: ``batch`` of ``n_batches`` done."""

    epoch: int
    batch: int
    n_batches: int


@dataclass(frozen=True)
class EpochReport:
    """What an epoch came to.

    Attributes:
        epoch: Counted from 1.
        train_loss: Mean over the batches.
        gradient_norm: Mean over the batches, before clipping.
        learning_rate: In force at the epoch's last step.
        seconds: Wall time of training and validation, holdout apart.
        val_loss: Mean over samples or batches (``validation_average``); None if the epoch was not validated.
        val_mse: Mean over samples, whatever the loss.
        val_blocks: The same for each block of neighbouring windows; empty where nobody knows the neighbours.
        improved: Whether it is the best validation loss so far.
        holdout_mse: Mean squared error on the holdout windows; None where the epoch was not evaluated.
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
