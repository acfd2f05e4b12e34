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

UNMOVED = 1e-6  # relative change of all weights over an epoch; float32 resolves 1e-7
STANDSTILL = 1e-3  # share of the learning rate that a scheduler has left: weights are then meant to stay
MIN_CLIP_NORM = 1e-6  # below, Adam's epsilon outweighs the gradient
NO_BETTER, NOT_BEGUN = 0.95, 0.99  # of the error of answers that ignore the mixture: at the end, and before
VALIDATIONS_TO_LEARN, EPOCHS_TO_LEARN = 3, 0.1  # before a filter that knows nothing is called one; share of all epochs
FAR_ABOVE = 1.25  # times as high; by chance alone training, validation and holdout differ by a few hundredths
TIMES_FAR_ABOVE = 2  # in a row
SLOW, SLOW_BY_S = 1.75, 5.0  # over the fastest epoch of the run, as a factor and in seconds


def check_settings(params: Params) -> Iterator[Finding]:
    """What can be said before training."""
    if not params.training.deterministic:
        yield Finding(
            "not_deterministic",
            "deterministic=false: two runs with the same parameters may differ; deterministic=true makes them equal",
        )


class Monitor:
    """Looks at a training run after each epoch, and says each finding once.

    Args:
        state: The training that is looked at, never changed.
        params: Its parameters.
        blind_mse: Mean squared error, on the validation windows, of answering with each component's mean.
        val_limit: The limit on the validation windows; None where nobody knows it.
    """

    def __init__(
        self,
        state: TrainingState,
        params: Params,
        *,
        blind_mse: float,
        val_limit: ValidationLimit | None,
    ) -> None:
        self._state = state
        self._params = params
        self._blind_mse = blind_mse
        self._val_limit = val_limit
        self._weights = _flat(state)
        self._said: set[str] = set()

    @classmethod
    def of(
        cls, state: TrainingState, splits: Splits, params: Params, *, val_limit: ValidationLimit | None = None
    ) -> Self:
        """Measure what a training run will be held against."""
        device, validation = state.accelerator.device, splits.validation
        blind = Mean(TargetMoments.of(validation))
        scores = score(blind, validation, frequencies_hz=params.signals.frequencies_hz, device=device)
        blind_mse = float(scores["mse"][OVERALL])
        return cls(state, params, blind_mse=blind_mse, val_limit=val_limit)

    def check(self, report: EpochReport) -> list[Finding]:
        """The findings that are new with this epoch."""
        before, self._weights = self._weights, _flat(self._state)
        change = float((self._weights - before).norm() / before.norm().clamp(min=1e-30))
        progress, history, training = self._state.progress, self._state.progress.history, self._params.training
        ended = progress.stopped_early or report.epoch == training.epochs
        n_validations = math.ceil(training.epochs / training.validate_every)
        findings = [
            frozen_weights(report, change, self._params),
            no_learning(history, self._blind_mse, self._params, ended=ended),
            overfitting(history, self._params),
            leak(report, self._val_limit, n_validations=n_validations),
            slow_epoch(history, self._params, threads=self._state.accelerator.threads),
        ]
        new = [finding for finding in findings if finding and finding.name not in self._said]
        self._said |= {finding.name for finding in new}
        return new


def frozen_weights(report: EpochReport, change: float, params: Params) -> Finding | None:
    """Weights that stay where they are at the learning rate that was asked for.

    Args:
        report: The epoch.
        change: Distance that all weights together went in it, relative to their length.
        params: The run's parameters.
    """
    training = params.training
    share = report.learning_rate / training.learning_rate
    if share < STANDSTILL or not change < UNMOVED * share:
        return None
    if training.precision == "fp16" and report.gradient_norm == 0:  # the gradient scaler has skipped every step
        remedy = "precision=fp32 (now fp16)"
    elif 0 < training.gradient_clip_norm < MIN_CLIP_NORM:
        remedy = f"gradient_clip_norm=1 (now {training.gradient_clip_norm:.3g})"
    else:
        remedy = f"learning_rate=0.01 (now {training.learning_rate:.3g})"
    return Finding(
        "frozen_weights", f"the weights moved by {change:.1e} of their length in epoch {report.epoch}: try {remedy}"
    )


