"""A signal that is too long to be held gives the same windows as one that is held as a whole."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from freqfilter.config import resolve
from freqfilter.data import signal_model, splits
from freqfilter.data.signal_model import SignalModel, first_windows, noise_realization, noise_realization_at, realization_windows, evenly_spaced_windows
from freqfilter.data.splits import Splits
from freqfilter.data.windows import WindowDataset
from freqfilter.errors import UserError

CHOSEN = {"windows_per_epoch": "300", "validation_windows": "200", "test_windows": "120", "holdout_windows": "80"}


@pytest.fixture
def nothing_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (signal_model, splits):
        monkeypatch.setattr(module, "MAX_SAMPLES_IN_MEMORY", 1000)


def everything(windows: WindowDataset) -> tuple[torch.Tensor, torch.Tensor]:
    return windows.batch(torch.arange(len(windows)))


def test_a_signal_that_is_not_held_gives_the_same_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    held = Splits.from_params(resolve(CHOSEN))
    with monkeypatch.context() as patch:
        for module in (signal_model, splits):
            patch.setattr(module, "MAX_SAMPLES_IN_MEMORY", 1000)
        parts = Splits.from_params(resolve(CHOSEN))
        again = Splits.from_params(resolve(CHOSEN))
    assert parts.holdout is not None
    assert len(parts.holdout) == 80
    pairs = [
        (held.validation, parts.validation),
        (held.test, parts.test),
        (held.epoch(1), parts.epoch(1)),
        (held.epoch(7), again.epoch(7)),
    ]
    for whole, some in pairs:
        for expected, found in zip(everything(whole), everything(some), strict=True):
            torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_several_realizations_are_cut_at_the_same_starts(nothing_is_held: None) -> None:
    model = SignalModel.from_params(resolve().signals)
    found = evenly_spaced_windows(model, 50, 240, 5, 6)
    assert len(found) == 240
    _, start, of_realization = found.decode(torch.arange(240))
    whole = realization_windows(model, 50, 5, 6)
    numbers = 4 * torch.round(start * (9950 / 29)).long() + torch.arange(4).repeat(60) + of_realization * 4 * 9951
    for expected, part in zip(whole.batch(numbers), everything(found), strict=True):
        torch.testing.assert_close(part, expected, rtol=0, atol=0)


def test_what_training_moves_towards_has_the_errors_of_the_limit(nothing_is_held: None) -> None:
    """The mean over the epoch's other stretches is as near to the clean component as any estimate can be."""
    params = resolve(CHOSEN | {"windows_per_epoch": "8000"})
    windows = Splits.from_params(params).epoch(1)
    lesson = windows.training_batch(torch.arange(1024))
    error = float((lesson.targets - lesson.clean).square().mean())
    assert 0.8 * 0.207 < error < 1.3 * 0.207
    assert replace(windows, posterior_mean=None).training_batch(torch.arange(8)).targets.shape == (8, 50, 1)


def test_noise_at_some_samples_is_that_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signal_model, "DRAW_CHUNK", 101)
    samples = np.array([[0, 100, 101], [999, 500, 202]])
    np.testing.assert_array_equal(noise_realization_at(7, samples), noise_realization(7, 1000)[samples])


def test_the_beginning_of_a_realization_is_its_beginning() -> None:
    model = SignalModel.from_params(resolve().signals)
    whole, beginning = realization_windows(model, 50, 2), first_windows(model, 50, 300, 2)
    assert beginning.n_starts == 251
    for expected, found in zip(whole.batch(torch.arange(251 * 4)), everything(beginning), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert first_windows(model, 50, 10**6, 2).n_starts == whole.n_starts


@pytest.mark.parametrize("name", ["windows_per_epoch", "validation_windows", "test_windows"])
def test_all_windows_of_a_signal_that_is_not_held_are_refused(name: str, nothing_is_held: None) -> None:
    with pytest.raises(UserError, match=f"{name}=null: .* add {name}=40000"):
        Splits.from_params(resolve(CHOSEN | {name: "null"}))
