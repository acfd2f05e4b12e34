"""The estimators that look at nothing: what any filter has to beat."""

from __future__ import annotations

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


class Mean:
    """The training targets' mean for the selected component, whatever the mixture."""

    def __init__(self, windows: WindowSet) -> None:
        sums, counts = torch.zeros(2, windows.n_components, dtype=torch.float64)
        for inputs, targets in batches(windows, READ_AT_ONCE, torch.device("cpu")):
            selector = inputs[:, 0, 1:].double()
            sums += selector.T @ targets.double().mean(dim=(1, 2))
            counts += selector.sum(dim=0)
        self.means = (sums / counts.clamp(min=1)).float()

    def __call__(self, inputs: Tensor) -> Tensor:
        """The mean of the selected component at every sample, (n_windows, n_samples, 1)."""
        means: Tensor = inputs[..., 1:] @ self.means.to(inputs.device)
        return means[..., None]
