"""Checks of the promotion gate on errors that no filter can have, and on estimators that do not repeat them."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from freqfilter.config import resolve
from freqfilter.config.schema import Bounds
from freqfilter.data.signal_model import SignalModel
from freqfilter.evaluation.gate import FALSE_REFUSAL_RATE, check_limit, check_not_below_limit, check_repetition
from freqfilter.evaluation.heldout import REPEATED_SIZES, repeat_estimates, score_realizations
from freqfilter.evaluation.limits import LIMIT, limit_estimators
from freqfilter.evaluation.metrics import OVERALL, Estimator
from freqfilter.evaluation.significance import INTERIM_ANALYSES
from tests.conftest import SEED, SMALL, many

ERRORS = pd.read_csv(Path(__file__).parents[1] / "data" / "gate_errors.csv")  # of two filters and their limit
COMPONENTS = [OVERALL, "1hz", "3hz", "5hz", "7hz"]


def tables(candidate: np.ndarray, limit: np.ndarray) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The same errors for each component."""
    return tuple(pd.DataFrame(dict.fromkeys(COMPONENTS, values)) for values in (candidate, limit))  # type: ignore[return-value]


def test_the_limit_itself_is_not_below_the_limit() -> None:
    params = resolve(SMALL)
    limit = limit_estimators(params)[LIMIT]
    estimators: dict[str, Estimator] = {
        LIMIT: limit,
        "half": lambda inputs: limit(inputs.half().float()),
        "other": limit,
    }
    scored = dict(score_realizations(estimators, params, range(4), device=torch.device("cpu")))
    errors = {name: pd.DataFrame({n: table.loc[name] for n, table in scored.items()}).T for name in estimators}
    for name in ("half", "other"):
        assert check_not_below_limit(errors[name], errors[LIMIT]).passed
    rounded = errors[LIMIT] * (1 - 1e-6)  # below it on each realization
    assert check_not_below_limit(rounded, errors[LIMIT]).passed
    assert SignalModel.from_params(params.signals).noise_std > 0


@pytest.mark.soak
@pytest.mark.parametrize("n", INTERIM_ANALYSES)
@pytest.mark.parametrize("version", ["version_2", "version_5"])
def test_a_filter_whose_expected_error_is_the_limit_is_rarely_refused(version: str, n: int) -> None:
    """With the measured variation of a filter's error, and its expectation lowered to the limit."""
    excess = ERRORS[version] - ERRORS[LIMIT]
    excess -= excess.mean()
    random, n_trials = np.random.default_rng([SEED, n]), many(100, 10_000)
    refused = 0
    for _ in range(n_trials):
        drawn = random.integers(len(ERRORS), size=n)
        limit = ERRORS[LIMIT].to_numpy()[drawn]
        refused += not check_not_below_limit(*tables(limit + excess.to_numpy()[drawn], limit)).passed
    assert refused <= stats.binom.isf(1e-6, n_trials, FALSE_REFUSAL_RATE)


@pytest.mark.parametrize("component", COMPONENTS)
def test_an_error_below_the_limit_is_refused(component: str) -> None:
    limit = ERRORS[LIMIT].to_numpy()[:6]
    candidate, reference = tables(ERRORS["version_2"].to_numpy()[:6], limit)
    assert check_not_below_limit(candidate, reference).passed
    candidate[component] = limit * 0.98 + (ERRORS["version_2"].to_numpy()[:6] - limit - 0.0137 * limit)
    check = check_not_below_limit(candidate, reference)
    assert check.passed is False
    assert check.summary.startswith("impossible: 0.9")
    assert ("the limit, " + component in check.summary) == (component != OVERALL)


def test_the_check_does_not_apply_without_a_limit_or_with_a_limit_of_zero() -> None:
    errors, zero = tables(np.ones(6), np.zeros(6))
    assert check_not_below_limit(errors, None).passed is None
    assert check_not_below_limit(errors, zero).passed
    assert check_not_below_limit(*tables(np.full(1, 0.5), np.ones(1))).passed  # no estimate of the variation


def test_a_filter_that_is_far_from_the_limit_only_after_many_samples_is_refused() -> None:
    """Of a whole recording, nearly all of the limit is the error of its first samples."""
    params = resolve({"n_samples": "2001", "duration_s": "2"}, recipe="stochastic_cycles")
    limit = limit_estimators(params)[LIMIT]

    def worse_later(mixtures: torch.Tensor) -> torch.Tensor:
        estimates = limit(mixtures).clone()
        estimates[:, 1000::2] += 0.05
        return estimates

    estimators: dict[str, Estimator] = {LIMIT: limit, "candidate": worse_later}
    scored = dict(score_realizations(estimators, params, range(3), device=torch.device("cpu")))
    errors = {name: pd.DataFrame({n: table.loc[name] for n, table in scored.items()}).T for name in estimators}
    passed = {check.name: check.passed for check in check_limit(errors["candidate"], errors[LIMIT], Bounds())}
    assert (passed["near the limit"], passed["near the limit, after 1000"]) == (True, False)


def running_sum(inputs: torch.Tensor) -> torch.Tensor:
    return inputs[..., :1].cumsum(dim=1)


def with_index(inputs: torch.Tensor) -> torch.Tensor:
    return running_sum(inputs) + 0.01 * torch.arange(len(inputs))[:, None, None]


def with_size(inputs: torch.Tensor) -> torch.Tensor:
    return running_sum(inputs) + 0.01 * (len(inputs) == 7)


class WithState:
    def __init__(self) -> None:
        self.n_calls = 0

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        self.n_calls += 1
        return running_sum(inputs) + 0.01 * (self.n_calls > len(REPEATED_SIZES))


@pytest.mark.parametrize("n_windows", [1, 2, 70, 1000])
def test_repeated_estimates_of_a_function_of_the_window_are_the_same(n_windows: int) -> None:
    inputs = torch.from_numpy(np.random.default_rng(0).standard_normal((n_windows, 20, 5), dtype=np.float32))
    repetition = repeat_estimates(running_sum, inputs, running_sum(inputs))
    assert check_repetition(repetition).passed
    assert math.isfinite(repetition.milliseconds)


@pytest.mark.parametrize("estimator", [with_index, with_size, WithState()])
def test_estimates_that_depend_on_the_request_are_found(estimator: Estimator) -> None:
    inputs = torch.from_numpy(np.random.default_rng(0).standard_normal((1000, 20, 5), dtype=np.float32))
    assert check_repetition(repeat_estimates(estimator, inputs, estimator(inputs))).passed is False
