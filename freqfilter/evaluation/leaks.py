"""Does validation leak from training? An audit of the split, and an alarm when a loss is too good to be true."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats

from freqfilter.evaluation.finding import Finding
from freqfilter.filters.reports import EpochReport
from freqfilter.signals.windows import CutWindows, StoredWindows, WindowSet

FALSE_ALARMS = 1e-3  # of honest runs, over all their validations
FEWEST_BLOCKS = 4  # that a standard error is worth something from
READ_AT_ONCE = 65_536  # windows


@dataclass(frozen=True)
class KnownLimit:
    """The limit on certain windows.

    Attributes:
        mse: Over all of them.
        blocks: For each block of neighbouring windows.
    """

    mse: float
    blocks: tuple[float, ...]


@dataclass(frozen=True)
class SplitAudit:
    """What validation shares with training.

    Attributes:
        n_samples: Different samples of the mixture in validation windows.
        n_shared: How many of them also stand in training windows, noise included.
    """

    n_samples: int
    n_shared: int

    def words(self) -> str:
        """One line."""
        share = self.n_shared / self.n_samples
        return (
            f"leak audit: {self.n_shared:,} of {self.n_samples:,} validation samples ({share:.0%}) also stand in "
            "training windows, noise included"
        )


def audit_split(train: WindowSet, validation: WindowSet, *, fresh_noise: bool) -> SplitAudit:
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
        return SplitAudit(len(wanted), 0)
    return SplitAudit(len(wanted), int(np.isin(wanted, _samples(train)).sum()))


def leak(report: EpochReport, limit: KnownLimit | None, *, n_validations: int) -> Finding | None:
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
    if limit is None or report.val_mse is None or len(report.val_blocks) < FEWEST_BLOCKS:
        return None
    differences = np.subtract(report.val_blocks, limit.blocks)
    n_blocks = len(differences)
    scatter = float(differences.std(ddof=1)) / math.sqrt(n_blocks)
    t = float(differences.mean()) / scatter if scatter > 0 else 0.0
    if t > stats.t.ppf(FALSE_ALARMS / n_validations, n_blocks - 1):
        return None
    return Finding(
        "leak",
        f"validation MSE {report.val_mse:.4g} in epoch {report.epoch} lies below {limit.mse:.4g}, the least that any "
        f"filter can expect on these windows (t = {t:.1f} over {n_blocks} blocks): they leak from training, and their "
        "loss measures what was learnt by heart; try split=independent",
    )


def _samples(windows: WindowSet) -> NDArray[np.int64]:
    """A number for each sample that stands in some window, equal where value and predecessor are."""
    if isinstance(windows, CutWindows):
        return _of_realizations(windows)
    if not isinstance(windows, StoredWindows):
        raise TypeError(f"{type(windows).__name__}: neither cut from realizations nor stored")
    parts = [np.unique(_keys(part[..., 0].numpy())) for part in torch.split(windows.inputs.cpu(), READ_AT_ONCE)]
    return np.concatenate(parts)


def _of_realizations(windows: CutWindows) -> NDArray[np.int64]:
    """The same for windows that are views: each sample of a realization once, if a window has it."""
    n_realizations, length = windows.mixtures.shape
    covered = np.zeros((n_realizations, length + 1), dtype=np.int64)
    numbers = torch.arange(len(windows)) if windows.chosen is None else windows.chosen.cpu()
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
