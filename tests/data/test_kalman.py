"""The Kalman filter and smoother: known limits, a second program, and laws of conditional expectations."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from statsmodels.tsa.statespace.kalman_smoother import KalmanSmoother

from freqfilter.data.kalman import KalmanFilter
from freqfilter.data.recordings import RecordingModel

MODEL = RecordingModel((1.0, 3.0, 5.0, 7.0), (1.0,) * 4, True, (10.0,) * 4, 1000.0, 0.1)
# Least mean squared error after so many samples, by statsmodels' KalmanFilter; see test_a_second_program_agrees.
TABLE = {
    None: {50: 0.2960, 200: 0.1290, 500: 0.00064, 1000: 0.00032, 2000: 0.00016},
    100.0: {50: 0.2963, 200: 0.1305, 500: 0.00262, 1000: 0.00258, 2000: 0.00258},
    10.0: {50: 0.2991, 200: 0.1424, 500: 0.0181, 1000: 0.0181, 2000: 0.0181},
    1.0: {50: 0.3180, 200: 0.2064, 500: 0.1318, 1000: 0.1318, 2000: 0.1318},
}


def with_memory(memory_s: float | None) -> RecordingModel:
    return replace(MODEL, memory_s=None if memory_s is None else (memory_s,) * 4)


@pytest.mark.parametrize("memory_s", TABLE)
def test_the_limit_after_so_many_samples_is_known(memory_s: float | None) -> None:
    variances = KalmanFilter(with_memory(memory_s)).variances(2000).mean(axis=1)
    for samples, mse in TABLE[memory_s].items():
        assert variances[samples - 1] == pytest.approx(mse, abs=6e-5 if mse > 0.01 else 6e-6)


def statsmodels_smoother(model: RecordingModel, mixture: NDArray[np.float64]) -> KalmanSmoother:
    """The same model in statsmodels, with matrices of its own: a sum of damped and undamped rotations."""
    n = len(model.frequencies_hz)
    smoother = KalmanSmoother(k_endog=1, k_states=2 * n, k_posdef=2 * n)
    transition, driving, prior = np.zeros((2 * n, 2 * n)), np.zeros(2 * n), np.zeros(2 * n)
    for k in range(n):
        angle = 2 * np.pi * model.frequencies_hz[k] / model.sample_rate_hz
        damping = 1.0 if model.memory_s is None else np.exp(-1 / (model.sample_rate_hz * model.memory_s[k]))
        pair = slice(2 * k, 2 * k + 2)
        transition[pair, pair] = damping * np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
        prior[pair] = model.amplitudes[k] ** 2 / 2
        driving[pair] = (1 - damping**2) * prior[pair]
    smoother.bind(mixture[:, None].copy())
    smoother["design"] = np.tile([1 / n, 0.0], n)[None]
    smoother["transition"] = transition
    smoother["selection"] = np.eye(2 * n)
    smoother["state_cov"] = np.diag(driving)
    smoother["obs_cov"] = np.array([[model.noise_std**2]])
    smoother.initialize_known(np.zeros(2 * n), np.diag(prior))
    return smoother


@pytest.mark.parametrize(
    "model",
    [
        with_memory(1.0),
        with_memory(None),
        RecordingModel((2.0, 6.5), (0.5, 2.0), True, (0.3, 40.0), 200.0, 0.3),
        RecordingModel((4.0,), (1.0,), True, (2.0,), 100.0, 1.0),
    ],
)
def test_a_second_program_agrees(model: RecordingModel) -> None:
    mixtures, _ = model.draw(np.random.default_rng(1), 2, 300)
    kalman = KalmanFilter(model)
    smoothed = kalman.smooth(mixtures)
    for mixture, filtered, means in zip(mixtures, kalman.filter(mixtures), smoothed.means, strict=True):
        result = statsmodels_smoother(model, mixture).smooth()
        np.testing.assert_allclose(filtered, result.filtered_state[::2].T, atol=1e-8)
        np.testing.assert_allclose(means, result.smoothed_state[::2].T, atol=1e-8)
    rows = np.arange(0, 2 * model.n_components, 2)
    np.testing.assert_allclose(kalman.variances(300), result.filtered_state_cov[rows, rows].T, atol=1e-9)
    np.testing.assert_allclose(smoothed.variances, result.smoothed_state_cov[rows, rows].T, atol=1e-9)


@pytest.mark.parametrize("memory_s", [0.5, None])
def test_the_stated_errors_are_those_of_drawn_recordings(memory_s: float | None) -> None:
    model = replace(MODEL, memory_s=None if memory_s is None else (memory_s,) * 4, sample_rate_hz=100.0)
    mixtures, components = model.draw(np.random.default_rng(2), 400, 120)
    kalman = KalmanFilter(model)
    smoothed = kalman.smooth(mixtures)
    for estimates, variances in (
        (kalman.filter(mixtures), kalman.variances(120)),
        (smoothed.means, smoothed.variances),
    ):
        normalized = ((estimates - components) ** 2 / variances).mean(axis=2)
        assert normalized.mean() == pytest.approx(1, abs=4 * normalized.mean(axis=1).std() / 20)


def test_more_samples_and_the_whole_recording_never_increase_the_error() -> None:
    assert (np.diff(KalmanFilter(with_memory(None)).variances(700).mean(axis=1)) < 1e-12).all()
    for memory_s in (1.0, None):
        kalman = KalmanFilter(with_memory(memory_s))
        causal, smoothed = kalman.variances(700), kalman.smooth(np.zeros((0, 700))).variances
        assert (smoothed <= causal + 1e-12).all()
        np.testing.assert_allclose(smoothed[-1], causal[-1])
        longer = kalman.smooth(np.zeros((0, 900))).variances[:700]
        assert (longer <= smoothed + 1e-12).all()


def test_permuted_components_permute_the_answer() -> None:
    order = [2, 0, 3, 1]
    model = RecordingModel((1.0, 3.0, 5.0, 7.0), (1.0, 2.0, 0.5, 1.5), True, (1.0, 10.0, 3.0, 5.0), 1000.0, 0.1)
    permuted = replace(
        model,
        **{
            name: tuple(getattr(model, name)[k] for k in order) for name in ("frequencies_hz", "amplitudes", "memory_s")
        },
    )
    mixtures, _ = model.draw(np.random.default_rng(3), 2, 200)
    one, other = KalmanFilter(model), KalmanFilter(permuted)
    np.testing.assert_allclose(one.filter(mixtures)[..., order], other.filter(mixtures), atol=1e-9)
    np.testing.assert_allclose(one.smooth(mixtures).means[..., order], other.smooth(mixtures).means, atol=1e-9)


def test_of_fixed_amplitudes_it_is_the_best_linear_filter() -> None:
    model = replace(MODEL, rayleigh=False, memory_s=None, sample_rate_hz=50.0)
    mixtures, components = model.draw(np.random.default_rng(4), 20_000, 40)
    kalman = KalmanFilter(model)
    errors = ((kalman.filter(mixtures) - components)[:, -1] ** 2).mean(axis=0)
    np.testing.assert_allclose(errors, kalman.variances(40)[-1], rtol=0.1)
    weights, *_ = np.linalg.lstsq(mixtures, components[:, -1], rcond=None)
    fitted = ((mixtures @ weights - components[:, -1]) ** 2).mean(axis=0)
    np.testing.assert_allclose(errors, fitted, rtol=0.02)


def test_without_noise_few_samples_determine_the_components() -> None:
    model = replace(MODEL, memory_s=None, sample_rate_hz=50.0, noise_std=0.0)
    mixtures, components = model.draw(np.random.default_rng(5), 3, 60)
    np.testing.assert_allclose(KalmanFilter(model).filter(mixtures)[:, -1], components[:, -1], atol=1e-4)
    assert (KalmanFilter(model).variances(60)[-1] < 1e-6).all()


def test_the_limit_of_many_components_and_samples_is_finite_and_positive() -> None:
    model = RecordingModel(tuple(np.arange(1.0, 21.0)), (1.0,) * 20, True, None, 1000.0, 0.1)
    variances = KalmanFilter(model).smooth(np.zeros((0, 1500))).variances
    assert np.isfinite(variances).all()
    assert (variances > 0).all()
