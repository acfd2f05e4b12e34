"""Training loop: a generator of reports, independent of the tracker."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from freqfilter.config import TrainingParams
from freqfilter.data.signal_model import random_stream
from freqfilter.data.windows import Dataset, TrainingBatch, batches, block_means
from freqfilter.errors import TrainingError
from freqfilter.models.network import estimate
from freqfilter.training.optim import LOSSES, mse, warmup_and_cosine
from freqfilter.training.reports import EpochReport, StepReport
from freqfilter.training.state import TrainingState

VALIDATION_CHUNK = 4096  # validation windows in memory together
CHECK_EVERY = 50  # steps between checks of the loss; each check synchronizes with a CUDA device


def train(
    state: TrainingState,
    *,
    training_windows: Callable[[int], Dataset],
    validation: Dataset,
    holdout: Dataset | None = None,
    holdout_every: int = 1,
    params: TrainingParams,
) -> Generator[StepReport | EpochReport]:
    """Train until the last epoch or an early stop, then load the best weights into the network.

    Training continues from ``state``. At each yield ``state.state_dict()`` suffices to resume with identical numbers.
    Use ``contextlib.closing``, so that the best weights so far are loaded too when the loop is left early.

    Args:
        state: The state of training, modified in place.
        training_windows: Function from the epoch, counted from 1, to its training windows.
        validation: Windows for the choice of the best epoch.
        holdout: Windows that are evaluated every ``holdout_every`` epochs and used for no choice.
        holdout_every: Epochs between holdout evaluations.
        params: Training parameters.

    Yields:
        A report after each step, and one after each epoch.

    Raises:
        TrainingError: If the loss is not finite; ``state.good_weights`` are then the last weights with a finite loss.
    """
    progress, device = state.progress, state.accelerator.device
    validation = validation.to(device)
    holdout = holdout.to(device) if holdout is not None else None
    try:
        while progress.epoch <= params.epochs and not progress.stopped_early:
            windows = training_windows(progress.epoch).to(device)
            order = epoch_order(params.seed, progress.epoch, len(windows)).to(device)
            n_batches = windows.n_steps(params.batch_size)
            started = time.monotonic() - progress.seconds
            while progress.batch < n_batches:
                if params.scheduler == "cosine":
                    middle = progress.epoch - 1 + (progress.batch + 0.5) / n_batches  # of the step, in epochs
                    factor = warmup_and_cosine(middle / params.epochs, warmup_fraction=params.warmup_fraction)
                    state.learning_rate = params.learning_rate * factor
                with state.randomness():
                    batch = windows.step(order, progress.batch, params.batch_size)
                    state.sums += training_step(state, batch, params)
                progress.batch += 1
                if progress.batch % CHECK_EVERY == 0 or progress.batch == n_batches:
                    _check(state, n_batches, params)
                progress.seconds = time.monotonic() - started
                if progress.batch < n_batches:  # the last step is part of the epoch's report
                    yield StepReport(progress.epoch, progress.batch, n_batches)
            loss_sum, norm_sum, n_norms, _ = state.sums.tolist()
            report = EpochReport(
                progress.epoch, loss_sum / n_batches, norm_sum / max(n_norms, 1), state.learning_rate, seconds=0.0
            )
            if progress.epoch % params.validate_every == 0 or progress.epoch == params.epochs:
                report = _validate(state, report, validation, params)
            report = replace(report, seconds=time.monotonic() - started)
            if holdout is not None and progress.epoch % holdout_every == 0:
                report = replace(report, holdout_mse=validate(state, holdout, params).mse)
            progress.history.append(report)
            state.begin_epoch()
            yield report
    finally:
        state.network.load_state_dict(state.best_weights)
        state.network.eval()


def epoch_order(seed: int, epoch: int, n_windows: int) -> Tensor:
    """Random order of an epoch's windows, (n_windows,) of int64."""
    return torch.from_numpy(random_stream(seed, "order", epoch).permutation(n_windows))


