"""The MMSE estimator: laws, a case solved by hand, and a comparison with a brute-force computation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from freqfilter.config import resolve
from freqfilter.data import posterior as posterior_module
from freqfilter.data.posterior import MMSEEstimator, WindowMMSE, posterior_mean
from freqfilter.data.signal_model import SignalModel
from freqfilter.data.splits import Splits


def model(**overrides: str) -> SignalModel:
    small = {"n_samples": "60", "duration_s": "0.6", "frequencies_hz": "[3, 7.5]", "noise_std": "0.3"}
    return SignalModel.from_params(resolve(small | {"window_length": "2"} | overrides).signals)


def random_windows(
    signal_model: SignalModel, n_samples: int, *, seed: int = 1, n_windows: int = 200
) -> tuple[NDArray[np.int64], torch.Tensor]:
    """Random starts and the mixtures of their windows."""
    random = np.random.default_rng(seed)
    starts = random.integers(0, signal_model.n_samples - n_samples + 1, size=n_windows)
    clean = signal_model.clean().mean(axis=0)[starts[:, None] + np.arange(n_samples)]
    return starts, torch.from_numpy(clean + signal_model.noise_std * random.normal(size=clean.shape)).float()


def clean_windows(signal_model: SignalModel, starts: NDArray[np.int64], n_samples: int) -> torch.Tensor:
    taken = signal_model.clean()[:, starts[:, None] + np.arange(n_samples)]
    return torch.from_numpy(taken).float().transpose(0, 1)


def brute_force_posterior(signal_model: SignalModel, window: list[float], *, two_sided: bool) -> list[list[float]]:
    """Posterior mean by Bayes' rule: probabilities multiplied, one start at a time."""
    clean = signal_model.clean()
    n_components, n_samples = len(clean), len(window)
    n_starts = signal_model.n_samples - n_samples + 1
    means = [[0.0] * n_samples for _ in range(n_components)]
    for step in range(n_samples):
        seen = n_samples if two_sided else step + 1
        total, sums = 0.0, [0.0] * n_components
        for start in range(n_starts):
            probability = 1.0
            for i in range(seen):
                mixture = sum(clean[k][start + i] for k in range(n_components)) / n_components
                probability *= math.exp(-((window[i] - mixture) ** 2) / (2 * signal_model.noise_std**2))
            total += probability
            for k in range(n_components):
                sums[k] += probability * clean[k][start + step]
        for k in range(n_components):
            means[k][step] = sums[k] / total
    return means


@pytest.mark.parametrize("frequencies_hz", ["[3, 7.5]", "[4]", "[2, 5, 11]"])
def test_the_posterior_mean_equals_a_brute_force_computation(frequencies_hz: str) -> None:
    signal_model = model(frequencies_hz=frequencies_hz)
    _, mixtures = random_windows(signal_model, 6, n_windows=5)
    posterior = MMSEEstimator.from_model(signal_model, n_samples=6).posterior(mixtures)
    for number, window in enumerate(mixtures.tolist()):
        for two_sided, estimates in ((False, posterior.causal), (True, posterior.two_sided)):
            expected = brute_force_posterior(signal_model, window, two_sided=two_sided)
            np.testing.assert_allclose(estimates[number], expected, rtol=0, atol=2e-5)


def test_a_case_that_is_solved_by_hand() -> None:
    """Two starts with values 0 and 1, observed as 0.5, are equally likely: the mean is 0.5, the deviation 0.5."""
    components = torch.tensor([[0.0, 1.0]])
    posterior = MMSEEstimator(components, noise_std=0.3, n_samples=1).posterior(torch.tensor([[0.5], [0.8]]))
    assert posterior.causal[0].item() == pytest.approx(0.5)
    assert posterior.causal_variance[0].item() == pytest.approx(0.25)
    odds = math.exp((0.8**2 - 0.2**2) / (2 * 0.3**2))  # of 1 against 0, given 0.8
    assert posterior.causal[1].item() == pytest.approx(odds / (1 + odds), rel=1e-5)
    assert posterior.causal_variance[1].item() == pytest.approx(odds / (1 + odds) ** 2, rel=1e-3)


