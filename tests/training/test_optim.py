from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from freqfilter.config import resolve
from freqfilter.data.splits import Splits
from freqfilter.training.loop import train
from freqfilter.training.optim import create_optimizers, warmup_and_cosine
from tests.conftest import SMALL, fresh_state


@pytest.mark.parametrize("optimizer", ["muon", "adam"])
@pytest.mark.parametrize("model", [{}, {"cell": "gru", "bidirectional": "true"}, {"num_layers": "3"}])
def test_every_parameter_has_exactly_one_optimizer(optimizer: str, model: dict[str, str]) -> None:
    params = resolve(SMALL | model | {"optimizer": optimizer})
    network = fresh_state(params).network
    every = create_optimizers(network, params.training, dtype=torch.float32)
    ids = [id(p) for optimizer in every for group in optimizer.param_groups for p in group["params"]]
    assert sorted(ids) == sorted(id(p) for p in network.parameters())


def test_muon_has_the_matrices_between_hidden_features() -> None:
    params = resolve(SMALL | {"optimizer": "muon", "bidirectional": "true"})
    network = fresh_state(params).network
    _, muon = create_optimizers(network, params.training, dtype=torch.float32)
    names = {id(p): name for name, p in network.named_parameters()}
    assert {names[id(p)].removeprefix("lstm.") for p in muon.param_groups[0]["params"]} == {
        "weight_hh_l0", "weight_hh_l0_reverse", "weight_hh_l1", "weight_hh_l1_reverse",
        "weight_ih_l1", "weight_ih_l1_reverse",
    }  # fmt: skip


def test_muon_moves_more_directions_than_adam() -> None:
    """Number of directions: participation ratio of the singular values of the first step."""

    def directions(optimizer: str) -> float:
        params = resolve(SMALL | {"optimizer": optimizer, "hidden_size": "32"})
        state = fresh_state(params)
        windows = Splits.from_params(params).train.to(state.accelerator.device)
        hidden = state.network.recurrent.weight_hh_l0
        before = hidden.detach().clone()
        inputs, targets = windows.batch(torch.arange(64, device=state.accelerator.device))
        (state.network(inputs) - targets).square().mean().backward()
        for one in state.optimizers:
            one.step()
        moved = torch.linalg.svdvals(hidden.detach() - before).square()
        return float(moved.sum().square() / moved.square().sum())

    assert directions("muon") > 2 * directions("adam")


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.03)])
def test_muon_moves_by_the_orthogonal_part_of_the_gradient(dtype: torch.dtype, tolerance: float) -> None:
    """Compared with the authors' five Newton-Schulz steps in double precision."""
    params = resolve(SMALL | {"optimizer": "muon", "hidden_size": "32", "learning_rate": "1", "weight_decay": "0"})
    network = fresh_state(params).network
    _, muon = create_optimizers(network, params.training, dtype=dtype)
    hidden = network.recurrent.weight_hh_l0
    before = hidden.detach().clone()
    hidden.grad = torch.randn_like(hidden)
    part = hidden.grad.double().T / hidden.grad.double().norm()
    for _ in range(5):
        square = part @ part.T
        part = 3.4445 * part + (-4.7750 * square + 2.0315 * square @ square) @ part
    muon.step()
    moved = 0.2 * 128**0.5 * part.T
    assert float((before - hidden.detach() - moved).norm() / moved.norm()) < tolerance


def test_the_learning_rate_warms_up_and_falls_to_zero_for_any_epoch_length() -> None:
    epoch_rates = {}
    for batch_size in ("400", "100"):
        params = resolve(
            SMALL | {"scheduler": "cosine", "warmup_fraction": "0.25", "epochs": "8", "batch_size": batch_size}
        )
        state, splits, rates = fresh_state(params), Splits.from_params(params), []
        for _ in train(state, training_windows=splits.epoch, validation=splits.validation, params=params.training):
            rates.append(state.learning_rate)
        assert len(rates) == 8 * -(-1524 // int(batch_size))
        peak = rates.index(max(rates))
        assert max(rates) == pytest.approx(0.002, rel=0.05)
        assert rates[: peak + 1] == sorted(rates[: peak + 1])
        assert rates[peak:] == sorted(rates[peak:], reverse=True)
        assert rates[0] < 0.2 * max(rates)
        assert rates[-1] < 0.01 * max(rates)
        epoch_rates[batch_size] = [report.learning_rate for report in state.progress.history]
    assert epoch_rates["400"] == pytest.approx(epoch_rates["100"], abs=0.002 / 8)


@pytest.mark.parametrize("warmup_fraction", [0.0, 0.1, 0.9])
def test_the_schedule_is_continuous_between_zero_and_one(warmup_fraction: float) -> None:
    shares = [warmup_and_cosine(step / 1000, warmup_fraction=warmup_fraction) for step in range(1001)]
    assert all(0 <= share <= 1 for share in shares)
    assert max(abs(b - a) for a, b in pairwise(shares)) < 0.02
    assert shares[-1] == pytest.approx(0)
