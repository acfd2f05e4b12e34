"""Each problem is reported, in a real training where possible, and healthy trainings have no finding."""

from __future__ import annotations

import re
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from freqfilter.config import Params, resolve
from freqfilter.data import npz
from freqfilter.data.splits import Splits
from freqfilter.data.windows import TensorWindows
from freqfilter.evaluation import monitor
from freqfilter.evaluation.monitor import Monitor, check_settings, frozen_weights, slow_epoch, unusual_power
from freqfilter.training.loop import train
from freqfilter.training.reports import EpochReport
from tests.conftest import COARSEST, SMALL, SMALL_RECORDINGS, fresh_state, many

# Two distant components: learned within seconds.
EASY = {"frequencies_hz": "[3, 40]", "hidden_size": "32", "learning_rate": "0.01", "batch_size": "64", "epochs": "5"}
OVERFITTING = EASY | {"noise": "fixed", "noise_std": "2", "epochs": "25", "hidden_size": "64"}


MUON_AND_COSINE = {"optimizer": "muon", "scheduler": "cosine", "windows_per_epoch": "2000"}


def small(**overrides: str) -> Params:
    return resolve(SMALL | overrides)


def findings(
    params: Params, splits: Splits | None = None, *, holdout_every: int = 1, until: str | None = None
) -> dict[str, str]:
    """Train with a monitor; return the findings by name.

    Args:
        params: Parameters of the training.
        splits: Its data; None: that of the parameters.
        holdout_every: Epochs between holdout evaluations.
        until: Name of a finding that ends the training.
    """
    splits = splits or Splits.from_params(params)
    state = fresh_state(params)
    training_monitor, found = Monitor(state, splits, params), list(check_settings(params))
    steps = train(
        state,
        training_windows=splits.epoch,
        validation=splits.validation,
        holdout=splits.holdout,
        holdout_every=holdout_every,
        params=params.training,
    )
    with closing(steps):
        for report in steps:
            if isinstance(report, EpochReport):
                found += training_monitor.check(report)
                if until in [finding.name for finding in found]:
                    break
    names = [finding.name for finding in found]
    assert len(names) == len(set(names))  # each is reported once
    return {finding.name: finding.line for finding in found}


@pytest.mark.soak
@pytest.mark.parametrize("seed", [str(1 + number) for number in range(many(1, 10))])
@pytest.mark.parametrize(
    "overrides",
    [{}, {"loss": "snr"}, {"loss": "mae", "precision": COARSEST}, {"dropout": "0.2"}, MUON_AND_COSINE],
)
def test_a_healthy_run_has_no_finding(seed: str, overrides: dict[str, str]) -> None:
    assert findings(small(**EASY, **overrides, seed=seed)) == {}


@pytest.mark.parametrize(
    "overrides",
    [
        {"learning_rate": "0.0005", "epochs": "60"},  # slow start
        {"epochs": "80", "early_stopping_patience": "0", "scheduler_patience": "0"},  # converged
        {"epochs": "9", "validate_every": "2"},
        {"epochs": "9", "noise": "fixed", "noise_std": "0.05"},
    ],
)
def test_slow_converged_and_rarely_validated_runs_have_no_finding(overrides: dict[str, str]) -> None:
    assert findings(small(**EASY | overrides)) == {}


@pytest.mark.parametrize(
    ("factors", "overrides", "arrays"),
    [
        ({}, {}, ""),
        ({"X": 2}, {}, "X_train X_val X_test"),  # the sum of two components in place of their mean
        ({"X": 8000, "y": 8000}, {}, "X_train y_train X_val y_val X_test y_test"),
        ({"X": 8000, "y": 8000}, {"amplitudes": "8000", "noise_std": "800"}, ""),
        ({"y_val": 0.1}, {}, "y_val"),
    ],
)
def test_a_data_file_of_another_power_than_its_parameters_is_reported(
    factors: dict[str, float], overrides: dict[str, str], arrays: str, tmp_path: Path
) -> None:
    signals = {"frequencies_hz": "[30, 40]", "n_samples": "400", "duration_s": "0.4", "window_length": "20"}
    made = Splits.from_params(resolve(signals | {"noise": "fixed"}))
    npz.write(tmp_path / "data.npz", {"train": made.train, "val": made.validation, "test": made.test})
    stored = dict(np.load(tmp_path / "data.npz"))
    for name in stored:
        stored[name][..., 0] *= factors.get(name, factors.get(name[0], 1))
    np.savez(tmp_path / "data.npz", **stored)
    params = resolve(signals | overrides | {"data_file": str(tmp_path / "data.npz")})
    found = unusual_power(Splits.from_params(params), params)
    assert bool(found) == bool(arrays)
    if found:
        named = re.findall(r"([Xy]_\w+) \S+ \(expected", found.line)
        assert (found.name, named) == ("power", arrays.split())


def test_a_small_gradient_norm_in_a_healthy_run_is_no_finding() -> None:
    assert findings(small(**EASY, gradient_clip_norm="0.01")) == {}


@pytest.mark.parametrize(
    ("overrides", "remedy"),
    [
        ({"learning_rate": "1e-12"}, "try learning_rate=0.01 (now 1e-12)"),
        ({"gradient_clip_norm": "1e-20"}, "try gradient_clip_norm=1 (now 1e-20)"),
    ],
)
def test_frozen_weights_are_reported(overrides: dict[str, str], remedy: str) -> None:
    assert findings(small(**EASY | overrides))["frozen_weights"].endswith(remedy)


