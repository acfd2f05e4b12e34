"""Loss functions, optimizers and learning-rate schedules."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer
from torch.overrides import TorchFunctionMode

from freqfilter.config import TrainingParams


class _InFloat32(TorchFunctionMode):
    """Context in which ``Tensor.bfloat16`` returns a float32 copy."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is Tensor.bfloat16:
            return args[0].to(torch.float32, copy=True)
        return func(*args, **(kwargs or {}))


class Float32Muon(torch.optim.Muon):
    """Muon with matrix products in float32: ``torch.optim.Muon`` uses bfloat16, which some CPUs have to emulate."""

    def step(self, closure: Any = None) -> Any:
        """Take a step; see ``torch.optim.Muon``."""
        with _InFloat32():
            return super().step(closure)  # type: ignore[no-untyped-call]


def create_optimizers(network: nn.Module, params: TrainingParams, *, dtype: torch.dtype) -> list[Optimizer]:
    """Create the optimizers of a network; each parameter belongs to exactly one.

    Muon is designed for matrices between hidden features: its steps have equal length in all directions, while the
    gradient is dominated by a few. Its learning rate is scaled to match Adam's.
    Sources: K. Jordan, "Muon: An optimizer for hidden layers in neural networks", 2024; J. Liu et al., "Muon is
    Scalable for LLM Training", 2025, section 2.2.
    """
    hidden: list[nn.Parameter] = []
    other: list[nn.Parameter] = []
    for name, parameter in network.named_parameters():
        (hidden if params.optimizer == "muon" and _is_hidden(name) else other).append(parameter)
    rate, weight_decay = params.learning_rate, params.weight_decay
    optimizers: list[Optimizer] = [torch.optim.Adam(other, lr=rate, weight_decay=weight_decay)]
    if hidden:
        muon = torch.optim.Muon if dtype is torch.bfloat16 else Float32Muon
        optimizers.append(muon(hidden, lr=rate, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"))
    return optimizers


def _is_hidden(name: str) -> bool:
    """Whether a parameter is a matrix from hidden to hidden features, by its name in PyTorch."""
    matrix = name.rpartition(".")[2]
    return matrix.startswith(("weight_hh_l", "weight_ih_l")) and not matrix.startswith("weight_ih_l0")


def warmup_and_cosine(done: float, *, warmup_fraction: float) -> float:
    """Factor of the learning rate: linear warm-up, then half a cosine down to zero.

    Source: I. Loshchilov and F. Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts", 2017, equation 5.

    Args:
        done: Completed share of training, from 0 to 1.
        warmup_fraction: Share of all steps in the warm-up.

    >>> [round(warmup_and_cosine(done, warmup_fraction=0.2), 3) for done in (0.1, 0.2, 0.6, 1.0)]
    [0.5, 1.0, 0.5, 0.0]
    """
    if done < warmup_fraction:
        return done / warmup_fraction
    return (1 + math.cos(math.pi * (done - warmup_fraction) / (1 - warmup_fraction))) / 2


Loss = Callable[[Tensor, Tensor], Tensor]

EPSILON = 1e-8  # keeps the SNR finite for a silent target or a perfect estimate


def mse(estimate: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of each window, (n_windows,), of estimate and target of shape (n_windows, n_samples, 1)."""
    return (estimate - target).square().mean(dim=(1, 2))


def mae(estimate: Tensor, target: Tensor) -> Tensor:
    """Mean absolute error of each window."""
    return (estimate - target).abs().mean(dim=(1, 2))


def huber(estimate: Tensor, target: Tensor) -> Tensor:
    """Huber loss of each window: quadratic for errors below 1, linear above.

    Source: P. J. Huber, "Robust Estimation of a Location Parameter", 1964.
    """
    return functional.huber_loss(estimate, target, reduction="none").mean(dim=(1, 2))


def snr(estimate: Tensor, target: Tensor) -> Tensor:
    """Negative signal-to-noise ratio of each window, dB: ``-10 log10(Σ target² / Σ (target - estimate)²)``."""
    signal = target.square().sum(dim=(1, 2))
    error = (target - estimate).square().sum(dim=(1, 2))
    return -10 * torch.log10((signal + EPSILON) / (error + EPSILON))


LOSSES: dict[str, Loss] = {"mse": mse, "mae": mae, "huber": huber, "snr": snr}
