"""How many operations a network takes, counted from its sizes: a multiplication and an addition are two."""

from __future__ import annotations

from freqfilter.models.network import FrequencyFilterLSTM

BACKWARD = 2  # gradients of inputs and of weights, each as many as the forward pass


def forward_flop(network: FrequencyFilterLSTM, *, window_length: int) -> int:
    """Of one window, matrices alone: each weight is used once at each step."""
    matrices = sum(parameter.numel() for parameter in network.parameters() if parameter.ndim == 2)
    return 2 * matrices * window_length


def training_flop(network: FrequencyFilterLSTM, *, window_length: int) -> int:
    """Of one window, forwards and backwards."""
    return (1 + BACKWARD) * forward_flop(network, window_length=window_length)