def training_step(state: TrainingState, batch: TrainingBatch, params: TrainingParams) -> Tensor:
    """Take one optimizer step and return its contribution to ``state.sums``, (4,).

    The loss in the sums is computed with the clean component, independent of ``batch.targets``.
    """
    network, scaler = state.network, state.scaler
    network.train()
    with state.accelerator.autocast():
        estimates = state.estimates(batch).float()
    step_loss = _loss(estimates, batch.targets, batch.loss_scale, params).mean()
    for optimizer in state.optimizers:
        optimizer.zero_grad()
    torch.autograd.backward(scaler.scale(step_loss))
    for optimizer in state.optimizers:
        scaler.unscale_(optimizer)
    gradient_norm = torch.nn.utils.clip_grad_norm_(network.parameters(), params.gradient_clip_norm or math.inf)
    finite = torch.isfinite(gradient_norm)
    # If a scaled gradient overflows, GradScaler skips the step of that optimizer only. All optimizers must skip it,
    # since clipping by an infinite norm has invalidated the other gradients.
    if not scaler.is_enabled() or finite:
        for optimizer in state.optimizers:
            scaler.step(optimizer)
    scaler.update()
    loss = _loss(estimates.detach(), batch.clean, batch.loss_scale, params).mean()
    finite_so_far = torch.isfinite(loss) & (state.sums[3] == state.progress.batch)
    return torch.stack([loss, torch.where(finite, gradient_norm.detach(), 0.0), finite.float(), finite_so_far.float()])


def _loss(estimates: Tensor, targets: Tensor, scale: Tensor | None, params: TrainingParams) -> Tensor:
    """Loss of each window or recording, (n_windows,)."""
    if scale is not None:
        estimates, targets = scale * estimates, scale * targets
    return LOSSES[params.loss](estimates, targets)


def _check(state: TrainingState, n_batches: int, params: TrainingParams) -> None:
    """Save weights with a finite loss, and raise an error if a loss of this epoch was not finite."""
    n_finite = int(state.sums[3])
    state.save_good_weights(n_finite=n_finite)
    if n_finite < state.progress.batch:
        where = f"epoch {state.progress.epoch}, batch {n_finite + 1} of {n_batches}"
        raise _divergence_error("training", where, params)


def _divergence_error(name: str, where: str, params: TrainingParams) -> TrainingError:
    clip, rate = params.gradient_clip_norm, params.learning_rate
    return TrainingError(
        "loss_not_finite",
        f"the {name} loss is not finite in {where}: try learning_rate={rate / 10:.3g} (now {rate:.3g}) or "
        f"gradient_clip_norm={min(0.5, clip / 2) or 0.5:g} (now {clip:g})",
    )


def _validate(state: TrainingState, report: EpochReport, validation: Dataset, params: TrainingParams) -> EpochReport:
    """Validate, save the best weights, and update scheduler and early stopping."""
    progress = state.progress
    result = validate(state, validation, params)
    if not math.isfinite(result.loss):
        raise _divergence_error("validation", f"epoch {progress.epoch}", params)
    improved = result.loss < progress.best_loss
    progress.validations_since_best = 0 if improved else progress.validations_since_best + 1
    if improved:
        progress.best_loss, progress.best_epoch = result.loss, progress.epoch
        state.save_best_weights()
    state.cut_learning_rate_on_plateau(result.loss)
    progress.stopped_early = 0 < params.early_stopping_patience <= progress.validations_since_best
    return replace(report, val_loss=result.loss, val_mse=result.mse, val_blocks=result.blocks, improved=improved)


@dataclass(frozen=True)
class Validation:
    """Result of a validation, computed in float32; see ``EpochReport``."""

    loss: float
    mse: float
    blocks: tuple[float, ...]


def validate(state: TrainingState, windows: Dataset, params: TrainingParams) -> Validation:
    """Evaluate the network on windows."""
    windows = windows.to(state.accelerator.device)
    state.network.eval()
    losses, errors = [], []
    for inputs, targets in batches(windows, VALIDATION_CHUNK, state.accelerator.device):
        estimates = estimate(state.network, inputs)
        losses.append(_loss(estimates, targets, windows.loss_scale, params))
        errors.append(mse(estimates, targets))
    window_mse, loss = torch.cat(errors), torch.cat(losses).double()
    if params.validation_average == "batches":
        loss = torch.stack([batch.mean() for batch in torch.split(loss, params.batch_size)])
    blocks = windows.block_ids(torch.arange(len(windows), device=state.accelerator.device))
    means = block_means(window_mse.cpu(), blocks.cpu()) if blocks is not None else ()
    return Validation(float(loss.mean()), float(window_mse.double().mean()), tuple(means))
