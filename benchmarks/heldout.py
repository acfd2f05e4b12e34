"""The held-out set on which both sides are scored, outside the measured time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn

from freqfilter.config import resolve
from freqfilter.data.posterior import MMSEEstimator, WindowMMSE
from freqfilter.data.signal_model import SignalModel, realization_windows
from freqfilter.data.windows import evenly_spaced
from freqfilter.models.network import estimate

NOISE_SEEDS = (5001, 5002, 5003, 5004)  # used by no recipe
N_WINDOWS = 10_000  # evenly spaced over all of them


@dataclass(frozen=True)
class HeldOut:
    """Windows of fresh realizations, their targets, and the limit on these windows."""

    inputs: Tensor
    targets: Tensor
    limit_mse: float

    @classmethod
    def make(cls) -> Self:
        """Create the set of the default signal model."""
        params = resolve()
        model = SignalModel.from_params(params.signals)
        every = realization_windows(model, params.data.window_length, *NOISE_SEEDS)
        some = evenly_spaced(every, N_WINDOWS)
        inputs, targets = some.batch(torch.arange(len(some)))
        best = WindowMMSE(MMSEEstimator.from_model(model, n_samples=params.data.window_length))(inputs)
        return cls(inputs, targets, float((best - targets).square().mean()))

    def ratio(self, network: nn.Module) -> float:
        """Ratio of the network's mean squared error to the limit."""
        device = next(network.parameters()).device
        errors = (estimate(network, self.inputs.to(device)).cpu() - self.targets).square()
        return float(errors.double().mean()) / self.limit_mse
