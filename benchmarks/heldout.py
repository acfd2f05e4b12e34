"""The common held-out set: what both sides are scored on, off the clock."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from freqfilter.params import resolve
from freqfilter.signals.limit import Limit, LimitExtractor
from freqfilter.signals.model import SignalModel
from freqfilter.signals.realizations import realization_windows
from freqfilter.signals.windows import spread

NOISE_SEEDS = (5001, 5002, 5003, 5004)  # that no recipe knows
N_WINDOWS = 20_000  # evenly from all of them


@dataclass(frozen=True)
class HeldOut:
    """Windows of fresh realizations, their targets, and the limit on exactly them."""

    inputs: Tensor
    targets: Tensor
    limit_mse: float

    @classmethod
    def make(cls) -> Self:
        """The set of the default signal model."""
        params = resolve()
        model = SignalModel.from_params(params.signals)
        every = realization_windows(model, params.data.window_length, *NOISE_SEEDS)
        some = spread(every, N_WINDOWS)
        inputs, targets = some.batch(torch.arange(len(some)))
        best = LimitExtractor(Limit.from_model(model, n_samples=params.data.window_length))(inputs)
        return cls(inputs, targets, float((best - targets).square().mean()))

    def ratio(self, network: Callable[[Tensor], Tensor]) -> float:
        """The network's mean squared error over the limit's."""
        with torch.inference_mode():
            errors = [
                (network(x) - y).square().mean(dim=(1, 2))
                for x, y in zip(self.inputs.split(1000), self.targets.split(1000), strict=True)
            ]
        return float(torch.cat(errors).double().mean()) / self.limit_mse