@settings(max_examples=25, deadline=None)
@given(
    noise_std=st.sampled_from([0.001, 0.05, 0.5, 10.0]),
    n_samples=st.integers(1, 12),
    seed=st.integers(0, 10**6),
)
def test_laws_of_the_posterior(noise_std: float, n_samples: int, seed: int) -> None:
    signal_model = model(noise_std=str(noise_std))
    _, mixtures = random_windows(signal_model, n_samples, seed=seed, n_windows=20)
    posterior = MMSEEstimator.from_model(signal_model, n_samples=n_samples).posterior(mixtures)
    for name in ("causal", "two_sided"):
        mean, variance = getattr(posterior, name), getattr(posterior, f"{name}_variance")
        assert mean.shape == variance.shape == (20, 2, n_samples)
        assert torch.isfinite(mean).all()
        assert (mean.abs() <= 1 + 1e-5).all()  # the amplitudes are 1
        assert (variance >= 0).all()
        assert (variance <= 1 + 1e-5).all()
    # At the last sample both are given the whole window.
    torch.testing.assert_close(posterior.causal[..., -1], posterior.two_sided[..., -1])


def test_permuting_the_components_permutes_the_estimates() -> None:
    straight, crossed = model(), model(frequencies_hz="[7.5, 3]", phases_deg="[90, 0]")
    _, mixtures = random_windows(straight, 8)
    one, other = (MMSEEstimator.from_model(m, n_samples=8).posterior(mixtures).causal for m in (straight, crossed))
    torch.testing.assert_close(one, other.flip(1), atol=1e-5, rtol=0)


def test_no_estimator_that_does_not_know_the_start_has_a_smaller_error() -> None:
    """No estimator has a significantly smaller error on the same windows."""
    signal_model, n_samples = model(), 8
    starts, mixtures = random_windows(signal_model, n_samples, n_windows=4000)
    targets = clean_windows(signal_model, starts, n_samples)
    posterior = MMSEEstimator.from_model(signal_model, n_samples=n_samples).posterior(mixtures)

    def advantage(other: torch.Tensor, best: torch.Tensor) -> float:
        """Number of standard errors by which the squared error of ``other`` is smaller."""
        difference = ((best - targets).square() - (other - targets).square()).mean(dim=(1, 2))
        return float(difference.mean() / (difference.std() / math.sqrt(len(difference))))

    louder, quieter = (
        MMSEEstimator.from_model(model(noise_std=sigma), n_samples=n_samples).posterior(mixtures).causal
        for sigma in ("0.5", "0.15")
    )
    linear = torch.linalg.lstsq(mixtures, targets.flatten(1)).solution  # fitted to these whole windows
    others = {"zero": torch.zeros_like(targets), "louder": louder, "quieter": quieter, "shrunk": 0.8 * posterior.causal}
    for name, other in others.items():
        assert advantage(other, posterior.causal) < 3, name
    assert advantage((mixtures @ linear).view_as(targets), posterior.two_sided) < 3
    assert advantage(posterior.two_sided, posterior.causal) > 3  # given more samples the error is smaller
    assert advantage(targets, posterior.two_sided) > 3


def test_the_posterior_variance_is_the_expected_squared_error() -> None:
    signal_model, n_samples = model(), 8
    starts, mixtures = random_windows(signal_model, n_samples, n_windows=8000)
    targets = clean_windows(signal_model, starts, n_samples)
    posterior = MMSEEstimator.from_model(signal_model, n_samples=n_samples).posterior(mixtures)
    for name in ("causal", "two_sided"):
        excess = (getattr(posterior, name) - targets).square() - getattr(posterior, f"{name}_variance")
        window_means = excess.mean(dim=(1, 2))
        assert abs(float(window_means.mean())) < 4 * float(window_means.std()) / math.sqrt(len(window_means))


