"""The estimators that look at nothing of the mixture: what any filter has to beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from freqfilter.signals.windows import WindowSet, batches

READ_AT_ONCE = 4096  # windows


def zero(inputs: Tensor) -> Tensor:
    """Zero for every sample: its mean squared error is the component's power.

    Args:
        inputs: (n_windows, n_samples, 1 + n_components).

    Returns:
        (n_windows, n_samples, 1).
    """
    return torch.zeros_like(inputs[..., :1])


@dataclass(frozen=True)
class TargetMoments:
    """What is known of a component without looking at a mixture.

    Attributes:
        mean: Of the targets of each component, (n_components,).
        std: Their standard deviation, (n_components,).
    """

    mean: Tensor
    std: Tensor

    @classmethod
    def of(cls, windows: WindowSet) -> Self:
        """The moments of the targets of some windows; zero for a component that does not occur."""
        sums, squares, counts = torch.zeros(3, windows.n_components, dtype=torch.float64)
        for inputs, targets in batches(windows, READ_AT_ONCE, torch.device("cpu")):
            selector = inputs[:, 0, 1:].double().T
            sums += selector @ targets.double().mean(dim=(1, 2))
            squares += selector @ targets.double().square().mean(dim=(1, 2))
            counts += selector.sum(dim=1)
        mean = sums / counts.clamp(min=1)
        variance = (squares / counts.clamp(min=1) - mean**2).clamp(min=0)
        return cls(mean.float(), variance.sqrt().float())


class Mean:
    """The mean of the selected component, whatever the mixture."""

    def __init__(self, moments: TargetMoments) -> None:
        self._moments = moments

    def __call__(self, inputs: Tensor) -> Tensor:
        """The mean at every sample, (n_windows, n_samples, 1)."""
        return _of_selected(self._moments.mean, inputs)


class Random:
    """Draws with the selected component's mean and spread: its error is twice the component's variance."""

    def __init__(self, moments: TargetMoments, generator: torch.Generator) -> None:
        self._moments = moments
        self._generator = generator

    def __call__(self, inputs: Tensor) -> Tensor:
        """A normal draw at every sample, (n_windows, n_samples, 1)."""
        noise = torch.randn((*inputs.shape[:2], 1), generator=self._generator).to(inputs.device)
        return _of_selected(self._moments.mean, inputs) + _of_selected(self._moments.std, inputs) * noise


def _of_selected(values: Tensor, inputs: Tensor) -> Tensor:
    selected: Tensor = inputs[..., 1:] @ values.to(inputs.device)
    return selected[..., None]
