"""What ails a training run, said in one line with the parameter to change. Healthy runs hear nothing."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from freqfilter.evaluation.scores import OVERALL, score
from freqfilter.filters.pace import expected_epoch_seconds
from freqfilter.filters.state import EpochReport, TrainingState
from freqfilter.params import Params
from freqfilter.signals.blind import Mean, TargetMoments
from freqfilter.signals.splits import Splits

UNMOVED = 1e-6  # relative change of all weights over an epoch; float32 resolves 1e-7
SMALLEST_CLIP = 1e-6  # below, Adam's epsilon outweighs the gradient
NO_BETTER = 0.95  # of the error of answers that ignore the mixture
VALIDATIONS_TO_LEARN = 3  # before a filter that knows nothing is called one
FAR_ABOVE = 1.25  # validation over training; by chance alone they differ by a few hundredths
VALIDATIONS_FAR_ABOVE = 2  # in a row
SLOW, SLOW_BY_S = 1.75, 5.0  # over what is to be expected, as a factor and in seconds


@dataclass(frozen=True)
class Finding:
    """Something to know about a run.

    Attributes:
        name: Of the tag ``diagnosis.<name>``.
        line: What is wrong and which parameter to change.
    """

    name: str
    line: str


def of_settings(params: Params) -> Iterator[Finding]:
    """What can be said before training."""
    if not params.training.deterministic:
        yield Finding(
            "not_deterministic",
            "deterministic=false: two runs with the same parameters may differ; deterministic=true makes them equal",
        )


class Diagnosis:
    """Looks at a training run after each epoch, and says each finding once.

    Args:
        state: The training that is looked at, never changed.
        params: Its parameters.
        blind_mse: Mean squared error, on the validation windows, of answering with each component's mean.
        expected_epoch_seconds: What an epoch should take; None where nobody knows.
    """

    def __init__(
        self, state: TrainingState, params: Params, *, blind_mse: float, expected_epoch_seconds: float | None
    ) -> None:
        self._state = state
        self._params = params
        self._blind_mse = blind_mse
        self._expected_s = expected_epoch_seconds
        self._weights = _flat(state)
        self._said: set[str] = set()

    @classmethod
    def of(cls, state: TrainingState, splits: Splits, params: Params) -> Self:
        """Measure what a training run will be held against."""
        device, validation = state.compute.device, splits.validation
        blind = Mean(TargetMoments.of(validation))
        scores = score(blind, validation, frequencies_hz=params.signals.frequencies_hz, device=device)
        expected_s = None
        if device.type == "cpu":
            expected_s = expected_epoch_seconds(
                params.model,
                window_length=validation.n_samples,
                batch_size=params.training.batch_size,
                n_training=len(splits.train(1)),
                n_validation=len(validation),
            )
        return cls(state, params, blind_mse=float(scores["mse"][OVERALL]), expected_epoch_seconds=expected_s)

    def examine(self, report: EpochReport) -> list[Finding]:
        """The findings that are new with this epoch."""
        before, self._weights = self._weights, _flat(self._state)
        change = float((self._weights - before).norm() / before.norm().clamp(min=1e-30))
        history = self._state.progress.history
        findings = [
            unmoved_weights(report, change, self._params),
            learns_nothing(history, self._blind_mse, self._params),
            far_above_training(history, self._params),
            slow_epoch(report, self._expected_s, self._params, threads=self._state.compute.threads),
        ]
        new = [finding for finding in findings if finding and finding.name not in self._said]
        self._said |= {finding.name for finding in new}
        return new


def unmoved_weights(report: EpochReport, change: float, params: Params) -> Finding | None:
    """Weights that stay where they are, though they are trained.

    Args:
        report: The epoch.
        change: Distance that all weights together went in it, relative to their length.
        params: The run's parameters.
    """
    if change >= UNMOVED:
        return None
    training = params.training
    if training.precision == "fp16" and report.gradient_norm == 0:  # the gradient scaler has skipped every step
        remedy = "precision=fp32 (now fp16)"
    elif 0 < training.gradient_clip_norm < SMALLEST_CLIP:
        remedy = f"gradient_clip_norm=1 (now {training.gradient_clip_norm:.3g})"
    else:
        remedy = f"learning_rate=0.01 (now {report.learning_rate:.3g})"
    return Finding(
        "unmoved_weights", f"the weights moved by {change:.1e} of their length in epoch {report.epoch}: try {remedy}"
    )


def learns_nothing(history: Sequence[EpochReport], blind_mse: float, params: Params) -> Finding | None:
    """A filter that does no better than one that answers zero, or the component's mean, to everything.

    Args:
        history: A report for each epoch.
        blind_mse: Mean squared error, on the validation windows, of answering with each component's mean.
        params: The run's parameters.
    """
    found = [report.val_mse for report in history if report.val_mse is not None]
    enough = len(found) >= VALIDATIONS_TO_LEARN or history[-1].epoch == params.training.epochs
    if not found or not enough or min(found) < NO_BETTER * blind_mse:
        return None
    return Finding(
        "learns_nothing",
        f"validation MSE {min(found):.4g} after {history[-1].epoch} epochs is that of predicting zero or a constant "
        f"({blind_mse:.4g}): try learning_rate=0.01 (now {history[-1].learning_rate:.3g}), more epochs "
        f"(now {params.training.epochs}), hidden_size=256 (now {params.model.hidden_size}) or less noise_std",
    )


def far_above_training(history: Sequence[EpochReport], params: Params) -> Finding | None:
    """Training far below validation, or below the audit where validation leaks: it learns its data by heart."""
    judged = [report for report in history if report.val_loss is not None][-VALIDATIONS_FAR_ABOVE:]
    if len(judged) < VALIDATIONS_FAR_ABOVE:
        return None
    loss = params.training.loss
    above = [_above_training(report, loss) for report in judged]
    if min(ratio for ratio, _, _ in above) < FAR_ABOVE:
        return None
    _, on, value = above[-1]
    if params.data.noise == "fixed" and params.data.data_file is None:
        remedy = "noise=fresh with split=independent"
    else:
        dropout, decay = max(0.3, params.model.dropout + 0.1), max(1e-4, 10 * params.training.weight_decay)
        remedy = f"dropout={dropout:g}, weight_decay={decay:g} or hidden_size={max(1, params.model.hidden_size // 2)}"
    return Finding(
        "overfitting",
        f"training loss {judged[-1].train_loss:.4g} is far below the {on}'s {value:.4g} in epoch {judged[-1].epoch}: "
        f"it learns its training data by heart; try {remedy}",
    )


def slow_epoch(report: EpochReport, expected_s: float | None, params: Params, *, threads: int) -> Finding | None:
    """An epoch far slower than this processor should need.

    Args:
        report: The epoch.
        expected_s: What it should take, seconds; None where nobody knows.
        params: The run's parameters.
        threads: Processor threads in use.
    """
    if expected_s is None or report.seconds < max(SLOW * expected_s, expected_s + SLOW_BY_S):
        return None
    remedies = []
    if threads > 1:
        remedies.append(f"threads=1 (now {threads})")
    if params.training.precision != "fp32":
        remedies.append(f"precision=fp32 (now {params.training.precision})")
    remedy = f"; try {' or '.join(remedies)}" if remedies else ": end them, or lower epochs or hidden_size"
    return Finding(
        "slow_epoch",
        f"epoch {report.epoch} took {report.seconds:.0f} s where this processor should need about {expected_s:.0f} s: "
        f"other programs or waiting threads hold its cores{remedy}",
    )


def _above_training(report: EpochReport, loss: str) -> tuple[float, str, float]:
    """How many times the training loss the worse of validation and audit is, which of them it is, and its value."""
    judges = {"validation": report.val_loss, "audit": report.audit_mse if loss == "mse" else None}
    values = {name: value for name, value in judges.items() if value is not None}
    worst = max(values, key=lambda name: values[name])
    value = values[worst]
    if loss == "snr":  # decibels: a difference is a ratio
        return 10 ** ((value - report.train_loss) / 10), worst, value
    return value / report.train_loss if report.train_loss > 0 else math.inf, worst, value


def _flat(state: TrainingState) -> Tensor:
    return torch.nn.utils.parameters_to_vector(state.network.parameters()).detach().clone()
