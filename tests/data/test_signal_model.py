from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.model_selection import train_test_split

from freqfilter.config import Params, resolve
from freqfilter.data.signal_model import SignalModel, noise_realization, random_stream, torch_seed
from freqfilter.data.splits import Splits
from freqfilter.data.windows import SlidingWindows, WindowDataset, evenly_spaced
from freqfilter.evaluation.baselines import Mean, Random, TargetMoments, zero
from tests.conftest import SMALL


def all_windows(windows: WindowDataset) -> tuple[np.ndarray, np.ndarray]:
    inputs, targets = windows.batch(torch.arange(len(windows)))
    return inputs.numpy(), targets.numpy()


def slow_windows(noise_seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Windows of the original script, by a plain loop."""
    time_s = np.linspace(0, 10, 10_000)
    components = [
        np.sin(2 * np.pi * f * time_s + np.deg2rad(theta))
        for f, theta in zip([1, 3, 5, 7], [0, 45, 90, 135], strict=True)
    ]
    mixture = sum(components) / 4 + np.random.RandomState(noise_seed).normal(0, 0.1, 10_000)
    inputs, targets = [], []
    for start in range(10_000 - 50 + 1):
        for wanted in range(4):
            window = np.zeros((50, 5))
            window[:, 0] = mixture[start : start + 50]
            window[:, 1 + wanted] = 1
            inputs.append(window)
            targets.append(components[wanted][start : start + 50, None])
    return np.array(inputs, dtype=np.float32), np.array(targets, dtype=np.float32)


@pytest.fixture(scope="module")
def original() -> tuple[Params, Splits]:
    params = resolve(recipe="original")
    return params, Splits.from_params(params)


def test_the_original_split_is_that_of_scikit_learn(original: tuple[Params, Splits]) -> None:
    _, splits = original
    inputs, targets = slow_windows(1)
    x_train, x_val, y_train, y_val = train_test_split(inputs, targets, test_size=0.1, random_state=42)
    assert (x_train.shape, x_val.shape) == ((35_823, 50, 5), (3_981, 50, 5))
    for windows, expected in ((splits.epoch(1), (x_train, y_train)), (splits.validation, (x_val, y_val))):
        found = all_windows(windows)
        assert found[0].dtype == found[1].dtype == np.float32
        np.testing.assert_allclose(found[0], expected[0], rtol=0, atol=1e-7)
        np.testing.assert_allclose(found[1], expected[1], rtol=0, atol=1e-7)


def test_the_test_set_is_all_of_realization_2(original: tuple[Params, Splits]) -> None:
    found, expected = all_windows(original[1].test), slow_windows(2)
    assert found[0].shape == (39_804, 50, 5)
    np.testing.assert_allclose(found[0], expected[0], rtol=0, atol=1e-7)
    np.testing.assert_allclose(found[1], expected[1], rtol=0, atol=1e-7)


def test_windows_are_views_until_a_batch_needs_them(original: tuple[Params, Splits]) -> None:
    n_numbers = sum(tensor.numel() for tensor in original[1].test.tensors())
    assert n_numbers == 10_000 * (1 + 4)


def test_permuting_components_permutes_the_windows() -> None:
    straight = Splits.from_params(resolve({"frequencies_hz": "[1, 3]", "phases_deg": "[10, 20]"})).test
    swapped = Splits.from_params(resolve({"frequencies_hz": "[3, 1]", "phases_deg": "[20, 10]"})).test
    (x, y), (x_swapped, y_swapped) = (windows.batch(torch.arange(2)) for windows in (straight, swapped))
    torch.testing.assert_close(x_swapped, x[[1, 0]][..., [0, 2, 1]])
    torch.testing.assert_close(y_swapped, y[[1, 0]])


def test_without_noise_the_mixture_is_the_mean_of_the_components() -> None:
    windows = Splits.from_params(resolve({"noise_std": "0", "amplitudes": "[1, 2, 3, 4]"})).test
    mixtures, components = windows.tensors()
    torch.testing.assert_close(mixtures[0], components.mean(dim=0))
    torch.testing.assert_close(components.abs().amax(dim=1), torch.tensor([1.0, 2.0, 3.0, 4.0]), atol=1e-3, rtol=0)


def test_fresh_noise_differs_from_epoch_to_epoch_and_repeats_from_run_to_run() -> None:
    first, again, other = (Splits.from_params(resolve({"seed": seed})) for seed in ("1", "1", "2"))
    assert first.epoch(3).digest() == again.epoch(3).digest()
    assert len({first.epoch(1).digest(), first.epoch(2).digest(), other.epoch(1).digest()}) == 3


def test_fresh_noise_is_independent_between_windows_with_the_stated_strength() -> None:
    """Neighbouring windows of a realization share all noise samples but one; with fresh noise they share none."""
    splits = Splits.from_params(resolve({"noise_std": "0.3", "windows_per_epoch": "null"}))
    clean = Splits.from_params(resolve({"noise_std": "0"})).test
    for windows, shared in ((splits.epoch(1), 0.0), (splits.test, 1.0)):
        neighbours = [torch.arange(start * 4, 4000, 8) for start in (0, 1)]
        one, other = (windows.batch(n)[0][..., 0] - clean.batch(n)[0][..., 0] for n in neighbours)
        assert float(one.std()) == pytest.approx(0.3, rel=0.05)
        correlation = torch.corrcoef(torch.stack([one[:, 1:].flatten(), other[:, :-1].flatten()]))[0, 1]
        assert float(correlation) == pytest.approx(shared, abs=0.02)


def test_fixed_noise_is_the_same_each_epoch() -> None:
    splits = Splits.from_params(resolve({"noise": "fixed", "windows_per_epoch": "null"}))
    assert splits.epoch(1).digest() == splits.epoch(9).digest() == splits.train.digest()


@pytest.mark.parametrize("noise", ["fresh", "fixed"])
def test_an_epoch_of_a_stated_number_of_windows_draws_them_evenly_from_all(noise: str) -> None:
    """Each of 1,524 windows is drawn with equal probability, and its target is that window's."""
    params = resolve(SMALL | {"noise": noise, "windows_per_epoch": "150000"})
    splits = Splits.from_params(params)
    drawn, again, n_windows = splits.epoch(1), splits.epoch(2), len(splits.train)
    assert len(drawn) == splits.n_epoch == 150_000
    assert isinstance(drawn, SlidingWindows)
    assert isinstance(again, SlidingWindows)
    assert drawn.indices is not None
    assert again.indices is not None
    counts = torch.bincount(drawn.indices, minlength=n_windows)
    assert stats.chisquare(counts.numpy()).pvalue > 1e-3
    positions = torch.arange(0, 150_000, 1000)
    torch.testing.assert_close(drawn.batch(positions)[1], splits.train.batch(drawn.indices[positions])[1])
    assert not torch.equal(again.indices, drawn.indices)
    assert again.digest() == Splits.from_params(params).epoch(2).digest()


def test_an_epoch_draws_no_validation_windows() -> None:
    params = resolve(SMALL | {"windows_per_epoch": "5000"}, recipe="original")
    splits = Splits.from_params(params)
    drawn, held_out = splits.epoch(1), splits.validation
    assert isinstance(drawn, SlidingWindows)
    assert isinstance(held_out, SlidingWindows)
    assert drawn.indices is not None
    assert held_out.indices is not None
    assert not set(drawn.indices.tolist()) & set(held_out.indices.tolist())


def test_independent_validation_shares_no_noise_with_other_data() -> None:
    splits = Splits.from_params(resolve({"validation_realizations": "3", "noise": "fixed"}))
    assert splits.holdout is not None
    mixtures = torch.cat([w.tensors()[0] for w in (splits.train, splits.validation, splits.test, splits.holdout)])
    noise = mixtures - splits.test.tensors()[1].mean(dim=0)
    assert len(noise) == 6
    correlation = torch.corrcoef(noise) - torch.eye(6)
    assert float(correlation.abs().max()) < 0.05


def test_streams_differ_by_name_index_and_seed() -> None:
    draws = {float(random_stream(*key).random()) for key in [(1, "a"), (1, "b"), (2, "a"), (1, "a", 0), (1, "a", 1)]}
    assert len(draws) == 5
    assert torch_seed(1, "a") != torch_seed(1, "b")


def test_noise_is_standard_normal() -> None:
    noise = noise_realization(5, np.arange(100_000))
    assert abs(noise.mean()) < 0.02
    assert abs(noise.std() - 1) < 0.02


def test_evenly_spaced_windows_cover_the_signal_with_all_selectors() -> None:
    windows = Splits.from_params(resolve()).test
    assert isinstance(windows, SlidingWindows)
    some = evenly_spaced(windows, 4000)
    assert some.indices is not None
    assert len(some) == 4000
    assert len(set(some.indices.tolist())) == 4000
    starts = some.indices.reshape(-1, 4) // 4
    assert (starts == starts[:, :1]).all()
    assert (int(starts[0, 0]), int(starts[-1, 0])) == (0, windows.n_starts - 1)
    assert set(torch.diff(starts[:, 0]).tolist()) <= {9, 10}
    assert len(evenly_spaced(windows, 10**9)) == len(windows)


def test_the_sample_rate_counts_the_end_point() -> None:
    assert resolve().signals.sample_rate_hz == pytest.approx(999.9)
    assert SignalModel.from_params(resolve().signals).clean().shape == (4, 10_000)


def test_the_mean_baseline_is_the_best_constant_for_each_component() -> None:
    params = resolve({"frequencies_hz": "[1, 3]", "duration_s": "0.4", "n_samples": "400"})
    windows = Splits.from_params(params).test
    inputs, targets = windows.batch(torch.arange(len(windows)))
    estimates = Mean(TargetMoments.from_windows(windows))(inputs)
    assert estimates.shape == targets.shape == zero(inputs).shape
    for component in range(2):
        chosen = inputs[:, 0, 1 + component] == 1
        torch.testing.assert_close(
            estimates[chosen], targets[chosen].mean().expand_as(estimates[chosen]), atol=1e-5, rtol=0
        )


def test_the_random_baseline_has_the_targets_spread_and_twice_its_error() -> None:
    windows = Splits.from_params(resolve()).test
    moments = TargetMoments.from_windows(windows)
    inputs, targets = windows.batch(torch.arange(len(windows)))
    drawn = Random(moments, torch.Generator().manual_seed(1))(inputs)
    assert drawn.std() == pytest.approx(float(targets.std()), rel=0.01)
    assert float((drawn - targets).square().mean()) == pytest.approx(2 * float(targets.var()), rel=0.01)
    again = Random(moments, torch.Generator().manual_seed(1))(inputs)
    assert torch.equal(drawn, again)
