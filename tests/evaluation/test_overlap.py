"""The overlap of splits finds shared windows and near copies of them, and none in independent data."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from mlflow import MlflowClient

from freqfilter.config import resolve
from freqfilter.data.splits import Splits
from freqfilter.data.windows import TensorWindows, WindowDataset
from freqfilter.evaluation.overlap import MAX_SHARED, WindowOverlap, measure_overlaps, shared_data
from tests.conftest import SMALL, Typed, all_runs, download, options, say

N_WINDOWS, N_SAMPLES = 400, 50


def windows_of(mixtures: np.ndarray) -> TensorWindows:
    """Windows of these mixtures, (n_windows, n_samples), with one component."""
    mixture = torch.from_numpy(mixtures.astype(np.float32))[..., None]
    return TensorWindows(torch.cat([mixture, torch.ones_like(mixture)], dim=2), mixture)


def splits_of(train: WindowDataset, validation: WindowDataset, test: WindowDataset, *, fresh_noise: bool) -> Splits:
    return Splits(train, lambda _: train, len(train), fresh_noise, validation, test, None, None)


def shared(train: np.ndarray, validation: np.ndarray) -> int:
    """Number of validation windows that share samples with training windows."""
    other = windows_of(np.random.default_rng(9).normal(size=train.shape))
    overlaps = measure_overlaps(splits_of(windows_of(train), windows_of(validation), other, fresh_noise=False))
    assert [overlap.n_shared for overlap in overlaps[1:]] == [0, 0]
    return overlaps[0].n_shared


def noise(seed: int, n_windows: int = N_WINDOWS) -> np.ndarray:
    return np.random.default_rng(seed).normal(scale=0.1, size=(n_windows, N_SAMPLES))


def quantised(values: np.ndarray, steps: float = 64) -> np.ndarray:
    return np.round(values * steps) / steps


@pytest.mark.parametrize("steps", [64, 12])
def test_independent_data_of_few_values_shares_nothing(steps: float) -> None:
    assert shared(quantised(noise(1, 20_000), steps), quantised(noise(2), steps)) == 0


def float16(values: np.ndarray) -> np.ndarray:
    return values.astype(np.float16).astype(np.float64)


@pytest.mark.parametrize(
    "copy",
    [
        lambda x: x,
        lambda x: x * 1.0000002,
        lambda x: 0.5 * x,
        lambda x: x + 1e-6,
        lambda x: x + 3,
        float16,
        lambda x: np.random.default_rng(5).permutation(x),
        lambda x: np.concatenate([x[:, 20:], noise(6)[:, :20]], axis=1),
        lambda x: np.concatenate([noise(6)[:, :20], x[:, :-20]], axis=1),
    ],
)
@pytest.mark.parametrize("rounded", [quantised, lambda x: x])
def test_copies_are_found_despite_gain_offset_rounding_order_and_shift(
    copy: Callable[[np.ndarray], np.ndarray], rounded: Callable[[np.ndarray], np.ndarray]
) -> None:
    train = rounded(noise(1))
    assert shared(train, copy(train)) == N_WINDOWS


def test_a_part_of_the_windows_is_counted_and_a_percent_is_a_diagnosis() -> None:
    train, validation = quantised(noise(1)), quantised(noise(2))
    validation[::10] = train[:40]
    validation[1::5] = train[100:180]
    assert shared(train, validation) == 120
    params = resolve({"split": "random", "noise": "fixed", "allow_shared_realizations": "true", "targets": "clean"})
    found = shared_data([WindowOverlap("validation", "training", 400, 120)], params)
    assert found
    assert found.name == "overlap"
    assert found.line == (
        "the splits share data, 30% of the validation windows with training windows: their errors are not those on new "
        "data; try split=independent"
    )
    assert shared_data([WindowOverlap("test", "validation", 400, int(400 * MAX_SHARED))], params) is None
    assert shared_data([WindowOverlap("test", "validation", 400, int(400 * MAX_SHARED) + 1)], params)


def recording(seed: int) -> np.ndarray:
    """Windows of a 16-bit recording: bursts of noise, silence between them, and a held value."""
    random = np.random.default_rng(seed)
    samples = np.zeros(N_WINDOWS * N_SAMPLES)
    for start in range(0, len(samples), 1000):
        samples[start : start + 300] = random.normal(scale=0.1, size=300)
        samples[start + 300 : start + 310] = 1
    return quantised(samples, 2**15).reshape(N_WINDOWS, N_SAMPLES)


def test_silence_is_not_shared_data() -> None:
    one, other = recording(1), recording(2)
    quiet = windows_of(one), windows_of(other), windows_of(recording(3))
    overlaps = measure_overlaps(splits_of(*quiet, fresh_noise=False))
    assert [overlap.n_shared for overlap in overlaps] == [0, 0, 0]
    assert overlaps[0].n_windows == N_WINDOWS * 6 // 20, "windows of silence cannot be compared"
    assert measure_overlaps(splits_of(quiet[0], quiet[0], quiet[2], fresh_noise=False))[0].share == 1
    silent = windows_of(np.zeros((5, N_SAMPLES)))
    (overlap, *_) = measure_overlaps(splits_of(silent, silent, silent, fresh_noise=False))
    assert (overlap.n_windows, overlap.share) == (0, 0)
    assert "constant or without noise" in overlap.summary()


def stored(windows: WindowDataset) -> TensorWindows:
    return TensorWindows(*windows.batch(torch.arange(len(windows))))


def of_split(**overrides: str) -> WindowOverlap:
    """Overlap of validation and training of a signal model, which is that of the same windows in a file."""
    splits = Splits.from_params(resolve(SMALL | {"noise": "fixed"} | overrides))
    sliding, *others = measure_overlaps(splits)
    in_file = splits_of(stored(splits.train), stored(splits.validation), stored(splits.test), fresh_noise=False)
    assert measure_overlaps(in_file) == [sliding, *others]
    assert [overlap.n_shared for overlap in others] == [0, 0]
    return sliding


def test_validation_on_independent_noise_shares_no_window() -> None:
    assert of_split() == WindowOverlap("validation", "training", 4 * 381, 0)


def test_a_random_split_shares_every_window() -> None:
    assert of_split(split="random", allow_shared_realizations="true").share == 1


@pytest.mark.parametrize("window_length", ["8", "20"])
def test_blocks_with_a_gap_share_no_window_and_use_all_others(window_length: str) -> None:
    assert of_split(split="blocked", window_length=window_length).n_shared == 0
    splits = Splits.from_params(resolve(SMALL | {"noise": "fixed", "split": "blocked", "window_length": window_length}))
    n_starts = 400 - int(window_length) + 1
    n_validation = math.ceil(0.1 * n_starts)
    assert len(splits.validation) == 4 * n_validation
    assert len(splits.train) == splits.n_epoch == 4 * (n_starts - n_validation - (int(window_length) - 1))


def test_fresh_noise_is_not_shared() -> None:
    splits = Splits.from_params(resolve(SMALL))
    in_file = splits_of(stored(splits.epoch(1)), stored(splits.validation), stored(splits.test), fresh_noise=False)
    assert measure_overlaps(splits) == measure_overlaps(in_file)
    assert not any(overlap.n_shared for overlap in measure_overlaps(splits))


def test_realizations_without_noise_share_none_and_with_little_noise_are_told_apart() -> None:
    fixed = SMALL | {"noise": "fixed"}
    without = measure_overlaps(Splits.from_params(resolve(fixed | {"noise_std": "0"})))
    assert {overlap.n_windows for overlap in without} == {0}
    little = measure_overlaps(Splits.from_params(resolve(fixed | {"noise_std": "0.0001"})))
    assert {overlap.n_shared for overlap in little} == {0}
    assert little[0].n_windows > 0


def test_windows_of_a_few_samples_are_not_compared() -> None:
    assert measure_overlaps(Splits.from_params(resolve(SMALL | {"noise": "fixed", "window_length": "7"}))) == []


@pytest.mark.parametrize(
    ("copied", "expected"),
    [
        (("test", "val"), {"test with validation": "100%"}),
        (("val", "train"), {"validation with training": "100%"}),
        (("test", "train"), {"test with training": "100%"}),
    ],
)
def test_equal_parts_of_a_file_are_printed_tagged_and_refused_by_the_gate(
    copied: tuple[str, str],
    expected: dict[str, str],
    typed: Typed,
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    arrays = {}
    for seed, part in enumerate(("train", "val", "test")):
        windows = windows_of(quantised(noise(seed)))
        arrays |= {f"X_{part}": windows.inputs.numpy(), f"y_{part}": windows.targets.numpy()}
    arrays |= {f"{kind}_{copied[0]}": arrays[f"{kind}_{copied[1]}"] for kind in "Xy"}
    np.savez(folder / "data.npz", **arrays)
    given = SMALL | {"epochs": "1", "frequencies_hz": "[5]", "phases_deg": "[0]", "window_length": "50"}
    given |= {"data_file": str(folder / "data.npz")}
    code, stdout, _ = say(["train", *options(given)], capsys, monkeypatch)
    assert code == 0
    lines = [line for line in stdout.splitlines() if line.startswith("overlap: ")]
    assert len(lines) == 3
    for line in lines:
        pair = next((pair for pair in expected if line.endswith(f"{pair.split()[-1]} windows")), "")
        is_expected = bool(pair) and f"{pair.split()[0]} windows (" in line
        assert ("(100%)" if is_expected else "(0%)") in line
    (run,) = all_runs()
    ((pair, share),) = expected.items()
    first, last = pair.split(" with ")
    line = run.data.tags["diagnosis.overlap"]
    assert f"{share} of the {first} windows with {last} windows" in line
    assert line.endswith("store other data in each part of the file")
    assert f"diagnosis: {line}" in stdout
    (version,) = MlflowClient().search_model_versions()
    assert "overlap" in version.tags["diagnoses"].split()
    assert line in download(run, "model_card.md", folder).read_text()
    counted = json.loads(download(run, "evaluation/overlap.json", folder).read_text())
    assert sum(each["n_shared"] for each in counted) == N_WINDOWS
