"""The limit: its expectation, standard error, bounds of thinning, cache and command."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from freqfilter.config import resolve
from freqfilter.data.signal_model import SignalModel, realization_windows
from freqfilter.evaluation import limits
from tests import zygote
from tests.conftest import ROOT

SMALL = {"n_samples": "300", "duration_s": "3", "frequencies_hz": "[1, 2.5]", "noise_std": "0.3", "window_length": "10"}


def model(**overrides: str) -> SignalModel:
    return SignalModel.from_params(resolve(SMALL | overrides).signals)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Set an empty cache folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "freqfilter" / "limits"


def test_the_expected_limit_is_the_mean_over_realizations() -> None:
    expected = limits.compute_expected_limit(model(), window_length=10, work=5e7)
    reached = limits.compute_window_limit(model(), realization_windows(model(), 10, *range(1000, 1040)), work=1e12)
    assert reached.n_windows == 40 * 291
    for side in ("causal", "two_sided"):
        one, other = getattr(expected, side), getattr(reached, side)
        assert abs(one.mse - other.mse) < 4 * math.hypot(one.standard_error, other.standard_error)
        np.testing.assert_allclose(one.per_frequency.mean(), one.mse)
        np.testing.assert_allclose(one.per_step.mean(), one.mse)
        assert one.standard_error < 0.05 * one.mse


def test_the_standard_error_matches_repeated_estimates() -> None:
    repeated = [
        limits.compute_expected_limit(model(), window_length=10, seed=seed, work=1e6).causal for seed in range(30)
    ]
    spread = float(np.std([limit.mse for limit in repeated], ddof=1))
    stated = float(np.mean([limit.standard_error for limit in repeated]))
    # Evenly spaced starts can only reduce the spread.
    assert 0.3 * stated < spread < 1.5 * stated


def test_a_longer_or_whole_window_does_not_increase_the_limit() -> None:
    by_length = [limits.compute_expected_limit(model(), window_length=length, work=2e7) for length in (5, 10, 20, 40)]
    for side in ("causal", "two_sided"):
        values = [getattr(estimates, side).mse for estimates in by_length]
        assert values == sorted(values, reverse=True)
    for estimates in by_length:
        assert (estimates.two_sided.per_step <= estimates.causal.per_step + 1e-6).all()
        assert estimates.two_sided.per_step[-1] == pytest.approx(estimates.causal.per_step[-1], rel=1e-4)


@pytest.mark.parametrize("noise_std", ["0.1", "0.3", "1"])
def test_the_excess_bounds_the_effect_of_thinning(noise_std: str, monkeypatch: pytest.MonkeyPatch) -> None:
    exact = limits.compute_expected_limit(model(noise_std=noise_std), window_length=10, work=5e7)
    monkeypatch.setattr(limits, "MAX_STARTS", 100)
    thinned = limits.compute_expected_limit(model(noise_std=noise_std), window_length=10, work=5e7)
    assert thinned.start_step == 3
    for side in ("causal", "two_sided"):
        high, low = getattr(thinned, side).mse, getattr(thinned, side).mse - getattr(thinned, f"{side}_excess")
        tolerance = 4 * math.hypot(getattr(thinned, side).standard_error, getattr(exact, side).standard_error)
        assert low - tolerance <= getattr(exact, side).mse <= high + tolerance


@pytest.mark.parametrize("noise_std", ["0.001", "10"])
def test_a_signal_of_millions_of_samples_takes_bounded_time_and_memory(noise_std: str) -> None:
    long = model(n_samples="1000000", duration_s="1000", noise_std=noise_std)
    expected = limits.compute_expected_limit(long, window_length=10, work=2e6)
    assert expected.start_step == 50
    assert expected.n_windows <= 100
    assert 0 <= expected.two_sided.mse < 1
    assert expected.causal_excess >= 0
    on_windows = limits.compute_window_limit(long, realization_windows(long, 10, 1), work=2e6)
    assert on_windows.n_windows <= 100


def test_a_limit_is_computed_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    windows = realization_windows(model(), 10, 1)
    first = limits.window_limit(model(), windows), limits.expected_limit(model(), window_length=10, work=1e6)
    assert len(list(cache.iterdir())) == 2

    def never(*_: object, **__: object) -> None:
        raise AssertionError("computed again")

    with monkeypatch.context() as patch:
        patch.setattr(limits, "compute_window_limit", never)
        patch.setattr(limits, "compute_expected_limit", never)
        again = limits.window_limit(model(), windows), limits.expected_limit(model(), window_length=10, work=1e6)
        for one, other in zip(first, again, strict=True):
            assert one.causal.mse == other.causal.mse
            np.testing.assert_array_equal(one.two_sided.per_step, other.two_sided.per_step)
        for other_windows in (realization_windows(model(), 10, 2), realization_windows(model(), 11, 1)):
            with pytest.raises(AssertionError, match="computed again"):
                limits.window_limit(model(), other_windows)
        with pytest.raises(AssertionError, match="computed again"):
            limits.expected_limit(model(noise_std="0.2"), window_length=10, work=1e6)
    for file in cache.iterdir():
        file.write_text("{")
    assert limits.window_limit(model(), windows).causal.mse == first[0].causal.mse


@pytest.mark.parametrize("bidirectional", ["false", "true"])
def test_on_some_of_the_validation_windows_the_limit_is_near_that_on_all_and_computed_once(
    bidirectional: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from freqfilter.data.splits import Splits

    given = SMALL | {"bidirectional": bidirectional, "window_length": "20", "n_samples": "3000", "duration_s": "3"}
    validation, limit = {}, {}
    for n_windows in ("null", "1500"):
        params = resolve(given | {"validation_windows": n_windows})
        validation[n_windows] = Splits.from_params(params).validation
        limit[n_windows] = limits.validation_limit(params, validation[n_windows])
    every, some = limit["null"], limit["1500"]
    assert every is not None
    assert some is not None
    assert len(validation["1500"]) == 1500 < len(validation["null"])
    assert len(some.blocks) == len(every.blocks)
    assert some.mse == pytest.approx(every.mse, rel=0.05)
    assert some.mse != every.mse

    def never(*_: object, **__: object) -> None:
        raise AssertionError("computed again")

    monkeypatch.setattr(limits, "compute_window_limit", never)
    assert limits.validation_limit(params, validation["1500"]) == some
    other = resolve(given | {"validation_windows": "1500", "noise_std": "0.2"})
    with pytest.raises(AssertionError, match="computed again"):
        limits.validation_limit(other, Splits.from_params(other).validation)


def test_a_read_only_cache_raises_no_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert limits.expected_limit(model(), window_length=10, work=1e6).causal.mse > 0


def test_a_bidirectional_filter_is_compared_with_the_two_sided_limit() -> None:
    from freqfilter.data.splits import Splits
    from freqfilter.evaluation.baselines import baseline_estimators
    from freqfilter.evaluation.metrics import compare

    params = resolve(SMALL | {"bidirectional": "true"})
    splits = Splits.from_params(params)
    known = baseline_estimators(params, splits)
    assert list(known)[:2] == ["limit", "limit_causal"]
    table = compare(known, splits.test, frequencies_hz=params.signals.frequencies_hz, device=torch.device("cpu")).table
    model_ = SignalModel.from_params(params.signals)
    both = limits.compute_window_limit(model_, realization_windows(model_, 10, 2))
    assert float(table["mse"]["limit", "all"]) == pytest.approx(both.two_sided.mse, rel=1e-5)
    assert float(table["mse"]["limit_causal", "all"]) == pytest.approx(both.causal.mse, rel=1e-5)
    others = set(known) - {"limit"}
    assert all(float(table["mse"][name, "all"]) > both.two_sided.mse for name in others)


@pytest.mark.slow
def test_the_command_prints_a_table_or_json_and_draws(tmp_path: Path) -> None:
    def run(begin: Callable[..., subprocess.CompletedProcess[str]], *arguments: str, **settings: bool) -> str:
        command = [sys.executable, "-m", "freqfilter", "limit", *arguments]
        params = [word for name, value in SMALL.items() for word in (f"--{name}", value)]
        environment = os.environ | {"PATH": "", "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(tmp_path / "cache")}
        return begin([*command, *params], cwd=tmp_path, env=environment, check=True, **settings).stdout

    # A new process, since a fork would use the zygote's Matplotlib font cache.
    printed = json.loads(run(subprocess.run, "--json", "--noise_seed", "2", capture_output=True, text=True))
    assert printed["n_windows"] == 291
    for side in ("causal_mse", "two_sided_mse"):
        assert len(printed[f"{side}_per_frequency"]) == 2
        assert len(printed[f"{side}_per_step"]) == 10
        assert 0 < printed[f"{side}_standard_error"] < printed[side]
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]
    table = run(zygote.run, "--noise_seed", "2")
    assert f"{printed['causal_mse']:.4f}" in table
    assert "2.5hz" in table
    assert (tmp_path / "limit.png").read_bytes().startswith(b"\x89PNG")
