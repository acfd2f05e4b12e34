"""Training on recordings: the state of the network is carried from chunk to chunk."""

from __future__ import annotations

import pytest
import torch

from freqfilter.data.recordings import Recordings
from freqfilter.data.splits import Splits
from tests.conftest import SMALL_RECORDINGS, fresh_state
from tests.training.test_loop import run, small


@pytest.mark.parametrize("overrides", [{"cell": "lstm"}, {"cell": "gru"}, {"dropout": "1e-30"}])
def test_estimates_of_chunks_equal_those_of_the_whole_recording(overrides: dict[str, str]) -> None:
    params = small(**SMALL_RECORDINGS, **overrides)
    state, data = fresh_state(params), Splits.from_params(params).epoch(1)
    assert isinstance(data, Recordings)
    state.network.train()  # with dropout > 0 the layers are computed one by one; this probability is rounded to zero
    order = torch.arange(8)
    chunks = [state.estimates(data.step(order, number, 8)) for number in range(4)]
    torch.testing.assert_close(torch.cat(chunks, dim=1), state.network(data.mixtures[:8]))
    again = state.estimates(data.step(order, 0, 8))
    torch.testing.assert_close(again, chunks[0])  # new recordings start from zero


def test_gradients_end_at_the_start_of_a_chunk() -> None:
    params = small(**SMALL_RECORDINGS)
    state, data = fresh_state(params), Splits.from_params(params).epoch(1)
    first = data.step(torch.arange(8), 0, 8)
    inputs = first.inputs.clone().requires_grad_()
    state.estimates(first._replace(inputs=inputs))
    state.estimates(data.step(torch.arange(8), 1, 8)).sum().backward()
    assert inputs.grad is None


def test_training_on_recordings_comes_near_the_limit_of_an_easy_signal() -> None:
    given = {
        "frequencies_hz": "[100]",
        "epochs": "15",
        "hidden_size": "16",
        "scheduler": "cosine",
        "learning_rate": "0.02",
        "targets": "posterior_mean",
        "memory_s": "0.01",
    }
    state = run(small(**SMALL_RECORDINGS | given))
    errors = [report.val_mse for report in state.progress.history]
    assert errors[0] is not None
    assert errors[-1] is not None
    assert errors[-1] < 0.2 * errors[0]


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_chrono_initialization_gives_memories_from_one_sample_to_the_longest(cell: str) -> None:
    """With zero weights a hidden feature decays by its forget or update gate, which gives its memory."""
    network = fresh_state(small(**SMALL_RECORDINGS, cell=cell, hidden_size="256", chrono_t_max="400")).network
    recurrent = network.recurrent
    with torch.no_grad():
        for name, parameter in recurrent.named_parameters():
            if name.startswith("weight"):
                parameter.zero_()
            elif name.startswith("bias"):
                parameter.view(-1, 256)[2] = 0  # the new content
        ones = torch.ones(recurrent.num_layers, 1, 256)
        _, after = recurrent(torch.zeros(1, 1, 1), (ones, ones) if cell == "lstm" else ones)
        memory = (1 / (1 - (after[1] if cell == "lstm" else after)) - 1).flatten(1).log()
    for layer in memory / torch.tensor(400.0).log():  # uniform from 0 to 1
        assert layer.min() > -1e-3
        assert layer.max() < 1 + 1e-3
        assert layer.mean() == pytest.approx(1 / 2, abs=0.08)
        assert layer.std() == pytest.approx(12**-0.5, abs=0.04)