def no_learning(history: Sequence[EpochReport], blind_mse: float, params: Params, *, ended: bool) -> Finding | None:
    """A filter that does no better than one that answers zero, or the component's mean, to everything.

    Many filters do so for a while before they learn: until training has ended it is only said of one that has not
    begun to learn after some validations and a part of the epochs.

    Args:
        history: A report for each epoch.
        blind_mse: Mean squared error, on the validation windows, of answering with each component's mean.
        params: The run's parameters.
        ended: Whether training has ended.
    """
    found = [report.val_mse for report in history if report.val_mse is not None]
    training, model = params.training, params.model
    patient = len(found) >= VALIDATIONS_TO_LEARN and len(history) >= EPOCHS_TO_LEARN * training.epochs
    if not found or not (ended or patient) or min(found) < (NO_BETTER if ended else NOT_BEGUN) * blind_mse:
        return None
    remedies = [f"learning_rate=0.01 (now {training.learning_rate:.3g})"] if training.learning_rate != 0.01 else []
    remedies += [f"hidden_size=256 (now {model.hidden_size})"] if model.hidden_size < 256 else []
    remedies += [f"more epochs (now {training.epochs})"] if ended else []
    return Finding(
        "no_learning",
        f"validation MSE {min(found):.4g} after {len(history)} epoch{'s' if len(history) > 1 else ''} is that of "
        f"predicting zero or a constant "
        f"({blind_mse:.4g}): try {', '.join([*remedies, 'less noise_std'])}",
    )


def overfitting(history: Sequence[EpochReport], params: Params) -> Finding | None:
    """Training far below validation, or what leaks from training far below the holdout: data learnt by heart."""
    on_validation = _Gap("validation", "training loss", "loss")
    on_holdout = _Gap("holdout", "training loss" if params.training.loss == "mse" else "validation MSE", "MSE")
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
        "overfitting", f"{gap.summary()}: it learns its training data by heart; try {_against_overfitting(params)}"
    )


@dataclass
class _Gap:
    """Two series of figures that should go together, epoch by epoch."""

    judge: str
    low_name: str
    high_name: str

    def __post_init__(self) -> None:
        self.points: list[tuple[int, float, float]] = []

    def add(self, epoch: int, low: float, high: float) -> None:
        self.points.append((epoch, low, high))

    def is_wide(self, *, in_decibels: bool = False) -> bool:
        """Whether the second has lately been far above the first, every time."""
        lately = self.points[-TIMES_FAR_ABOVE:]
        if in_decibels:  # a difference is a ratio
            ratios = [10 ** ((high - low) / 10) for _, low, high in lately]
        else:
            ratios = [high / low if low > 0 else math.inf for _, low, high in lately]
        return len(lately) == TIMES_FAR_ABOVE and min(ratios) > FAR_ABOVE

    def summary(self) -> str:
        epoch, low, high = self.points[-1]
        return f"{self.low_name} {low:.4g} is far below the {self.judge}'s {high:.4g} in epoch {epoch}"


def _against_overfitting(params: Params) -> str:
    data = params.data
    if data.noise == "fixed" and data.data_file is None:
        return "noise=fresh" if data.split == "independent" else "noise=fresh with split=independent"
    training, model = params.training, params.model
    remedies = [f"dropout={model.dropout + 0.3:g} (now {model.dropout:g})"] if model.dropout < 0.5 else []
    remedies += [f"weight_decay=0.0001 (now {training.weight_decay:g})"] if training.weight_decay < 1e-4 else []
    remedies += [f"hidden_size={model.hidden_size // 2} (now {model.hidden_size})"] if model.hidden_size > 1 else []
    return " or ".join(remedies)


def slow_epoch(history: Sequence[EpochReport], params: Params, *, threads: int) -> Finding | None:
    """An epoch that took much longer than the fastest epoch of the same run.

    Args:
        history: A report for each epoch.
        params: The run's parameters.
        threads: Processor threads in use.
    """
    report, fastest_s = history[-1], min(report.seconds for report in history)
    if report.seconds < max(SLOW * fastest_s, fastest_s + SLOW_BY_S):
        return None
    if threads > 1:
        # An environment variable can also be changed when the run is resumed.
        one = "threads=1" if params.training.threads else "OMP_NUM_THREADS=1 in the environment"
        remedy = f"try {one} (now {threads})"
    else:
        remedy = "stop them, or lower epochs or hidden_size"
    return Finding(
        "slow_epoch",
        f"epoch {report.epoch} took {report.seconds:.0f} s, the fastest {fastest_s:.0f} s: other programs or waiting "
        f"threads occupy the processor; {remedy}",
    )


def _flat(state: TrainingState) -> Tensor:
    return torch.nn.utils.parameters_to_vector(state.network.parameters()).detach().clone()


