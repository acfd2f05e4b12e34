"""Overlap of splits: windows of one split that share samples with windows of another, noise included."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import avg_pool1d, conv1d

from freqfilter.config import Params
from freqfilter.data.recordings import Recordings
from freqfilter.data.signal_model import random_stream
from freqfilter.data.splits import Splits
from freqfilter.data.windows import Dataset, SlidingWindows
from freqfilter.evaluation.monitor import Finding

MIN_RUN, MAX_RUN = 8, 32  # samples that identify a place in the data; shorter runs coincide by chance, if quantised
MIN_CHANGES = 0.5  # share of a run's steps at which its value changes; silence and held values identify no place
CHANGE = 1e-6  # of a window's largest value: rounding of float32 is no change
N_PROJECTIONS, RESOLUTION = 6, 1e-3  # runs that differ by less than a thousandth of their variation are the same
# Errors of shared windows are at least zero: a share of 1 % lowers the mean squared error of a split by at most 1 %.
MAX_SHARED = 0.01
CHUNK_SIZE = 2**20  # samples
PAIRS = (("validation", "training"), ("test", "training"), ("test", "validation"))


@dataclass(frozen=True)
class WindowOverlap:
    """Windows of a split that share samples with windows of another one.

    Attributes:
        split: Name of the split: ``validation`` or ``test``.
        other: Name of the other one: ``training`` or ``validation``.
        n_windows: Number of windows of ``split`` that can be compared: those that are not constant.
        n_shared: Number of those that have a run of samples in common with a window of ``other``.
        items: ``windows``, or ``recordings``.
    """

    split: str
    other: str
    n_windows: int
    n_shared: int
    items: str = "windows"

    @property
    def share(self) -> float:
        """``n_shared`` as a share of ``n_windows``; 0 if there are none."""
        return self.n_shared / self.n_windows if self.n_windows else 0.0

    def summary(self) -> str:
        """Return the overlap in one line."""
        if self.n_windows == 0:
            remark = f"are constant or without noise, not compared with {self.other} {self.items}"
            return f"overlap: {self.split} {self.items} {remark}"
        counts = f"{self.n_shared:,} of {self.n_windows:,} {self.split} {self.items} ({self.share:.0%})"
        return f"overlap: {counts} share samples with {self.other} {self.items}"


def measure_overlaps(splits: Splits) -> list[WindowOverlap]:
    """Count the windows of validation and test that share samples with training windows, and test with validation.

    A window is shared if a run of its samples, half a window but 8 to 32 samples long, also occurs in the other split,
    at any place of a window, up to a gain, an offset and rounding. In windows of a signal model the noise is compared.
    Nothing is shared with training windows whose noise is drawn anew each epoch.

    Returns:
        The overlap of each pair of splits; empty if windows are shorter than ``MIN_RUN``.
    """
    if splits.validation.n_samples < MIN_RUN:
        return []
    parts = {"validation": splits.validation, "test": splits.test}
    parts |= {} if splits.fresh_noise else {"training": splits.train}
    keys = {name: _run_keys(windows) for name, windows in parts.items()}
    places = {name: np.unique(values[known]) for name, (values, known) in keys.items()}
    overlaps = []
    for split, other in PAIRS:
        values, known = keys[split]
        found = known & np.isin(values, places.get(other, []))
        n_windows, n_shared = int(known.any(axis=1).sum()), int(found.any(axis=1).sum())
        overlaps.append(WindowOverlap(split, other, n_windows, n_shared, parts[split].items))
    return overlaps


def shared_data(overlaps: Sequence[WindowOverlap], params: Params) -> Finding | None:
    """Detect splits that share more than ``MAX_SHARED`` of their windows with another one."""
    found = [overlap for overlap in overlaps if overlap.share > MAX_SHARED]
    if not found:
        return None
    pairs = ", ".join(
        f"{each.share:.0%} of the {each.split} {each.items} with {each.other} {each.items}" for each in found
    )
    if params.data.data_file is not None:
        remedy = "store other data in each part of the file"
    elif params.data.split == "random":
        remedy = "try split=independent"
    else:
        remedy = "use another noise seed for each split"
    return Finding("overlap", f"the splits share data, {pairs}: their errors are not those on new data; {remedy}")


def _run_keys(windows: Dataset) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Key of each run of samples in each window, and whether the run identifies a place, (n_windows, n_runs)."""
    if isinstance(windows, SlidingWindows | Recordings):
        noise = windows.mixtures - windows.components.mean(dim=0 if isinstance(windows, SlidingWindows) else 2)
        # The clean signal is subtracted in float32; without noise its rounding remains.
        windows = replace(windows, mixtures=noise.where(noise.abs() > CHANGE, 0))
    run = max(MIN_RUN, min(MAX_RUN, windows.n_samples // 2))
    random = random_stream(0, "overlap", run)
    projections = torch.from_numpy(random.standard_normal((N_PROJECTIONS, 1, run)))
    projections -= projections.mean(dim=2, keepdim=True)
    projections /= projections.norm(dim=2, keepdim=True)
    factors = torch.from_numpy(random.integers(2**62, size=(N_PROJECTIONS, 1)) * 2 + 1)  # odd, of a hash modulo 2⁶⁴
    keys, known = [], []
    for positions in torch.split(torch.arange(len(windows)), max(1, CHUNK_SIZE // windows.n_samples)):
        inputs, _ = windows.batch(positions)
        mixtures = (inputs if inputs.dim() == 2 else inputs[..., 0]).cpu().double()[:, None]
        norm, changes = _norm_and_changes(mixtures, run)
        # Invariant to offset and gain: the projections sum to zero, and the norm is that around the run's mean.
        cells = (conv1d(mixtures, projections) / norm.clamp(min=1e-300) / RESOLUTION).floor().long()
        keys.append((cells * factors).sum(dim=1))
        known.append(((changes >= MIN_CHANGES) & (norm > 0))[:, 0])
    return torch.cat(keys).numpy(), torch.cat(known).numpy()


def _norm_and_changes(mixtures: Tensor, run: int) -> tuple[Tensor, Tensor]:
    """Norm of each run around its mean, and the share of its steps that are changes, (n_windows, 1, n_runs)."""
    centred = mixtures - mixtures.mean(dim=2, keepdim=True)
    variance = avg_pool1d(centred.square(), run, stride=1) - avg_pool1d(centred, run, stride=1).square()
    threshold = CHANGE * mixtures.abs().amax(dim=2, keepdim=True)
    changes = (mixtures.diff(dim=2).abs() > threshold).double()
    return (run * variance.clamp(min=0)).sqrt(), avg_pool1d(changes, run - 1, stride=1)
