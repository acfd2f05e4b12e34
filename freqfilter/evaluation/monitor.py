"""Training monitor: checks that find problems of a run, among them data leaks."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

from freqfilter.config import Params
from freqfilter.data.splits import Splits
from freqfilter.data.windows import SlidingWindows, TensorWindows, WindowDataset
from freqfilter.evaluation.baselines import Mean, TargetMoments
from freqfilter.evaluation.limits import ValidationLimit
from freqfilter.evaluation.metrics import OVERALL, score
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


def check_settings(params: Params) -> Iterator[Finding]:
    """Yield the findings that follow from the parameters alone."""
    if not params.training.deterministic:
        yield Finding(
            "not_deterministic",
            "deterministic=false: runs with the same parameters may differ; set deterministic=true",
        )


class Monitor:
    """Checks a training after each epoch and reports each problem once.

    Args:
        state: Training state, read only.
        params: Parameters of the training.
        baseline_mse: Mean squared error of the mean baseline on the validation windows.
        val_limit: The limit on the validation windows; None if it is unknown.
    """

    def __init__(
        self,
        state: TrainingState,
        params: Params,
        *,
        baseline_mse: float,
        val_limit: ValidationLimit | None,
    ) -> None:
        self._state = state
        self._params = params
        self._baseline_mse = baseline_mse
        self._val_limit = val_limit
        self._weights = _flat(state)
        self._reported: set[str] = set()

    @classmethod
    def of(
        cls, state: TrainingState, splits: Splits, params: Params, *, val_limit: ValidationLimit | None = None
    ) -> Self:
        """Create the monitor and compute the baseline on the validation windows."""
        device, validation = state.accelerator.device, splits.validation
        baseline = Mean(TargetMoments.from_windows(validation))
        scores = score(baseline, validation, frequencies_hz=params.signals.frequencies_hz, device=device)
        baseline_mse = float(scores["mse"][OVERALL])
        return cls(state, params, baseline_mse=baseline_mse, val_limit=val_limit)

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

    Args:
        report: Report of the epoch.
        change: Norm of the change of all weights in the epoch, relative to their norm.
        params: Parameters of the run.
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
    return Finding(
        "frozen_weights", f"relative change of the weights is {change:.1e} in epoch {report.epoch}; try {remedy}"
    )


def no_learning(history: Sequence[EpochReport], baseline_mse: float, params: Params, *, ended: bool) -> Finding | None:
    """Detect a filter that is no better than the mean baseline.

    Many filters start with a plateau: before the end of training this is reported only after ``MIN_VALIDATIONS``
    validations and ``MIN_EPOCH_SHARE`` of the epochs.

    Args:
        history: Report of each epoch.
        baseline_mse: Mean squared error of the mean baseline on the validation windows.
        params: Parameters of the run.
        ended: Whether training has ended.
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
    """Detect a training loss far below validation, or a training or validation error far below the holdout."""
    on_validation = _Gap("training loss", "validation loss")
    on_holdout = _Gap("training loss" if params.training.loss == "mse" else "validation MSE", "holdout MSE")
    for report in history:
        if report.val_loss is not None:
            on_validation.add(report.epoch, report.train_loss, report.val_loss)
        low = report.train_loss if params.training.loss == "mse" else report.val_mse
        if report.holdout_mse is not None and low is not None:
            on_holdout.add(report.epoch, low, report.holdout_mse)
    in_decibels = params.training.loss == "snr"
    if on_holdout.is_wide():
        gap = on_holdout
    elif on_validation.is_wide(in_decibels=in_decibels):
        gap = on_validation
    else:
        return None
    return Finding(
        "overfitting", f"{gap.summary()}: the filter memorizes its training data; try {_overfitting_remedy(params)}"
    )


@dataclass
class _Gap:
    """Two measures of each epoch that are about equal without overfitting."""

    low_name: str
    high_name: str

    def __post_init__(self) -> None:
        self.points: list[tuple[int, float, float]] = []

    def add(self, epoch: int, low: float, high: float) -> None:
        self.points.append((epoch, low, high))

    def is_wide(self, *, in_decibels: bool = False) -> bool:
        """Whether the second measure was far above the first in the last ``N_CONSECUTIVE`` epochs."""
        recent = self.points[-N_CONSECUTIVE:]
        if in_decibels:  # a difference is a ratio
            ratios = [10 ** ((high - low) / 10) for _, low, high in recent]
        else:
            ratios = [high / low if low > 0 else math.inf for _, low, high in recent]
        return len(recent) == N_CONSECUTIVE and min(ratios) > MIN_OVERFITTING_RATIO

    def summary(self) -> str:
        epoch, low, high = self.points[-1]
        return f"{self.low_name} {low:.4g} is far below {self.high_name} {high:.4g} in epoch {epoch}"


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
    """Detect an epoch that took much longer than the fastest epoch of the same run.

    Args:
        history: Report of each epoch.
        params: Parameters of the run.
        threads: Number of processor threads in use.
    """
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


