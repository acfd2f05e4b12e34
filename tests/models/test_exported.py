"""The exported program gives the network's estimates for any sizes and is loaded without unpickling."""

from __future__ import annotations

from pathlib import Path

import mlflow.pytorch
import pytest
import torch

from freqfilter.models.export import exported_program
from tests.models.test_network import KINDS, small


@pytest.mark.parametrize("kind", KINDS)
def test_the_program_gives_the_networks_estimates_for_any_number_of_windows_and_samples(
    kind: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = small(**kind)
    torch.export.save(exported_program(network), tmp_path / "model.pt2")
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    module = mlflow.pytorch._load_model(str(tmp_path))
    for shape in ((1, 1), (1, 300), (7, 20), (64, 2)):
        inputs = torch.randn(*shape, 4)
        torch.testing.assert_close(module(inputs), network(inputs), rtol=0, atol=1e-6)
    assert {name: tensor.shape for name, tensor in module.state_dict().items()} == {
        name: tensor.shape for name, tensor in network.state_dict().items()
    }


def test_the_loaded_program_can_be_trained_further(tmp_path: Path) -> None:
    network = small(cell="lstm", bidirectional=False, num_layers=2)
    torch.export.save(exported_program(network), tmp_path / "model.pt2")
    module = torch.export.load(tmp_path / "model.pt2").module()
    inputs, targets = torch.randn(4, 20, 4), torch.randn(4, 20, 1)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.05)
    losses = []
    for _ in range(5):
        loss = (module(inputs) - targets).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses == sorted(losses, reverse=True)
