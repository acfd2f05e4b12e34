"""Export of the network as a PyTorch program and as an ONNX graph."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, export

from freqfilter.errors import UserError
from freqfilter.models.network import FrequencyFilterLSTM

if TYPE_CHECKING:
    import onnx

EXAMPLE_SHAPE = (2, 3)  # windows and samples of the traced example; a size of 1 would become a constant

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
INPUTS, ESTIMATES = "inputs", "estimates"
OPSET, IR_VERSION = 17, 8  # of 2022, for compatibility with old runtimes
# Positions of PyTorch's gates (LSTM: input, forget, cell, output; GRU: reset, update, new) in ONNX's order.
GATES = {"LSTM": (0, 3, 1, 2), "GRU": (1, 0, 2)}

Array = NDArray[np.float32]


@torch.library.register_fake("freqfilter::lstm")  # type: ignore[untyped-decorator]
def _lstm_shapes(features: Tensor, state: list[Tensor], _weights: Any, *settings: Any) -> tuple[Tensor, ...]:
    hidden, cell = state
    return _output(features, hidden, *settings), torch.empty_like(hidden), torch.empty_like(cell)


@torch.library.register_fake("freqfilter::gru")  # type: ignore[untyped-decorator]
def _gru_shapes(features: Tensor, state: Tensor, _weights: Any, *settings: Any) -> tuple[Tensor, ...]:
    return _output(features, state, *settings), torch.empty_like(state)


def _output(features: Tensor, hidden: Tensor, *settings: Any) -> Tensor:
    """Empty output (n_samples, n_windows, n_directions · hidden_size); ``settings[-2]`` is ``bidirectional``."""
    bidirectional = settings[-2]
    return features.new_empty(*features.shape[:2], (1 + bidirectional) * hidden.shape[2])


class _Traceable(nn.Module):
    """The network in evaluation mode, with one placeholder operator for its recurrent layers.

    Submodules have the same names as in the network, so that the state dicts are equal.
    """

    def __init__(self, network: FrequencyFilterLSTM, layers: nn.RNNBase) -> None:
        super().__init__()
        self._layers = [layers]  # in a list: registered as a submodule under the cell's name only
        self.add_module(network.cell, layers)
        self.fc = network.fc
        self.selector = network.selector
        self._placeholder = getattr(torch.ops.freqfilter, network.cell)

    def forward(self, inputs: Tensor) -> Tensor:
        layers = self._layers[0]
        features = (inputs if self.selector else inputs[..., None]).transpose(0, 1)
        n_states = layers.num_layers * (1 + layers.bidirectional)
        zeros = features.new_zeros(n_states, features.shape[1], layers.hidden_size)
        state = [zeros, zeros] if isinstance(layers, nn.LSTM) else zeros
        weights = [weight for direction in layers.all_weights for weight in direction]
        settings = (True, layers.num_layers, 0.0, False, layers.bidirectional, False)  # from has_biases on
        output, *_ = self._placeholder(features, state, weights, *settings)
        estimates: Tensor = self.fc(output).transpose(0, 1)
        return estimates


def exported_program(network: FrequencyFilterLSTM) -> ExportedProgram:
    """Export the network in evaluation mode as a program that ``torch.export.save`` writes.

    Args:
        network: A network on the CPU.

    Returns:
        A program from the network's inputs, of any numbers of windows or recordings and of samples of at least 1, to
        its estimates. Its ``module()`` has the network's state dict.
    """
    layers = network.recurrent
    traced = _Traceable(network, layers).eval() if isinstance(layers, nn.RNNBase) else network
    example = torch.zeros(*EXAMPLE_SHAPE, *([1 + network.n_components] if network.selector else []))
    sizes = {0: Dim("n_windows", min=1), 1: Dim("n_samples", min=1)}
    program = export(traced, (example,), dynamic_shapes=(sizes,))
    for node in program.graph.nodes:
        node.target = OPERATORS.get(node.target, node.target)
    program.graph_module.recompile()
    return program


def onnx_model(network: FrequencyFilterLSTM, facts: Mapping[str, str]) -> onnx.ModelProto:
    """Convert the network to an ONNX model, for any number of windows and samples.

    Args:
        network: The network in evaluation mode, on the CPU.
        facts: Metadata of the file.

    Returns:
        A model with the input ``inputs`` (n_windows, n_samples, 1 + n_components) and the output ``estimates``
        (n_windows, n_samples, 1), both float32; of recordings (n_recordings, n_samples) and (n_recordings, n_samples,
        n_components).

    Raises:
        UserError: If ONNX has no operator for the cell.
    """
    import onnx  # an extra: training imports this module and must not need it
    from onnx import helper, numpy_helper, parser

    recurrent = getattr(network, "recurrent", None)  # classical filters have none
    if not isinstance(recurrent, nn.RNNBase) or recurrent.mode not in GATES:
        raise UserError(f"cell={network.cell}: not supported by the ONNX export; use {' or '.join(GATES)}")
    # In model schema 1 the layer is named output.
    fc = cast(nn.Linear, network.fc if hasattr(network, "fc") else network.output)
    weights = {"output_weight": _array(fc.weight.T), "output_bias": _array(fc.bias)}
    direction = "bidirectional" if recurrent.bidirectional else "forward"
    settings = f'hidden_size = {recurrent.hidden_size}, direction = "{direction}"'
    if recurrent.mode == "GRU":  # in PyTorch the reset gate is applied after the matrix product
        settings += ", linear_before_reset = 1"
    layers = ""
    for layer in range(recurrent.num_layers):
        weights |= _layer_weights(recurrent, layer)
        operands = f"features_{layer}, input_{layer}, recurrence_{layer}, bias_{layer}"
        layers += f"""
            by_direction_{layer} = {recurrent.mode} <{settings}> ({operands})
            in_turn_{layer} = Transpose <perm = [0, 2, 1, 3]> (by_direction_{layer})
            features_{layer + 1} = Reshape (in_turn_{layer}, time_windows_features)"""
    selector = getattr(network, "selector", True)  # stored networks of before recordings have none
    shape, to_features = f"n_windows, n_samples, {recurrent.input_size}", f"features = Identity ({INPUTS})"
    if not selector:
        shape, to_features = "n_windows, n_samples", f"features = Unsqueeze ({INPUTS}, last_axis)"
    graph = parser.parse_graph(f"""
        frequency_filter (float[{shape}] {INPUTS})
            => (float[n_windows, n_samples, {fc.out_features}] {ESTIMATES}) {{
            {to_features}
            features_0 = Transpose <perm = [1, 0, 2]> (features){layers}
            product = MatMul (features_{recurrent.num_layers}, output_weight)
            by_time = Add (product, output_bias)
            {ESTIMATES} = Transpose <perm = [1, 0, 2]> (by_time)
        }}""")
    graph.initializer.append(numpy_helper.from_array(np.array([0, 0, -1]), "time_windows_features"))
    if not selector:
        graph.initializer.append(numpy_helper.from_array(np.array([-1]), "last_axis"))
    graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in weights.items())
    model = helper.make_model(
        graph, producer_name="freqfilter", ir_version=IR_VERSION, opset_imports=[helper.make_opsetid("", OPSET)]
    )
    helper.set_model_props(model, dict(facts))
    onnx.checker.check_model(model, full_check=True)
    return model


def _layer_weights(recurrent: nn.RNNBase, layer: int) -> dict[str, Array]:
    n_directions = 2 if recurrent.bidirectional else 1
    # For each direction: input and recurrent weights, input and recurrent biases.
    directions = recurrent.all_weights[n_directions * layer : n_directions * (layer + 1)]
    inputs, recurrence, input_bias, recurrent_bias = (
        np.stack([_in_order(weight, recurrent.mode) for weight in kind]) for kind in zip(*directions, strict=True)
    )
    bias = np.concatenate([input_bias, recurrent_bias], axis=1)
    return {f"input_{layer}": inputs, f"recurrence_{layer}": recurrence, f"bias_{layer}": bias}


def _in_order(weight: Tensor, mode: str) -> Array:
    """Weights or biases of a direction, with the gates in ONNX's order."""
    gates = torch.chunk(weight, len(GATES[mode]))
    return _array(torch.cat([gates[position] for position in GATES[mode]]))


def _array(tensor: Tensor) -> Array:
    return np.ascontiguousarray(tensor.detach().numpy())
