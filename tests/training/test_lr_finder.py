from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import closing

import numpy as np
import pytest
import torch

from freqfilter.config import Params, resolve
from freqfilter.data.splits import Splits
from freqfilter.training.loop import train
from freqfilter.training.lr_finder import Point, range_test, suggest_learning_rate
from freqfilter.training.reports import EpochReport
from freqfilter.training.state import TrainingState
from tests.conftest import SMALL, fresh_state

EASY = SMALL | {"frequencies_hz": "[3, 40]", "hidden_size": "32", "batch_size": "64", "dropout": "0.2"}


def points(state: TrainingState, params: Params, *, highest: float = 1.0, n_steps: int = 100) -> list[Point]:
    splits = Splits.from_params(params)
    return list(range_test(state, splits.epoch, params.training, lowest=1e-6, highest=highest, n_steps=n_steps))


def assert_same(one: object, other: object) -> None:
    """Assert that nested values are equal bit for bit."""
    assert type(one) is type(other)
    if isinstance(one, dict) and isinstance(other, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        assert torch.equal(one, other)
    else:
        assert one == other


@pytest.mark.parametrize("highest", [1.0, 1e30])
def test_a_range_test_does_not_change_training(highest: float) -> None:
    params = resolve(EASY | {"gradient_clip_norm": "0"})
    state = fresh_state(params)
    found = points(state, params, highest=highest)
    assert len(found) > 20
    assert_same(state.state_dict(), fresh_state(params).state_dict())
    splits = Splits.from_params(params)

    def first_epoch_loss(state: TrainingState) -> float:
        steps = train(state, training_windows=splits.epoch, validation=splits.validation, params=params.training)
        with closing(steps):
            return next(report.train_loss for report in steps if isinstance(report, EpochReport))

    assert first_epoch_loss(state) == first_epoch_loss(fresh_state(params))


def test_a_range_test_that_is_closed_early_restores_the_state() -> None:
    params = resolve(EASY)
    state, splits = fresh_state(params), Splits.from_params(params)
    steps = range_test(state, splits.epoch, params.training, lowest=1e-3, highest=1.0, n_steps=50)
    with closing(steps):
        for _ in range(5):
            next(steps)
    assert_same(state.state_dict(), fresh_state(params).state_dict())


def test_rates_are_spaced_evenly_in_their_logarithm_up_to_the_highest() -> None:
    params = resolve(EASY)
    rates = [point.learning_rate for point in points(fresh_state(params), params, highest=0.1, n_steps=40)]
    assert rates[0] == pytest.approx(1e-6)
    assert rates[-1] == pytest.approx(0.1)
    np.testing.assert_allclose(np.diff(np.log(rates)), np.log(1e5) / 39)


def test_a_range_test_ends_when_the_loss_is_not_finite() -> None:
    params = resolve(EASY | {"gradient_clip_norm": "0"})
    found = points(fresh_state(params), params, highest=1e38, n_steps=60)
    assert 10 < len(found) < 60
    assert all(math.isfinite(point.loss) for point in found)


def curve(loss: Callable[[float], float]) -> list[Point]:
    """Points of a range test from 1e-6 to 1 with a loss that is a function of the rate's decimal logarithm."""
    return [Point(10**x, loss(float(x))) for x in np.linspace(-6, 0, 200)]


def test_the_suggestion_lies_where_the_loss_falls_most_steeply() -> None:
    found = suggest_learning_rate(curve(lambda x: 1 - 1 / (1 + math.exp(-8 * (x + 3))) + (1e3 if x > -1 else 0)))
    assert found is not None
    assert -3.1 < math.log10(found) < -2.5  # the smoothed loss lags behind


@pytest.mark.parametrize("loss", [lambda x: 1.0, lambda x: 1 + 10**x, lambda x: 1 + 0.001 * math.sin(40 * x)])
def test_there_is_no_suggestion_if_the_loss_does_not_fall(loss: Callable[[float], float]) -> None:
    assert suggest_learning_rate(curve(loss)) is None


def test_there_is_no_suggestion_without_steps() -> None:
    assert suggest_learning_rate([]) is None


def test_the_suggested_rate_trains_faster_than_a_hundredth_of_it() -> None:
    params = resolve(EASY)
    found = suggest_learning_rate(points(fresh_state(params), params))
    assert found is not None
    splits = Splits.from_params(params)

    def trained_loss(rate: float) -> float:
        slower = resolve(EASY | {"learning_rate": str(rate)})
        state = fresh_state(slower)
        for _ in train(state, training_windows=splits.epoch, validation=splits.validation, params=slower.training):
            pass
        return state.progress.best_loss

    assert trained_loss(found) < 0.7 * trained_loss(found / 100)
