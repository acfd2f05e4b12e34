"""The classical filters by laws: what is known of them without running them."""

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


def mse(extractor: object, windows: SlidingWindows, stated: SignalModel) -> float:
    frequencies_hz = [component.frequency_hz for component in stated.components]
    table = score(extractor, windows, frequencies_hz=frequencies_hz, device=CPU)  # type: ignore[arg-type]
    return float(table.loc["all", "mse"])


def batch_of(stated: SignalModel, n_samples: int, *noise_seeds: int) -> tuple[torch.Tensor, torch.Tensor]:
    windows = realization_windows(stated, n_samples, *noise_seeds)
    return windows.batch(torch.arange(len(windows)))


@pytest.mark.parametrize("causal", [True, False])
def test_linear_mmse_is_the_linear_estimate_with_the_least_error(causal: bool) -> None:
    """Least squares on very many windows with noise finds the same weights, one row for each sample."""
    stated, n_samples = model(), 8
    wiener = linear_mmse(stated, n_samples=n_samples, causal=causal)
    inputs, targets = batch_of(stated, n_samples, *range(200))
    chosen = inputs[:, 0, 1] == 1
    mixtures, wanted = inputs[chosen][..., 0].double(), targets[chosen][..., 0].double()
    ones = torch.ones(len(mixtures), 1, dtype=torch.float64)
    fitted = torch.zeros_like(wanted)
    for sample in range(n_samples):
        seen = torch.cat([mixtures[:, : sample + 1] if causal else mixtures, ones], dim=1)
        fitted[:, sample] = seen @ torch.linalg.lstsq(seen, wanted[:, sample : sample + 1]).solution[:, 0]
    answers = wiener(inputs[chosen])[..., 0].double()
    assert float((answers - fitted).square().mean()) < 2e-4
    assert float((answers - wanted).square().mean()) == pytest.approx(
        float((fitted - wanted).square().mean()), rel=2e-3
    )


def test_the_order_of_errors_is_that_of_what_each_may_use() -> None:
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


@pytest.mark.parametrize("extractor", ["linear_mmse", "band_pass"])
def test_what_is_called_causal_does_not_look_ahead_and_its_counterpart_does(extractor: str) -> None:
    stated = model()
    if extractor == "linear_mmse":
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
        answers = band_pass(stated, n_samples=3000, zero_phase=True)(inputs[chosen])
        error = (answers - targets[chosen])[:, middle].square().mean()
        assert float(error) < 0.01 * float(targets[chosen][:, middle].square().mean())


def test_a_linear_extractor_is_the_filter_that_it_was_made_of() -> None:
    sections = signal.butter(2, 0.2, output="sos")
    window = np.random.default_rng(1).normal(size=(3, 30))
    response = signal.sosfilt(sections, np.eye(30), axis=1)[None]
    inputs = torch.from_numpy(np.stack([window, np.ones_like(window)], axis=2))
    found = LinearEstimator.from_filter(response)(inputs)
    np.testing.assert_allclose(found[..., 0], signal.sosfilt(sections, window, axis=1), atol=1e-12)


@pytest.mark.parametrize(
    "overrides", [{"frequencies_hz": "4"}, {"noise_std": "0"}, {"frequencies_hz": "[1, 2, 3, 49]"}]
)
@pytest.mark.parametrize("n_samples", [1, 2, 7])
def test_every_signal_model_and_window_gets_finite_answers(overrides: dict[str, str], n_samples: int) -> None:
    stated = model(**overrides)
    inputs, _ = batch_of(stated, n_samples, 1)
    for extractor in (
        band_pass(stated, n_samples=n_samples, zero_phase=True),
        band_pass(stated, n_samples=n_samples, zero_phase=False),
        least_squares(stated, n_samples=n_samples),
        linear_mmse(stated, n_samples=n_samples, causal=True),
        linear_mmse(stated, n_samples=n_samples, causal=False),
    ):
        answers = extractor(inputs)
        assert answers.shape == (*inputs.shape[:2], 1)
        assert torch.isfinite(answers).all()