def test_the_error_decreases_with_the_number_of_samples() -> None:
    """The expected posterior variance at the same target samples decreases."""
    signal_model = model()
    starts, _ = random_windows(signal_model, 20, n_windows=3000)
    starts = np.minimum(starts, signal_model.n_samples - 20)
    components = torch.from_numpy(signal_model.clean()).float()
    noise = torch.from_numpy(np.random.default_rng(5).normal(size=(len(starts), 20))).float()
    mixtures = components.mean(0)[torch.from_numpy(starts)[:, None] + torch.arange(20)] + signal_model.noise_std * noise
    remaining = []
    for seen in (1, 2, 5, 10, 20):
        # The target is the last of the samples seen.
        shifted = MMSEEstimator(components[:, 20 - seen :], signal_model.noise_std, seen)
        remaining.append(float(shifted.posterior(mixtures[:, 20 - seen :]).causal_variance[..., -1].mean()))
    assert remaining == sorted(remaining, reverse=True)
    assert remaining[-1] < 0.6 * remaining[0]
    whole = MMSEEstimator.from_model(signal_model, n_samples=20).posterior(mixtures)
    assert (whole.two_sided_variance.mean(dim=(0, 1)) <= whole.causal_variance.mean(dim=(0, 1)) + 1e-6).all()


def test_without_noise_the_error_is_zero_once_the_window_determines_the_start() -> None:
    for noise_std in ("0.001", "0"):
        signal_model = model(noise_std=noise_std)
        starts, mixtures = random_windows(signal_model, 6)
        posterior = MMSEEstimator.from_model(signal_model, n_samples=6).posterior(mixtures)
        error = (posterior.two_sided - clean_windows(signal_model, starts, 6)).square()
        assert float(error.mean()) < 1e-4


def test_with_very_strong_noise_the_variance_is_that_over_the_starts() -> None:
    signal_model = model(noise_std="1000")
    _, mixtures = random_windows(signal_model, 6)
    posterior = MMSEEstimator.from_model(signal_model, n_samples=6).posterior(mixtures)
    components = torch.from_numpy(signal_model.clean()).float()
    over_starts = components.unfold(1, 55, 1)  # (n_components, n_samples, n_starts)
    torch.testing.assert_close(
        posterior.causal_variance, over_starts.var(dim=2, correction=0).expand(200, -1, -1), rtol=0.01, atol=1e-4
    )


@pytest.mark.slow
def test_the_documented_limits_are_reproduced_on_all_test_windows() -> None:
    from freqfilter.evaluation import limits

    params = resolve()
    windows = Splits.from_params(params).test
    limit = limits.compute_window_limit(SignalModel.from_params(params.signals), windows)  # type: ignore[arg-type]
    assert limit.n_windows == 9951
    assert round(limit.causal.mse, 4) == 0.2084
    assert round(limit.two_sided.mse, 4) == 0.1267
    assert limit.causal.per_frequency.round(3).tolist() == [0.113, 0.262, 0.273, 0.186]
    assert limit.two_sided.per_frequency.round(3).tolist() == [0.019, 0.195, 0.241, 0.053]
    assert limit.causal.per_step[[0, -1]].round(3).tolist() == [0.346, 0.121]
    assert 0.001 < limit.causal.standard_error < 0.01


