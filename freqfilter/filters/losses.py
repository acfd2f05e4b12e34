"""What training can minimize. Every loss has a value for each window; a batch's loss is their mean."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

Loss = Callable[[Tensor, Tensor], Tensor]

EPSILON = 1e-8  # keeps the ratio of the SNR finite for a silent target or a perfect estimate


def mse(estimate: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of each window.

    Args:
        estimate: (n_windows, n_samples, 1).
        target: The same shape.

    Returns:
        (n_windows,), as for every loss here.
    """
    return (estimate - target).square().mean(dim=(1, 2))


def mae(estimate: Tensor, target: Tensor) -> Tensor:
    """Mean absolute error of each window."""
    return (estimate - target).abs().mean(dim=(1, 2))


def huber(estimate: Tensor, target: Tensor) -> Tensor:
    """Huber loss of each window: squared below an error of 1, linear above.

    Source: P. J. Huber, "Robust Estimation of a Location Parameter", 1964.
    """
    return functional.huber_loss(estimate, target, reduction="none").mean(dim=(1, 2))


def snr(estimate: Tensor, target: Tensor) -> Tensor:
    """Negative signal-to-noise ratio of each window, dB: ``-10 log10(Σ target² / Σ (target - estimate)²)``."""
    signal = target.square().sum(dim=(1, 2))
    error = (target - estimate).square().sum(dim=(1, 2))
    return -10 * torch.log10((signal + EPSILON) / (error + EPSILON))


LOSSES: dict[str, Loss] = {"mse": mse, "mae": mae, "huber": huber, "snr": snr}
