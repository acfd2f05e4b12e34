"""Augmentation changes the training windows of an epoch as specified, and no other data."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from freqfilter.config import Params, resolve
from freqfilter.data import npz
from freqfilter.data.splits import Splits
from freqfilter.data.windows import TensorWindows, WindowDataset
from freqfilter.errors import UserError
from tests.conftest import SMALL

BOTH = {"augment_noise_std": "0.3", "augment_gain_db": "6"}
FIXED = SMALL | {"noise": "fixed"}


@pytest.fixture(params=["signal model", "split=random", "data file"])
def source(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, str]:
    """Parameters for each kind of training windows that can be augmented."""
    if request.param == "signal model":
        return FIXED
    if request.param == "split=random":
        return FIXED | {"split": "random", "allow_shared_realizations": "true"}
    splits = Splits.from_params(resolve(FIXED))
    npz.write(tmp_path / "mine.npz", {"train": splits.train, "val": splits.validation, "test": splits.test})
    return SMALL | {"data_file": str(tmp_path / "mine.npz")}


def all_windows(windows: WindowDataset) -> tuple[Tensor, Tensor]:
    return windows.batch(torch.arange(len(windows)))


def added(params: Params, epoch: int) -> Tensor:
    """Noise that augmentation adds to each mixture of an epoch, (n_windows, n_samples)."""
    splits = Splits.from_params(params)
    (inputs, targets), (plain_inputs, plain_targets) = all_windows(splits.epoch(epoch)), all_windows(splits.train)
    assert torch.equal(targets, plain_targets)
    assert torch.equal(inputs[..., 1:], plain_inputs[..., 1:])
    return inputs[..., 0] - plain_inputs[..., 0]


def test_noise_has_the_stated_strength_and_is_new_for_each_window_epoch_and_seed(source: dict[str, str]) -> None:
    params = resolve(source | {"augment_noise_std": "0.3"})
    first, second = added(params, 1), added(params, 2)
    other = added(resolve(source | {"augment_noise_std": "0.3", "seed": "43"}), 1)
    for noise in (first, second, other):
        assert float(noise.mean()) == pytest.approx(0, abs=4 * 0.3 / noise.numel() ** 0.5)
        assert float(noise.std()) == pytest.approx(0.3, rel=4 / (2 * noise.numel()) ** 0.5)
    neighbours = first[:-1, 1:], first[1:, :-1]
    for one, another in ((first, second), (first, other), (first[:-1], first[1:]), neighbours):
        correlation = float(torch.corrcoef(torch.stack([one.flatten(), another.flatten()]))[0, 1])
        assert correlation == pytest.approx(0, abs=4 / one.numel() ** 0.5)
    assert torch.equal(added(params, 1), first)


def test_gain_scales_mixture_and_target_alike_and_is_uniform_in_decibels(source: dict[str, str]) -> None:
    splits = Splits.from_params(resolve(source | {"augment_gain_db": "6"}))
    plain_inputs, plain_targets = all_windows(splits.train)
    gains_db = []
    for epoch in (1, 2):
        inputs, targets = all_windows(splits.epoch(epoch))
        gain = (inputs[..., :1] * plain_inputs[..., :1]).sum(dim=1) / plain_inputs[..., :1].square().sum(dim=1)
        torch.testing.assert_close(inputs[..., :1], gain[:, None] * plain_inputs[..., :1])
        torch.testing.assert_close(targets, gain[:, None] * plain_targets)
        assert torch.equal(inputs[..., 1:], plain_inputs[..., 1:])
        gains_db.append(20 * np.log10(gain.numpy().ravel()))
    for epoch_gains in gains_db:
        assert stats.kstest(epoch_gains, stats.uniform(-6, 12).cdf).pvalue > 1e-3
    assert abs(np.corrcoef(*gains_db)[0, 1]) < 4 / len(gains_db[0]) ** 0.5


def test_the_gain_leaves_the_strength_of_the_noise_as_stated(source: dict[str, str]) -> None:
    splits = Splits.from_params(resolve(source | BOTH))
    only_gain = Splits.from_params(resolve(source | {"augment_gain_db": "6"}))
    (inputs, targets), (scaled, scaled_targets) = all_windows(splits.epoch(1)), all_windows(only_gain.epoch(1))
    assert torch.equal(targets, scaled_targets)
    noise = inputs[..., 0] - scaled[..., 0]
    loud = scaled[..., 0].square().mean(dim=1) > scaled[..., 0].square().mean()
    for subset in (noise[loud], noise[~loud]):
        assert float(subset.std()) == pytest.approx(0.3, rel=4 / (2 * subset.numel()) ** 0.5)


def test_without_augmentation_an_epoch_is_the_training_set(source: dict[str, str]) -> None:
    splits = Splits.from_params(resolve(source | {"augment_noise_std": "0", "augment_gain_db": "0"}))
    assert splits.epoch(1) is splits.train


def test_augmentation_changes_only_the_training_windows(source: dict[str, str]) -> None:
    plain, splits = Splits.from_params(resolve(source)), Splits.from_params(resolve(source | BOTH))
    assert splits.digests == plain.digests
    assert splits.n_epoch == plain.n_epoch
    assert splits.epoch(1).digest() not in (splits.train.digest(), splits.epoch(2).digest())
    assert splits.epoch(1).digest() == Splits.from_params(resolve(source | BOTH)).epoch(1).digest()
    for windows, expected in ((splits.validation, plain.validation), (splits.test, plain.test)):
        assert all(map(torch.equal, all_windows(windows), all_windows(expected)))


def test_a_window_that_is_drawn_twice_in_an_epoch_is_augmented_twice(source: dict[str, str]) -> None:
    params = resolve(source | BOTH | {"windows_per_epoch": "4000"})
    drawn = Splits.from_params(params).epoch(1)
    inputs, _ = all_windows(drawn)
    assert len(inputs) == 4000 > len(Splits.from_params(params).train)
    assert len(torch.unique(inputs[:, 0, 0])) > 0.99 * 4000


def test_a_subset_keeps_the_augmentation_of_its_windows(source: dict[str, str]) -> None:
    windows = Splits.from_params(resolve(source | BOTH)).epoch(3)
    positions = torch.tensor([7, 3, 7, 100])
    batch = windows.to(torch.device("cpu")).subset(positions).training_batch(torch.arange(4))
    inputs, targets = windows.batch(positions)
    assert torch.equal(batch.inputs, inputs)
    assert torch.equal(batch.targets, targets)
    assert torch.equal(batch.clean, targets)


def test_the_windows_of_a_file_are_not_copied_for_an_epoch(tmp_path: Path) -> None:
    stored = Splits.from_params(resolve(FIXED)).train
    parts = dict.fromkeys(npz.PARTS, stored)
    npz.write(tmp_path / "mine.npz", parts)
    splits = Splits.from_params(resolve(SMALL | BOTH | {"data_file": str(tmp_path / "mine.npz")}))
    epoch_windows, train = splits.epoch(1), splits.train
    assert isinstance(epoch_windows, TensorWindows)
    assert isinstance(train, TensorWindows)
    assert epoch_windows.inputs is train.inputs
    assert epoch_windows.targets is train.targets
    assert replace(epoch_windows, noise=None, gain=None).digest() == train.digest()


@pytest.mark.parametrize("name", BOTH)
def test_fresh_noise_and_augmentation_exclude_each_other(name: str) -> None:
    with pytest.raises(UserError, match=rf"^{name}=1 needs noise=fixed or a data_file: .*; remove it$"):
        resolve({name: "1"})
    with pytest.raises(UserError, match=f"^{name}=1 needs"):
        resolve({name: "1", "noise": "fresh", "split": "independent"}, recipe="original")
    assert resolve({name: "1"}, recipe="original").flat()[name] == 1
