"""Number of floating-point operations of a network; a multiplication and an addition are two."""

from __future__ import annotations

from freqfilter.models.network import FrequencyFilterLSTM

BACKWARD = 2  # gradients of inputs and of weights, each with the operations of the forward pass


def forward_flop(network: FrequencyFilterLSTM, *, window_length: int) -> int:
    """Operations of a forward pass of one window, matrices only: each weight is used once per time step."""
    matrices = sum(parameter.numel() for parameter in network.parameters() if parameter.ndim == 2)
    return 2 * matrices * window_length


def training_flop(network: FrequencyFilterLSTM, *, window_length: int) -> int:
    """Operations of a forward and backward pass of one window."""
    return (1 + BACKWARD) * forward_flop(network, window_length=window_length)