FALSE_ALARM_RATE = 1e-3  # of honest runs, over all their validations
MIN_BLOCKS = 4  # that a standard error is worth something from
CHUNK_SIZE = 65_536  # windows


@dataclass(frozen=True)
class SampleOverlap:
    """What validation shares with training.

    Attributes:
        n_samples: Different samples of the mixture in validation windows.
        n_shared: How many of them also stand in training windows, noise included.
    """

    n_samples: int
    n_shared: int

    def summary(self) -> str:
        """One line."""
        share = self.n_shared / self.n_samples
        return (
            f"sample overlap: {self.n_shared:,} of {self.n_samples:,} validation samples ({share:.0%}) also stand in "
            "training windows, noise included"
        )


def measure_overlap(train: WindowDataset, validation: WindowDataset, *, fresh_noise: bool) -> SampleOverlap:
    """Compare the content of two sets of windows.

    A sample is known by its value and that of the one before it in the same window: with noise no two places of a
    realization have the same pair. In windows of one sample the value alone has to do.

    Args:
        train: All training windows.
        validation: Validation windows.
        fresh_noise: Whether training windows have noise that is drawn anew and stands nowhere else; to look for it
            would find samples alike by chance.
    """
    wanted = np.unique(_samples(validation))
    if fresh_noise:
        return SampleOverlap(len(wanted), 0)
    return SampleOverlap(len(wanted), int(np.isin(wanted, _samples(train)).sum()))


def leak(report: EpochReport, limit: ValidationLimit | None, *, n_validations: int) -> Finding | None:
    """A validation error below the limit by more than chance: the validation windows leak from training.

    Model and limit are compared on the same windows, block by block, since neighbouring windows share their noise; the
    mean difference is held against its own scatter (Student's t). A filter without a leak has in expectation no
    smaller error than the limit, so that it is wrongly accused at most as often as stated, over all validations of
    its run (Bonferroni).

    Args:
        report: The epoch.
        limit: The limit on the validation windows; None where it is unknown.
        n_validations: Of the whole run.
    """
    if limit is None or report.val_mse is None or len(report.val_blocks) < MIN_BLOCKS:
        return None
    differences = np.subtract(report.val_blocks, limit.blocks)
    n_blocks = len(differences)
    scatter = float(differences.std(ddof=1)) / math.sqrt(n_blocks)
    t = float(differences.mean()) / scatter if scatter > 0 else 0.0
    if t > stats.t.ppf(FALSE_ALARM_RATE / n_validations, n_blocks - 1):
        return None
    return Finding(
        "leak",
        f"validation MSE {report.val_mse:.4g} in epoch {report.epoch} lies below {limit.mse:.4g}, the least that any "
        f"filter can expect on these windows (t = {t:.1f} over {n_blocks} blocks): they leak from training, and their "
        "loss measures what was learnt by heart; try split=independent",
    )


def _samples(windows: WindowDataset) -> NDArray[np.int64]:
    """A number for each sample that stands in some window, equal where value and predecessor are."""
    if isinstance(windows, SlidingWindows):
        return _of_realizations(windows)
    if not isinstance(windows, TensorWindows):
        raise TypeError(f"{type(windows).__name__}: neither cut from realizations nor stored")
    parts = [np.unique(_keys(part[..., 0].numpy())) for part in torch.split(windows.inputs.cpu(), CHUNK_SIZE)]
    return np.concatenate(parts)


def _of_realizations(windows: SlidingWindows) -> NDArray[np.int64]:
    """The same for windows that are views: each sample of a realization once, if a window has it."""
    n_realizations, length = windows.mixtures.shape
    covered = np.zeros((n_realizations, length + 1), dtype=np.int64)
    numbers = torch.arange(len(windows)) if windows.indices is None else windows.indices.cpu()
    places = torch.unique(numbers // windows.n_components).numpy()
    realization, start = places // windows.n_starts, places % windows.n_starts
    first = windows.stride * start
    inner = first + (1 if windows.n_samples > 1 else 0)  # the first sample of a window has no predecessor in it
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
    """The bits of each value and its predecessor, (…, n_samples - 1); of each value alone where there is one."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.int32).astype(np.int64)
    if bits.shape[-1] == 1:
        return np.asarray(bits)
    return np.asarray((bits[..., :-1] << 32) ^ (bits[..., 1:] & 0xFFFFFFFF))


@dataclass(frozen=True)
class Finding:
    """Something to know about a run, said once.

    Attributes:
        name: Of the tag ``diagnosis.<name>``.
        line: What is wrong and which parameter to change.
    """

    name: str
    line: str