FALSE_ALARM_RATE = 1e-3  # of runs without a leak, over all their validations
MIN_BLOCKS = 4  # for a standard error
CHUNK_SIZE = 65_536  # windows


@dataclass(frozen=True)
class SampleOverlap:
    """Overlap of validation and training windows.

    Attributes:
        n_samples: Number of distinct samples of the mixture in validation windows.
        n_shared: Number of those that also occur in training windows, noise included.
    """

    n_samples: int
    n_shared: int

    def summary(self) -> str:
        """Return the overlap in one line."""
        share = self.n_shared / self.n_samples
        return (
            f"sample overlap: {self.n_shared:,} of {self.n_samples:,} validation samples ({share:.0%}) also occur in "
            "training windows, noise included"
        )


def measure_overlap(train: WindowDataset, validation: WindowDataset, *, fresh_noise: bool) -> SampleOverlap:
    """Count the samples that two sets of windows share.

    A sample is identified by its value and that of its predecessor in the same window: with noise, no two samples of a
    realization have the same pair. In windows of one sample it is identified by its value alone.

    Args:
        train: All training windows.
        validation: Validation windows.
        fresh_noise: Whether the noise of training windows is drawn for each window, so that equal samples would be
            coincidences.
    """
    samples = np.unique(_samples(validation))
    if fresh_noise:
        return SampleOverlap(len(samples), 0)
    return SampleOverlap(len(samples), int(np.isin(samples, _samples(train)).sum()))


def leak(report: EpochReport, limit: ValidationLimit | None, *, n_validations: int) -> Finding | None:
    """Detect a validation error significantly below the limit: validation data leak from training.

    Model and limit are compared on the same windows, block by block, since neighbouring windows share their noise, by a
    one-sided paired t-test. Without a leak the expected error is at least the limit, so that the rate of false alarms
    is at most ``FALSE_ALARM_RATE`` over all validations of a run (Bonferroni).

    Args:
        report: Report of the epoch.
        limit: The limit on the validation windows; None if it is unknown.
        n_validations: Number of validations in the whole run.
    """
    if limit is None or report.val_mse is None or len(report.val_blocks) < MIN_BLOCKS:
        return None
    differences = np.subtract(report.val_blocks, limit.blocks)
    n_blocks = len(differences)
    standard_error = float(differences.std(ddof=1)) / math.sqrt(n_blocks)
    t = float(differences.mean()) / standard_error if standard_error > 0 else 0.0
    if t > stats.t.ppf(FALSE_ALARM_RATE / n_validations, n_blocks - 1):
        return None
    return Finding(
        "leak",
        f"validation MSE {report.val_mse:.4g} in epoch {report.epoch} is below the limit {limit.mse:.4g} on these "
        f"windows (t = {t:.1f} over {n_blocks} blocks): validation data leak from training; try split=independent",
    )


def _samples(windows: WindowDataset) -> NDArray[np.int64]:
    """Return a key for each sample in the windows; keys are equal if value and predecessor are."""
    if isinstance(windows, SlidingWindows):
        return _sliding_samples(windows)
    if not isinstance(windows, TensorWindows):
        raise TypeError(f"{type(windows).__name__}: expected SlidingWindows or TensorWindows")
    parts = [np.unique(_keys(part[..., 0].numpy())) for part in torch.split(windows.inputs.cpu(), CHUNK_SIZE)]
    return np.concatenate(parts)


def _sliding_samples(windows: SlidingWindows) -> NDArray[np.int64]:
    """Return the keys of the samples of realizations that are in a window, each sample once."""
    n_realizations, length = windows.mixtures.shape
    covered = np.zeros((n_realizations, length + 1), dtype=np.int64)
    indices = torch.arange(len(windows)) if windows.indices is None else windows.indices.cpu()
    positions = torch.unique(indices // windows.n_components).numpy()
    realization, start = positions // windows.n_starts, positions % windows.n_starts
    first = windows.stride * start
    inner = first + (1 if windows.n_samples > 1 else 0)  # the first sample has no predecessor in the window
    np.add.at(covered, (realization, inner), 1)
    np.add.at(covered, (realization, first + windows.n_samples), -1)
    inside = covered.cumsum(axis=1)[:, :-1] > 0
    mixtures = windows.mixtures.cpu().numpy()
    keys = np.zeros(mixtures.shape, dtype=np.int64)
    if windows.n_samples > 1:
        keys[:, 1:] = _keys(mixtures)
    else:
        keys = _keys(mixtures[..., None])[..., 0]
    return np.asarray(keys[inside])


def _keys(values: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return the bits of each value and its predecessor, (…, n_samples - 1), or of a single value alone."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.int32).astype(np.int64)
    if bits.shape[-1] == 1:
        return np.asarray(bits)
    return np.asarray((bits[..., :-1] << 32) ^ (bits[..., 1:] & 0xFFFFFFFF))


@dataclass(frozen=True)
class Finding:
    """Problem of a training run.

    Attributes:
        name: Suffix of the tag ``diagnosis.<name>``.
        line: The problem and the parameter to change, in one line.
    """

    name: str
    line: str
