from __future__ import annotations

import ast
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks import reference
from freqfilter.config import resolve
from freqfilter.models import network as network_module
from freqfilter.models.network import Dropout, FrequencyFilterLSTM, estimate
from freqfilter.training.optim import LOSSES

KINDS = [
    {"cell": cell, "bidirectional": bidirectional, "num_layers": layers}
    for cell in ("lstm", "gru")
    for bidirectional in (False, True)
    for layers in (1, 2)
]


DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


def small(**kind: object) -> FrequencyFilterLSTM:
    torch.manual_seed(0)
    return FrequencyFilterLSTM(n_components=3, hidden_size=6, dropout=0.5, **kind).eval()  # type: ignore[arg-type]


def test_the_network_has_the_documented_number_of_parameters() -> None:
    counts = {
        name: p.numel()
        for name, p in FrequencyFilterLSTM(n_components=4, **resolve().model.model_dump()).named_parameters()
    }
    layers = [sum(n for name, n in counts.items() if part in name) for part in ("_l0", "_l1", "fc")]
    assert layers == [69_120, 132_096, 129]
    assert sum(layers) == sum(counts.values()) == 201_345


def test_the_network_equals_pytorchs_lstm_and_linear_layer() -> None:
    network = small(cell="lstm", bidirectional=False, num_layers=2)
    lstm, linear = nn.LSTM(4, 6, num_layers=2, batch_first=True), nn.Linear(6, 1)
    state = network.state_dict()
    lstm.load_state_dict({k.removeprefix("lstm."): v for k, v in state.items() if k.startswith("lstm.")})
    linear.load_state_dict({k.removeprefix("fc."): v for k, v in state.items() if k.startswith("fc.")})
    inputs = torch.randn(2, 9, 4)
    torch.testing.assert_close(network(inputs), linear(lstm(inputs)[0]))


def test_the_original_network_loads_the_state_dict() -> None:
    kind = {"cell": "lstm", "hidden_size": 128, "num_layers": 2, "dropout": 0.2, "bidirectional": False}
    network, original = FrequencyFilterLSTM(n_components=4, **kind).eval(), reference.Filter().eval()  # type: ignore[arg-type]
    original.load_state_dict(network.state_dict(), strict=True)
    inputs = torch.randn(2, 9, 5)
    torch.testing.assert_close(network(inputs), original(inputs))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(1, 1), (3, 50), (2, 500)])
def test_any_number_of_windows_and_samples(kind: dict[str, object], shape: tuple[int, int]) -> None:
    assert small(**kind)(torch.randn(*shape, 4)).shape == (*shape, 1)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if not kind["bidirectional"]])
def test_segments_with_the_state_passed_on_equal_the_whole(kind: dict[str, object]) -> None:
    network, inputs = small(**kind), torch.randn(2, 30, 4)
    state, pieces = None, []
    for piece in inputs.split([1, 12, 17], dim=1):
        output, state = network.forward_with_state(piece, state)
        pieces.append(output)
    torch.testing.assert_close(torch.cat(pieces, dim=1), network(inputs))


@pytest.mark.parametrize("kind", KINDS)
def test_only_a_bidirectional_filter_uses_later_samples(kind: dict[str, object]) -> None:
    network, inputs = small(**kind), torch.randn(1, 20, 4)
    changed = inputs.clone()
    changed[:, 15:] += 1
    same = torch.equal(network(inputs)[:, :15], network(changed)[:, :15])
    assert same is not kind["bidirectional"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_of_an_estimate_reaches_the_windows_first_sample(kind: dict[str, object]) -> None:
    """Back-propagation through time is not truncated: it gives the derivative with respect to the first sample."""
    network, inputs = small(**kind).double(), torch.randn(1, 30, 4).double().requires_grad_(True)
    (gradient,) = torch.autograd.grad(network(inputs)[0, -1, 0], inputs)
    step = torch.zeros_like(inputs)
    step[0, 0, 0] = 1e-3
    change = (network(inputs + step)[0, -1, 0] - network(inputs - step)[0, -1, 0]) / 2e-3
    assert change != 0
    torch.testing.assert_close(gradient[0, 0, 0], change.detach(), rtol=1e-3, atol=0)


@pytest.mark.parametrize(("forget_bias", "kept"), [(50.0, 1.0), (0.0, 0.5**200)])
def test_an_open_forget_gate_carries_a_gradient_over_any_number_of_samples(forget_bias: float, kept: float) -> None:
    network = small(cell="lstm", bidirectional=False, num_layers=1).double()
    with torch.no_grad():
        for parameter in network.recurrent.parameters():
            parameter.zero_()
        network.recurrent.bias_ih_l0[6:12] = forget_bias  # the order of the gates is i, f, g, o
    cell = torch.ones(1, 1, 6).double().requires_grad_(True)
    _, (_, last) = network.forward_with_state(torch.randn(1, 200, 4).double(), (torch.zeros_like(cell), cell))
    (gradient,) = torch.autograd.grad(last.sum(), cell)
    torch.testing.assert_close(gradient, torch.full_like(gradient, kept), rtol=1e-12, atol=0)


def test_estimates_do_not_depend_on_the_batch_size() -> None:
    network, inputs = small(cell="lstm", bidirectional=False, num_layers=2), torch.randn(7, 11, 4)
    torch.testing.assert_close(estimate(network, inputs, batch_size=2), estimate(network, inputs, batch_size=100))
    assert estimate(network, inputs[:0]).shape == (0, 11, 1)


def test_the_network_needs_torch_alone() -> None:
    tree = ast.parse(Path(str(network_module.__file__)).read_text())
    modules = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    modules |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.partition(".")[0] for name in modules} - sys.stdlib_module_names == {"torch"}


