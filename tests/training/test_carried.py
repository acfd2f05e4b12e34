"""Training on recordings: the state of the network is carried from chunk to chunk."""

from __future__ import annotations

import pytest
import torch

from freqfilter.data.recordings import Recordings
from freqfilter.data.splits import Splits
from tests.conftest import SMALL_RECORDINGS, fresh_state
from tests.training.test_loop import run, small


@pytest.mark.parametrize("overrides", [{"cell": "lstm"}, {"cell": "gru"}, {"dropout": "1e-7"}])
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
