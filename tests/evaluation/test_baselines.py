"""Classical baselines have the known properties of their filters."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import signal

from freqfilter.config import resolve
from freqfilter.data.posterior import MMSEEstimator, WindowMMSE
from freqfilter.data.signal_model import SignalModel, realization_windows
from freqfilter.data.windows import SlidingWindows
from freqfilter.evaluation.baselines import LinearEstimator, band_pass, least_squares, linear_mmse
from freqfilter.evaluation.metrics import score

CPU = torch.device("cpu")
SMALL = {"n_samples": "500", "duration_s": "5", "frequencies_hz": "[1, 3.3]", "noise_std": "0.2"}


def model(**overrides: str) -> SignalModel:
    return SignalModel.from_params(resolve(SMALL | {"window_length": "2"} | overrides).signals)


def mse(estimator: object, windows: SlidingWindows, stated: SignalModel) -> float:
    frequencies_hz = [component.frequency_hz for component in stated.components]
    table = score(estimator, windows, frequencies_hz=frequencies_hz, device=CPU)  # type: ignore[arg-type]
    return float(table.loc["all", "mse"])


def batch_of(stated: SignalModel, n_samples: int, *noise_seeds: int) -> tuple[torch.Tensor, torch.Tensor]:
    windows = realization_windows(stated, n_samples, *noise_seeds)
    return windows.batch(torch.arange(len(windows)))


@pytest.mark.parametrize("causal", [True, False])
def test_linear_mmse_is_the_linear_estimate_with_the_least_error(causal: bool) -> None:
    """A least-squares fit on many noisy windows gives about the same estimates."""
    stated, n_samples = model(), 8
    wiener = linear_mmse(stated, n_samples=n_samples, causal=causal)
    inputs, targets = batch_of(stated, n_samples, *range(200))
    chosen = inputs[:, 0, 1] == 1
    mixtures, target = inputs[chosen][..., 0].double(), targets[chosen][..., 0].double()
    ones = torch.ones(len(mixtures), 1, dtype=torch.float64)
    fitted = torch.zeros_like(target)
    for sample in range(n_samples):
        regressors = torch.cat([mixtures[:, : sample + 1] if causal else mixtures, ones], dim=1)
        fitted[:, sample] = regressors @ torch.linalg.lstsq(regressors, target[:, sample : sample + 1]).solution[:, 0]
    estimates = wiener(inputs[chosen])[..., 0].double()
    assert float((estimates - fitted).square().mean()) < 2e-4
    assert float((estimates - target).square().mean()) == pytest.approx(
        float((fitted - target).square().mean()), rel=2e-3
    )


def test_errors_decrease_with_the_information_used() -> None:
    stated, n_samples = model(), 20
    windows = realization_windows(stated, n_samples, *range(10))
    limit = MMSEEstimator.from_model(stated, n_samples=n_samples)
    two_sided, causal = (mse(WindowMMSE(limit, two_sided=both), windows, stated) for both in (True, False))
    wiener, wiener_causal = (
        mse(linear_mmse(stated, n_samples=n_samples, causal=only), windows, stated) for only in (False, True)
    )
    assert two_sided < wiener < wiener_causal
    assert two_sided < causal < wiener_causal
    assert wiener < mse(least_squares(stated, n_samples=n_samples), windows, stated)
    for zero_phase in (False, True):
        assert wiener < mse(band_pass(stated, n_samples=n_samples, zero_phase=zero_phase), windows, stated)


@pytest.mark.parametrize("estimator", ["linear_mmse", "band_pass"])
def test_causal_estimators_ignore_future_samples_and_the_others_use_them(estimator: str) -> None:
    stated = model()
    if estimator == "linear_mmse":
        causal, whole = (linear_mmse(stated, n_samples=20, causal=only) for only in (True, False))
    else:
        causal, whole = (band_pass(stated, n_samples=20, zero_phase=both) for both in (False, True))
    inputs, _ = batch_of(stated, 20, 1)
    changed = inputs.clone()
    changed[:, 12:, 0] += 1
    torch.testing.assert_close(causal(changed)[:, :12], causal(inputs)[:, :12])
    assert not torch.allclose(whole(changed)[:, :12], whole(inputs)[:, :12], atol=1e-3)


def test_least_squares_is_exact_without_noise_and_badly_conditioned_in_a_short_window() -> None:
    stated = model(noise_std="0")
    inputs, targets = batch_of(stated, 100, 1)
    torch.testing.assert_close(least_squares(stated, n_samples=100)(inputs), targets, atol=1e-4, rtol=0)
    reference = SignalModel.from_params(resolve().signals)
    windows = realization_windows(reference, 50, 2)
    assert mse(least_squares(reference, n_samples=50), windows, reference) > 10  # twenty times worse than zero


def test_a_band_pass_keeps_its_component_and_stops_the_others_once_it_has_settled() -> None:
    stated = model(n_samples="4000", duration_s="40", noise_std="0")
    inputs, targets = batch_of(stated, 3000, 1)
    middle = slice(1200, 1800)
    for component in range(2):
        chosen = (inputs[:, 0, 1 + component] == 1).nonzero()[:20, 0]
        estimates = band_pass(stated, n_samples=3000, zero_phase=True)(inputs[chosen])
        error = (estimates - targets[chosen])[:, middle].square().mean()
        assert float(error) < 0.01 * float(targets[chosen][:, middle].square().mean())


def test_a_linear_estimator_equals_its_filter() -> None:
    sections = signal.butter(2, 0.2, output="sos")
    window = np.random.default_rng(1).normal(size=(3, 30))
    response = signal.sosfilt(sections, np.eye(30), axis=1)[None]
    inputs = torch.from_numpy(np.stack([window, np.ones_like(window)], axis=2))
    estimates = LinearEstimator(response.transpose(0, 2, 1))(inputs)
    np.testing.assert_allclose(estimates[..., 0], signal.sosfilt(sections, window, axis=1), atol=1e-12)


@pytest.mark.parametrize(
    "overrides", [{"frequencies_hz": "4"}, {"noise_std": "0"}, {"frequencies_hz": "[1, 2, 3, 49]"}]
)
@pytest.mark.parametrize("n_samples", [1, 2, 7])
def test_estimates_are_finite_for_every_signal_model(overrides: dict[str, str], n_samples: int) -> None:
    stated = model(**overrides)
    inputs, _ = batch_of(stated, n_samples, 1)
    for estimator in (
        band_pass(stated, n_samples=n_samples, zero_phase=True),
        band_pass(stated, n_samples=n_samples, zero_phase=False),
        least_squares(stated, n_samples=n_samples),
        linear_mmse(stated, n_samples=n_samples, causal=True),
        linear_mmse(stated, n_samples=n_samples, causal=False),
    ):
        estimates = estimator(inputs)
        assert estimates.shape == (*inputs.shape[:2], 1)
        assert torch.isfinite(estimates).all()