def test_steps_skipped_by_the_gradient_scaler_are_reported() -> None:
    report = EpochReport(1, train_loss=1.0, gradient_norm=0.0, learning_rate=2e-3, seconds=1.0)
    found = frozen_weights(report, 0.0, small(precision="fp16"))
    assert found
    assert found.line.endswith("try precision=fp32 (now fp16)")


def test_no_learning_is_reported() -> None:
    line = findings(small(**EASY | {"noise_std": "300", "learning_rate": "0.002"}))["no_learning"]
    assert "try learning_rate=0.01 (now 0.002), hidden_size=256 (now 32), " in line


@pytest.mark.parametrize(
    ("overrides", "after"),
    [({"epochs": "2"}, 2), ({"epochs": "9"}, 3), ({"epochs": "60"}, 6), ({"early_stopping_patience": "1"}, 2)],
)
def test_no_learning_is_reported_after_a_while_or_at_the_end(overrides: dict[str, str], after: int) -> None:
    params = small(**EASY | {"noise_std": "300"} | overrides)
    assert f"after {after} epochs" in findings(params, until="no_learning")["no_learning"]


def test_current_values_are_not_suggested() -> None:
    params = small(**EASY | {"noise_std": "300", "epochs": "2", "hidden_size": "256"})
    line = findings(params)["no_learning"]
    assert "hidden_size" not in line
    assert "learning_rate" not in line
    history = [EpochReport(e, 0.1, 1, 1e-3, 1, val_loss=0.3, val_mse=0.3) for e in (1, 2)]
    found = monitor.overfitting(history, small(dropout="0.9", weight_decay="0.1"))
    assert found
    assert found.line.endswith("try hidden_size=4 (now 8)")


def test_the_losses_of_new_and_shorter_recordings_are_no_overfitting() -> None:
    history = [EpochReport(e, 0.1, 1, 1e-3, 1, val_loss=0.3, val_mse=0.3) for e in (1, 2)]
    assert monitor.overfitting(history, small())
    assert monitor.overfitting(history, small(**SMALL_RECORDINGS, loss_weighting="inverse_limit")) is None


def test_overfitting_is_reported_on_validation() -> None:
    params = small(**OVERFITTING)
    line = findings(params, replace(Splits.from_params(params), holdout=None))["overfitting"]
    assert "far below validation loss" in line
    assert line.endswith("try noise=fresh")


def test_overfitting_is_reported_on_the_holdout_if_validation_leaks() -> None:
    params = small(**OVERFITTING, split="random", allow_shared_realizations="true")
    line = findings(params, until="overfitting")["overfitting"]
    assert "far below holdout MSE" in line
    assert line.endswith("try noise=fresh with split=independent")


@pytest.mark.parametrize(("overrides", "holdout_every"), [({}, 3), ({"loss": "mae"}, 1), ({"loss": "snr"}, 2)])
def test_overfitting_is_reported_for_every_loss_and_holdout_interval(
    overrides: dict[str, str], holdout_every: int
) -> None:
    params = small(**OVERFITTING, split="random", allow_shared_realizations="true", **overrides)
    assert "far below holdout MSE" in findings(params, holdout_every=holdout_every, until="overfitting")["overfitting"]


def test_overfitting_is_reported_in_decibels() -> None:
    assert "overfitting" in findings(small(**OVERFITTING, loss="snr"), until="overfitting")


def test_fresh_noise_is_not_suggested_for_a_data_file() -> None:
    params = small(**OVERFITTING | {"noise": "fixed"})
    splits = Splits.from_params(params)
    of_file = params.model_copy(update={"data": params.data.model_copy(update={"data_file": "mine.npz"})})
    line = findings(of_file, replace(splits, holdout=None), until="overfitting")["overfitting"]
    assert line.endswith("try dropout=0.3 (now 0) or weight_decay=0.0001 (now 0) or hidden_size=32 (now 64)")


class Slow(TensorWindows):
    """Windows with a slow ``batch``."""

    def batch(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        time.sleep(0.2)
        return super().batch(positions)


def test_a_slow_epoch_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(monitor, "MIN_SLOWDOWN_S", 1.0)
    params = small(epochs="3", hidden_size="2", device="cpu")
    splits = Splits.from_params(params)
    fast = splits.epoch(1)
    slow = Slow(*fast.batch(torch.arange(splits.n_epoch)))
    line = findings(params, replace(splits, epoch=lambda epoch: slow if epoch == 3 else fast))["slow_epoch"]
    assert line.startswith("epoch 3 took")


@pytest.mark.parametrize(
    ("seconds", "threads", "overrides", "remedy"),
    [
        ((10, 100), 2, {"threads": "2"}, "try threads=1 (now 2)"),
        ((10, 100), 2, {"threads": "0"}, "try OMP_NUM_THREADS=1 in the environment (now 2)"),
        ((10, 100), 1, {}, "stop them"),
        ((10, 16), 2, {}, None),
        ((1, 3), 2, {}, None),
        ((100,), 2, {}, None),
        ((100, 10), 2, {}, None),
    ],
)
def test_a_slow_epoch_has_a_remedy(
    seconds: tuple[float, ...], threads: int, overrides: dict[str, str], remedy: str | None
) -> None:
    history = [
        EpochReport(number, train_loss=1.0, gradient_norm=1.0, learning_rate=1e-3, seconds=taken)
        for number, taken in enumerate(seconds, start=1)
    ]
    found = slow_epoch(history, small(**overrides), threads=threads)
    assert (found is None) == (remedy is None)
    if found and remedy:
        assert remedy in found.line


def test_a_nondeterministic_setting_is_reported() -> None:
    (found,) = check_settings(small(deterministic="false"))
    assert found.line.startswith("deterministic=false")
    assert found.line.endswith("set deterministic=true")