def test_the_estimator_returns_the_selected_component() -> None:
    params = resolve({"n_samples": "100", "duration_s": "1", "window_length": "7", "frequencies_hz": "[3, 8]"})
    windows = Splits.from_params(params).test
    limit = MMSEEstimator.from_model(SignalModel.from_params(params.signals), n_samples=7)
    inputs, _ = windows.batch(torch.randperm(len(windows), generator=torch.Generator().manual_seed(1))[:50])
    posterior = limit.posterior(inputs[..., 0])
    for two_sided, expected in ((False, posterior.causal), (True, posterior.two_sided)):
        found = WindowMMSE(limit, two_sided=two_sided)(inputs)
        selected = inputs[:, 0, 1:].argmax(dim=1)
        torch.testing.assert_close(found[..., 0], expected[torch.arange(50), selected])
    with pytest.raises(ValueError, match="windows of 6 samples"):
        WindowMMSE(limit)(inputs[:, :6])


def test_posteriors_do_not_depend_on_the_number_of_windows() -> None:
    signal_model = model()
    _, mixtures = random_windows(signal_model, 8)
    limit = MMSEEstimator.from_model(signal_model, n_samples=8)
    apart = torch.cat([limit.posterior(mixtures[i : i + 1]).causal for i in range(20)])
    torch.testing.assert_close(limit.posterior(mixtures).causal[:20], apart, atol=1e-6, rtol=0)


@pytest.mark.parametrize("in_blocks", [False, True])
def test_with_all_starts_as_candidates_the_mean_is_the_mmse_estimate(
    in_blocks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    signal_model = model()
    _, mixtures = random_windows(signal_model, 8)
    limit = MMSEEstimator.from_model(signal_model, n_samples=8)
    candidates = limit.components.unfold(1, 8, 1)
    posterior = limit.posterior(mixtures)
    if in_blocks:  # as on a CUDA device
        weights = posterior_module._weights_in_blocks
        monkeypatch.setattr(posterior_module, "SAMPLE_CHUNK", 3)
        monkeypatch.setattr(posterior_module, "_weights", lambda x, listed, std: weights(x, torch.stack(listed), std))
    for two_sided, expected in ((False, posterior.causal), (True, posterior.two_sided)):
        found = posterior_mean(mixtures, candidates, noise_std=signal_model.noise_std, two_sided=two_sided)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("bidirectional", ["false", "true"])
@pytest.mark.parametrize("batch_size", [400, 1300])
def test_posterior_means_are_unbiased_targets_with_less_variance(bidirectional: str, batch_size: int) -> None:
    """Their difference to the clean component is uncorrelated with the window, and their variance is smaller."""
    small = {"n_samples": "900", "duration_s": "3", "window_length": "12", "noise_std": "0.2", "seed": "5"}
    chosen = {"windows_per_epoch": "40000", "targets": "posterior_mean", "bidirectional": bidirectional}
    splits = Splits.from_params(resolve(small | chosen | {"frequencies_hz": "[2, 5.3, 9.1]"}))
    torch.manual_seed(1)
    windows = splits.epoch(1)
    batches = [windows.training_batch(positions) for positions in torch.arange(40_000).split(batch_size)]
    inputs, targets, clean = (torch.cat(parts) for parts in zip(*(batch[:3] for batch in batches), strict=True))
    error = (targets - clean).squeeze(-1)
    mixtures, first = inputs[..., 0], inputs[:, 0, 1:].argmax(dim=1) == 0
    seen = mixtures.flip(1) if bidirectional == "true" else mixtures
    for feature in (torch.ones_like(error), seen, seen**2, first[:, None] * seen):
        products = error * feature
        z = products.mean(dim=0) / products.std(dim=0) * math.sqrt(len(products))
        assert z.abs().max() < 4.5
    assert error.square().mean() > 0.02
    assert targets.var() < 0.8 * clean.var()


def test_without_noise_posterior_means_are_the_clean_component() -> None:
    params = resolve({"n_samples": "900", "duration_s": "3", "noise_std": "0", "targets": "posterior_mean"})
    _, targets, clean, *_ = Splits.from_params(params).epoch(1).training_batch(torch.arange(128))
    torch.testing.assert_close(targets[:, 20:], clean[:, 20:], atol=1e-4, rtol=0)
