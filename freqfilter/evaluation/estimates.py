"""What an extractor answers on a test set, in arrays that figures can draw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from freqfilter.evaluation.scores import SCORED_AT_ONCE, Extractor
from freqfilter.signals.windows import CutWindows, WindowSet

WINDOWS_SHOWN = 4000  # fewer where they are so long that they would have more samples than this in all
WINDOW_SAMPLES_SHOWN = 2_000_000

Array = NDArray[np.float32]


@dataclass(frozen=True)
class WindowEstimates:
    """Windows spread over a set, with the answers to them.

    Attributes:
        mixture: (n_windows, n_samples), as ``target`` and ``estimate``.
        component: Number of the selected component, (n_windows,).
        frequencies_hz: Frequency of each component.
    """

    mixture: Array
    component: NDArray[np.int64]
    target: Array
    estimate: Array
    frequencies_hz: Sequence[float]


@dataclass(frozen=True)
class Stretch:
    """A realization, cut into windows that follow one another, and the answers to them.

    Attributes:
        targets: The clean components, (n_components, n_samples), as ``estimates``.
        sample_rate_hz: Of both.
        window_length: Samples of a window.
        frequencies_hz: Frequency of each component.
    """

    targets: Array
    estimates: Array
    sample_rate_hz: float
    window_length: int
    frequencies_hz: Sequence[float]


@torch.inference_mode()
def window_estimates(
    extractor: Extractor, windows: WindowSet, *, frequencies_hz: Sequence[float], device: torch.device
) -> WindowEstimates:
    """Ask an extractor about a few thousand windows, drawn evenly but always the same ones."""
    n_shown = min(WINDOWS_SHOWN, max(1, WINDOW_SAMPLES_SHOWN // windows.n_samples))
    positions = torch.arange(len(windows))
    if n_shown < len(windows):  # not every n-th: the selectors take turns, and some might never be met
        drawn = torch.randint(len(windows), (n_shown,), generator=torch.Generator().manual_seed(0))
        positions = torch.unique(drawn)
    mixture, component, target, estimate = _answers(extractor, windows, positions, device)
    return WindowEstimates(mixture.numpy(), component.numpy(), target.numpy(), estimate.numpy(), frequencies_hz)


@torch.inference_mode()
def stretch(
    extractor: Extractor,
    windows: CutWindows,
    *,
    frequencies_hz: Sequence[float],
    sample_rate_hz: float,
    device: torch.device,
) -> Stretch:
    """Ask an extractor about every component of a realization.

    Args:
        extractor: What is asked.
        windows: All windows of the realization.
        frequencies_hz: Frequency of each component.
        sample_rate_hz: Of the realization.
        device: Where the extractor computes.
    """
    length = windows.n_samples
    starts = torch.arange(0, windows.n_starts, length)
    targets, estimates = [], []
    for component in range(windows.n_components):
        _, _, target, estimate = _answers(extractor, windows, starts * windows.n_components + component, device)
        targets.append(target.flatten().numpy())
        estimates.append(estimate.flatten().numpy())
    return Stretch(np.stack(targets), np.stack(estimates), sample_rate_hz, length, frequencies_hz)


def _answers(
    extractor: Extractor, windows: WindowSet, positions: Tensor, device: torch.device
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Mixtures (n_windows, n_samples), components (n_windows,), targets and estimates like the mixtures; on the CPU."""
    there = windows.to(device)
    parts = []
    for chosen in torch.split(positions, SCORED_AT_ONCE):
        inputs, targets = there.batch(chosen.to(device))
        answers = (inputs[..., 0], inputs[:, 0, 1:].argmax(dim=1), targets[..., 0], extractor(inputs)[..., 0].float())
        parts.append([answer.cpu() for answer in answers])
    mixtures, components, targets, estimates = (torch.cat(of_kind) for of_kind in zip(*parts, strict=True))
    return mixtures, components, targets, estimates
