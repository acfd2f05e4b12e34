"""Training monitor: checks that find problems of a run, among them data leaks."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from freqfilter.config import Params
from freqfilter.data import npz
from freqfilter.data.splits import Splits
from freqfilter.evaluation.baselines import Mean, TargetMoments
from freqfilter.evaluation.limits import ValidationLimit
from freqfilter.evaluation.metrics import OVERALL, Estimator, score
from freqfilter.evaluation.recordings import Zero
from freqfilter.training.reports import EpochReport
from freqfilter.training.state import TrainingState

MIN_RELATIVE_CHANGE = 1e-6  # of all weights over an epoch; float32 resolves 1e-7
MIN_LEARNING_RATE_SHARE = 1e-3  # of the initial learning rate; below, weights are expected to stay
MIN_CLIP_NORM = 1e-6  # below, Adam's epsilon outweighs the gradient
MIN_FINAL_MSE_RATIO, MIN_MSE_RATIO = 0.95, 0.99  # to the mean baseline: no learning at the end, and before
MIN_VALIDATIONS, MIN_EPOCH_SHARE = 3, 0.1  # before no learning is reported during training
MIN_OVERFITTING_RATIO = 1.25  # without overfitting, training, validation and holdout differ by a few hundredths
N_CONSECUTIVE = 2  # measurements above that ratio
MIN_SLOWDOWN, MIN_SLOWDOWN_S = 1.75, 5.0  # relative to the fastest epoch of the run, as a factor and in seconds
FALSE_ALARM_RATE = 1e-3  # of runs without a leak, over all their validations
# Of a data file to its parameters; a sum of two components has four times the power of their mean.
MAX_POWER_RATIO = 3.0
MIN_BLOCKS = 4  # for a standard error


@dataclass(frozen=True)
class Finding:
    """Problem of a training run.

    Attributes:
        name: Suffix of the tag ``diagnosis.<name>``.
        line: The problem and the parameter to change, in one line.
    """

    name: str
    line: str


def check_settings(params: Params) -> Iterator[Finding]:
    """Yield the findings that follow from the parameters alone."""
    if not params.training.deterministic:
        line = "deterministic=false: runs with the same parameters may differ; set deterministic=true"
        yield Finding("not_deterministic", line)


def unusual_power(splits: Splits, params: Params) -> Finding | None:
    """Detect arrays of a data file whose mean square is far from that of signals of the parameters."""
    if params.data.data_file is None:
        return None
    signals = params.signals
    powers = np.square(signals.amplitudes) / 2
    expected = {"X": powers.mean() / len(powers) + signals.noise_std**2, "y": powers.mean()}
    found = []
    for part, windows in zip(npz.PARTS, (splits.train, splits.validation, splits.test), strict=True):
        inputs, targets = windows.tensors()
        for kind, values in (("X", inputs[..., 0]), ("y", targets)):
            power = float(values.square().mean())
            if not expected[kind] / MAX_POWER_RATIO <= power <= expected[kind] * MAX_POWER_RATIO:
                found.append(f"{kind}_{part} {power:.3g} (expected {expected[kind]:.3g})")
    if not found:
        return None
    return Finding(
        "power",
        f"the power of the data file is not that of its parameters, {', '.join(found)}: integer samples, or a sum in "
        "place of the mean of the components? scale the file, or set amplitudes and noise_std to its own",
    )


class Monitor:
    """Checks a training after each epoch and reports each problem once.

    Args:
        state: Training state, read only.
        splits: The data; the mean baseline is computed on its validation windows.
        params: Parameters of the training.
        val_limit: The limit on the validation windows; None if it is unknown.
    """

    def __init__(
        self, state: TrainingState, splits: Splits, params: Params, *, val_limit: ValidationLimit | None = None
    ) -> None:
        self._state = state
        self._params = params
        self._val_limit = val_limit
        self._weights = _flat(state)
        self._reported: set[str] = set()
        device, validation = state.accelerator.device, splits.validation
        baseline: Estimator = Zero(validation.n_components)
        if not params.of_recordings:
            baseline = Mean(TargetMoments.from_windows(validation))
        scores = score(baseline, validation, frequencies_hz=params.signals.frequencies_hz, device=device)
        self._baseline_mse = float(scores["mse"][OVERALL])

    def check(self, report: EpochReport) -> list[Finding]:
        """Return the findings that are new in this epoch."""
        before, self._weights = self._weights, _flat(self._state)
        change = float((self._weights - before).norm() / before.norm().clamp(min=1e-30))
        progress, history, training = self._state.progress, self._state.progress.history, self._params.training
        ended = progress.stopped_early or report.epoch == training.epochs
        n_validations = math.ceil(training.epochs / training.validate_every)
        findings = [
            frozen_weights(report, change, self._params),
            no_learning(history, self._baseline_mse, self._params, ended=ended),
            overfitting(history, self._params),
            leak(report, self._val_limit, n_validations=n_validations),
            slow_epoch(history, self._params, threads=self._state.accelerator.threads),
        ]
        new = [finding for finding in findings if finding and finding.name not in self._reported]
        self._reported |= {finding.name for finding in new}
        return new


def frozen_weights(report: EpochReport, change: float, params: Params) -> Finding | None:
    """Detect weights that do not change although the learning rate is not close to zero.

    ``change`` is the norm of the change of all weights in the epoch, relative to their norm.
    """
    training = params.training
    share = report.learning_rate / training.learning_rate
    if share < MIN_LEARNING_RATE_SHARE or not change < MIN_RELATIVE_CHANGE * share:
        return None
    if training.precision == "fp16" and report.gradient_norm == 0:  # the gradient scaler has skipped every step
        remedy = "precision=fp32 (now fp16)"
    elif 0 < training.gradient_clip_norm < MIN_CLIP_NORM:
        remedy = f"gradient_clip_norm=1 (now {training.gradient_clip_norm:.3g})"
    else:
        remedy = f"learning_rate=0.01 (now {training.learning_rate:.3g})"
    line = f"relative change of the weights is {change:.1e} in epoch {report.epoch}; try {remedy}"
    return Finding("frozen_weights", line)


def no_learning(history: Sequence[EpochReport], baseline_mse: float, params: Params, *, ended: bool) -> Finding | None:
    """Detect a filter that is no better than the mean baseline on the validation windows.

    Many filters start with a plateau: before training has ended this is reported only after ``MIN_VALIDATIONS``
    validations and ``MIN_EPOCH_SHARE`` of the epochs.
    """
    val_mse = [report.val_mse for report in history if report.val_mse is not None]
    training, model = params.training, params.model
    is_due = ended or (len(val_mse) >= MIN_VALIDATIONS and len(history) >= MIN_EPOCH_SHARE * training.epochs)
    min_ratio = MIN_FINAL_MSE_RATIO if ended else MIN_MSE_RATIO
    if not val_mse or not is_due or min(val_mse) < min_ratio * baseline_mse:
        return None
    remedies = [f"learning_rate=0.01 (now {training.learning_rate:.3g})"] if training.learning_rate != 0.01 else []
    remedies += [f"hidden_size=256 (now {model.hidden_size})"] if model.hidden_size < 256 else []
    remedies += [f"more epochs (now {training.epochs})"] if ended else []
    return Finding(
        "no_learning",
        f"validation MSE {min(val_mse):.4g} after {len(history)} epoch{'s' if len(history) > 1 else ''} is no better "
        f"than a constant prediction ({baseline_mse:.4g}); try {', '.join([*remedies, 'less noise_std'])}",
    )


def overfitting(history: Sequence[EpochReport], params: Params) -> Finding | None:
    """Detect a training loss far below validation, or a training or validation error far below the holdout.

    Training recordings are always new, and may be shorter than those of validation, so that their losses differ.
    """
    if params.of_recordings:
        return None
    loss, training = params.loss_name, ("training loss", "train_loss")
    for (low_name, low), (high_name, high), in_decibels in (
        (training if loss == "mse" else ("validation MSE", "val_mse"), ("holdout MSE", "holdout_mse"), False),
        (training, ("validation loss", "val_loss"), loss == "snr"),
    ):
        points = [(report.epoch, getattr(report, low), getattr(report, high)) for report in history]
        recent = [point for point in points if None not in point][-N_CONSECUTIVE:]
        ratios = [_ratio(high_value, low_value, in_decibels=in_decibels) for _, low_value, high_value in recent]
        if len(recent) == N_CONSECUTIVE and min(ratios) > MIN_OVERFITTING_RATIO:
            epoch, low_value, high_value = recent[-1]
            return Finding(
                "overfitting",
                f"{low_name} {low_value:.4g} is far below {high_name} {high_value:.4g} in epoch {epoch}: the filter "
                f"memorizes its training data; try {_overfitting_remedy(params)}",
            )
    return None


def _ratio(high: float, low: float, *, in_decibels: bool) -> float:
    if in_decibels:  # a difference is a ratio
        return 10 ** ((high - low) / 10)
    return high / low if low > 0 else math.inf


def _overfitting_remedy(params: Params) -> str:
    data = params.data
    if data.noise == "fixed" and data.data_file is None:
        return "noise=fresh" if data.split == "independent" else "noise=fresh with split=independent"
    training, model = params.training, params.model
    remedies = [f"dropout={model.dropout + 0.3:g} (now {model.dropout:g})"] if model.dropout < 0.5 else []
    remedies += [f"weight_decay=0.0001 (now {training.weight_decay:g})"] if training.weight_decay < 1e-4 else []
    remedies += [f"hidden_size={model.hidden_size // 2} (now {model.hidden_size})"] if model.hidden_size > 1 else []
    return " or ".join(remedies)


def slow_epoch(history: Sequence[EpochReport], params: Params, *, threads: int) -> Finding | None:
    """Detect an epoch that took much longer than the fastest epoch of the run, with ``threads`` processor threads."""
    report, fastest_s = history[-1], min(report.seconds for report in history)
    if report.seconds < max(MIN_SLOWDOWN * fastest_s, fastest_s + MIN_SLOWDOWN_S):
        return None
    if threads > 1:
        # Unlike a parameter, an environment variable can be changed when the run is resumed.
        setting = "threads=1" if params.training.threads else "OMP_NUM_THREADS=1 in the environment"
        remedy = f"try {setting} (now {threads})"
    else:
        remedy = "stop them, or lower epochs or hidden_size"
    return Finding(
        "slow_epoch",
        f"epoch {report.epoch} took {report.seconds:.0f} s, the fastest {fastest_s:.0f} s: other programs or waiting "
        f"threads occupy the processor; {remedy}",
    )


def _flat(state: TrainingState) -> Tensor:
    return torch.nn.utils.parameters_to_vector(state.network.parameters()).detach().clone()


def leak(report: EpochReport, limit: ValidationLimit | None, *, n_validations: int) -> Finding | None:
    """Detect a validation error significantly below the limit: validation data leak from training.

    Model and limit are compared on the same windows, block by block, since neighbouring windows share their noise, by a
    one-sided paired t-test. Without a leak the expected error is at least the limit, so that the rate of false alarms
    is at most ``FALSE_ALARM_RATE`` over all ``n_validations`` of a run (Bonferroni).
    """
    if limit is None or report.val_mse is None or len(report.val_blocks) < MIN_BLOCKS:
        return None
    differences = np.subtract(report.val_blocks, limit.blocks)
    n_blocks, standard_error = len(differences), stats.sem(differences)
    t = differences.mean() / standard_error if standard_error > 0 else 0.0
    if t > stats.t.ppf(FALSE_ALARM_RATE / n_validations, n_blocks - 1):
        return None
    return Finding(
        "leak",
        f"validation MSE {report.val_mse:.4g} in epoch {report.epoch} is below the limit {limit.mse:.4g} on these "
        f"windows (t = {t:.1f} over {n_blocks} blocks): validation data leak from training; try split=independent",
    )
