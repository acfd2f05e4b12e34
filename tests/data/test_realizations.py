"""A signal above ``MAX_SAMPLES_IN_MEMORY`` gives the same windows as one that is kept in memory."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from freqfilter.config import resolve
from freqfilter.data import signal_model, splits
from freqfilter.data.signal_model import (
    SignalModel,
    evenly_spaced_windows,
    first_windows,
    noise_realization,
    realization_windows,
)
from freqfilter.data.splits import Splits
from freqfilter.data.windows import WindowDataset
from freqfilter.errors import UserError

CHOSEN = {"windows_per_epoch": "300", "validation_windows": "200", "test_windows": "120", "holdout_windows": "80"}


@pytest.fixture
def small_memory_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (signal_model, splits):
        monkeypatch.setattr(module, "MAX_SAMPLES_IN_MEMORY", 1000)


def all_windows(windows: WindowDataset) -> tuple[torch.Tensor, torch.Tensor]:
    return windows.batch(torch.arange(len(windows)))


def test_segments_of_a_long_signal_give_the_same_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    in_memory = Splits.from_params(resolve(CHOSEN))
    with monkeypatch.context() as patch:
        for module in (signal_model, splits):
            patch.setattr(module, "MAX_SAMPLES_IN_MEMORY", 1000)
        parts = Splits.from_params(resolve(CHOSEN))
        again = Splits.from_params(resolve(CHOSEN))
    assert parts.holdout is not None
    assert len(parts.holdout) == 80
    pairs = [
        (in_memory.validation, parts.validation),
        (in_memory.test, parts.test),
        (in_memory.epoch(1), parts.epoch(1)),
        (in_memory.epoch(7), again.epoch(7)),
    ]
    for whole, some in pairs:
        for expected, found in zip(all_windows(whole), all_windows(some), strict=True):
            torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_several_realizations_are_cut_at_the_same_starts(small_memory_limit: None) -> None:
    model = SignalModel.from_params(resolve().signals)
    found = evenly_spaced_windows(model, 50, 240, 5, 6)
    assert len(found) == 240
    _, start, of_realization = found.decode(torch.arange(240))
    whole = realization_windows(model, 50, 5, 6)
    numbers = 4 * torch.round(start * (9950 / 29)).long() + torch.arange(4).repeat(60) + of_realization * 4 * 9951
    for expected, part in zip(whole.batch(numbers), all_windows(found), strict=True):
        torch.testing.assert_close(part, expected, rtol=0, atol=0)


def test_posterior_mean_targets_have_the_error_of_the_limit(small_memory_limit: None) -> None:
    """The mean over segments of the epoch has the error of the MMSE estimator."""
    params = resolve(CHOSEN | {"windows_per_epoch": "8000"})
    windows = Splits.from_params(params).epoch(1)
    batch = windows.training_batch(torch.arange(1024))
    error = float((batch.targets - batch.clean).square().mean())
    assert 0.8 * 0.207 < error < 1.3 * 0.207
    assert replace(windows, posterior_mean=None).training_batch(torch.arange(8)).targets.shape == (8, 50, 1)


def test_noise_at_some_samples_equals_that_of_the_whole_realization(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signal_model, "DRAW_CHUNK", 101)
    samples = np.array([[0, 100, 101], [999, 500, 202]])
    whole = np.random.RandomState(7).standard_normal(1000)
    np.testing.assert_array_equal(noise_realization(7, samples), whole[samples])


def test_first_windows_are_those_of_the_whole_realization() -> None:
    model = SignalModel.from_params(resolve().signals)
    whole, first = realization_windows(model, 50, 2), first_windows(model, 50, 300, 2)
    assert first.n_starts == 251
    for expected, found in zip(whole.batch(torch.arange(251 * 4)), all_windows(first), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert first_windows(model, 50, 10**6, 2).n_starts == whole.n_starts


@pytest.mark.parametrize("name", ["windows_per_epoch", "validation_windows", "test_windows"])
def test_all_windows_of_a_long_signal_are_refused(name: str, small_memory_limit: None) -> None:
    with pytest.raises(UserError, match=f"{name}=null: .* add {name}=40000"):
        Splits.from_params(resolve(CHOSEN | {name: "null"}))
