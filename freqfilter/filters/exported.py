"""The network as an exported PyTorch program (the ``.pt2`` format), for any number of windows and samples.

``torch.export`` traces PyTorch's recurrent layers time step by time step, and the program then takes one number of
samples alone (https://github.com/pytorch/pytorch/issues/115092). Here they are traced as a placeholder operator that
only states the shape of its output, which the finished program has PyTorch's own operator in place of.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, export

from freqfilter.filters.network import FrequencyFilterLSTM

EXAMPLE_SHAPE = (2, 3)  # windows and samples that are traced; a size of 1 would become a constant

# The arguments of aten::lstm.input and aten::gru.input.
_ARGUMENTS = (
    "Tensor input, {state}, Tensor[] params, bool has_biases, int num_layers, float dropout, bool train, "
    "bool bidirectional, bool batch_first"
)
torch.library.define("freqfilter::lstm", f"({_ARGUMENTS.format(state='Tensor[] hx')}) -> (Tensor, Tensor, Tensor)")
torch.library.define("freqfilter::gru", f"({_ARGUMENTS.format(state='Tensor hx')}) -> (Tensor, Tensor)")
OPERATORS = {
    torch.ops.freqfilter.lstm.default: torch.ops.aten.lstm.input,
    torch.ops.freqfilter.gru.default: torch.ops.aten.gru.input,
}


@torch.library.register_fake("freqfilter::lstm")  # type: ignore[untyped-decorator]
def _lstm_shapes(features: Tensor, state: list[Tensor], _weights: Any, *settings: Any) -> tuple[Tensor, ...]:
    hidden, cell = state
    return _output(features, hidden, *settings), torch.empty_like(hidden), torch.empty_like(cell)


@torch.library.register_fake("freqfilter::gru")  # type: ignore[untyped-decorator]
def _gru_shapes(features: Tensor, state: Tensor, _weights: Any, *settings: Any) -> tuple[Tensor, ...]:
    return _output(features, state, *settings), torch.empty_like(state)


def _output(features: Tensor, hidden: Tensor, *settings: Any) -> Tensor:
    """An empty output (n_samples, n_windows, n_directions · hidden_size); ``bidirectional`` is the last but one."""
    bidirectional = settings[-2]
    return features.new_empty(*features.shape[:2], (1 + bidirectional) * hidden.shape[2])


class _Traceable(nn.Module):
    """The network in evaluation mode, with a placeholder for its recurrent layers.

    Its submodules have the network's names, so that its state dict is the network's.
    """

    def __init__(self, network: FrequencyFilterLSTM, layers: nn.RNNBase) -> None:
        super().__init__()
        self._layers = [layers]  # in a list, so that it is registered under the cell's name alone
        self.add_module(network.cell, layers)
        self.fc = network.fc
        self._placeholder = getattr(torch.ops.freqfilter, network.cell)

    def forward(self, inputs: Tensor) -> Tensor:
        layers = self._layers[0]
        features = inputs.transpose(0, 1)
        zeros = features.new_zeros(
            layers.num_layers * (1 + layers.bidirectional), features.shape[1], layers.hidden_size
        )
        state = [zeros, zeros] if isinstance(layers, nn.LSTM) else zeros
        weights = [weight for of_direction in layers.all_weights for weight in of_direction]
        # With biases, without dropout, not in training, time first.
        output, *_ = self._placeholder(
            features, state, weights, True, layers.num_layers, 0.0, False, layers.bidirectional, False
        )
        estimates: Tensor = self.fc(output).transpose(0, 1)
        return estimates


def exported_program(network: FrequencyFilterLSTM) -> ExportedProgram:
    """The network in evaluation mode as an exported program; ``torch.export.save`` writes it.

    Args:
        network: A network on the CPU. The program's ``module()`` has its state dict.

    Returns:
        A program of inputs (n_windows, n_samples, 1 + n_components), any sizes of 1 and more, that gives estimates
        (n_windows, n_samples, 1).
    """
    layers = network.recurrent
    traced = _Traceable(network, layers).eval() if isinstance(layers, nn.RNNBase) else network
    example = torch.zeros(*EXAMPLE_SHAPE, 1 + network.n_components)
    sizes = {0: Dim("n_windows", min=1), 1: Dim("n_samples", min=1)}
    program = export(traced, (example,), dynamic_shapes=(sizes,))
    for node in program.graph.nodes:
        node.target = OPERATORS.get(node.target, node.target)
    program.graph_module.recompile()
    return program