def test_estimates_do_not_depend_on_the_number_of_threads() -> None:
    module = small(cell="lstm", bidirectional=False, num_layers=2)
    inputs, threads = torch.randn(37, 20, 4), torch.get_num_threads()
    with torch.inference_mode():
        expected = module(inputs)
    try:
        for n_threads in (1, 2, 3):
            torch.set_num_threads(n_threads)
            for batch_size in (1, 5, 36, 37, 100):
                torch.testing.assert_close(estimate(module, inputs, batch_size=batch_size), expected, rtol=0, atol=1e-6)
            assert torch.get_num_threads() == n_threads
            with ThreadPoolExecutor(1) as pool:
                assert pool.submit(torch.get_num_threads).result() == n_threads
    finally:
        torch.set_num_threads(threads)
    assert estimate(module, inputs[:0]).shape == (0, 20, 1)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("mse", nn.functional.mse_loss), ("mae", nn.functional.l1_loss), ("huber", nn.functional.huber_loss)],
)
def test_the_mean_over_windows_is_pytorchs_loss(name: str, expected: nn.Module) -> None:
    estimates, targets = torch.randn(5, 8, 1), torch.randn(5, 8, 1) * 3
    losses = LOSSES[name](estimates, targets)
    assert losses.shape == (5,)
    torch.testing.assert_close(losses.mean(), expected(estimates, targets))


def test_an_error_of_a_tenth_of_the_signal_is_20_db() -> None:
    targets = torch.randn(4, 50, 1)
    torch.testing.assert_close(LOSSES["snr"](1.1 * targets, targets), torch.full((4,), -20.0), atol=1e-3, rtol=0)


@pytest.mark.parametrize("name", LOSSES)
def test_a_perfect_or_silent_window_has_a_finite_loss_and_gradient(name: str) -> None:
    for targets in (torch.zeros(2, 5, 1), torch.ones(2, 5, 1)):
        estimates = targets.clone().requires_grad_()
        loss = LOSSES[name](estimates, targets).mean()
        loss.backward()
        assert estimates.grad is not None
        assert torch.isfinite(loss)
        assert torch.isfinite(estimates.grad).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("probability", [0.2, 0.5, 0.99, 1e-9])
def test_dropout_has_its_probability_and_keeps_the_expectation(probability: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    ones = torch.ones(401, 999, dtype=dtype, requires_grad=True)
    dropout = Dropout(probability)
    dropped = dropout(ones)
    share, error = float((dropped == 0).double().mean()), (probability * (1 - probability) / ones.numel()) ** 0.5
    assert share == pytest.approx(probability, abs=4 * error + 2**-16)
    kept = dropped[dropped != 0].double()
    torch.testing.assert_close(kept, torch.full_like(kept, 1 / (1 - probability)), rtol=1e-2, atol=0)
    dropped.sum().backward()
    assert ones.grad is not None
    assert torch.equal(ones.grad == 0, dropped == 0)
    assert torch.equal(dropout.eval()(ones), ones)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("device", DEVICES)
def test_the_network_is_the_same_when_computed_layer_by_layer(
    device: str, kind: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A dropout of 1e-9 computes the layers one by one and drops no element."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    module, inputs = small(**kind).to(device), torch.randn(7, 20, 4, device=device)
    expected = module(inputs)
    module.train()
    module.recurrent.dropout = module.dropout.p = 1e-9
    torch.testing.assert_close(module(inputs), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_contiguous_weights_are_unchanged_and_in_the_order_of_cudnn(kind: dict[str, object]) -> None:
    weights = [weight for direction in small(**kind).recurrent.all_weights for weight in direction]
    in_one_piece = network_module._in_one_piece(weights)
    for one, other in zip(weights, in_one_piece, strict=True):
        assert torch.equal(one, other)
    in_order = sorted(in_one_piece, key=lambda weight: weight.storage_offset())
    assert len({weight.untyped_storage().data_ptr() for weight in in_one_piece}) == 1
    assert [weight.dim() for weight in in_order] == sorted((weight.dim() for weight in weights), reverse=True)
