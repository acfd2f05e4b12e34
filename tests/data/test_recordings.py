"""Recordings of random signals: their distribution, their random streams, and the steps of training."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from freqfilter.config import resolve
from freqfilter.data.recordings import RecordingModel, Recordings, seeded_recordings
from freqfilter.data.splits import Splits
from freqfilter.errors import UserError

MODEL = RecordingModel((2.0, 5.0), (1.0, 0.5), True, (0.5, 2.0), 50.0, 0.3)
SMALL = {
    "recipe": "stochastic_cycles",
    "n_samples": "120",
    "duration_s": "2.38",
    "recording_length": "60",
    "chunk_length": "25",
    "recordings_per_epoch": "7",
    "validation_recordings": "5",
    "test_recordings": "4",
}


def splits(**overrides: str) -> Splits:
    given = SMALL | overrides
    return Splits.from_params(resolve({k: v for k, v in given.items() if k != "recipe"}, recipe=given["recipe"]))


@pytest.mark.parametrize(
    "model",
    [MODEL, replace(MODEL, memory_s=None), replace(MODEL, memory_s=None, rayleigh=False)],
    ids=["cycles", "constant", "fixed"],
)
def test_recordings_have_the_stated_moments(model: RecordingModel) -> None:
    mixtures, components = model.draw(np.random.default_rng(1), 20_000, 30)
    power = np.square(model.amplitudes) / 2
    for sample in (0, 29):  # stationary: the same at each sample
        np.testing.assert_allclose((components[:, sample] ** 2).mean(axis=0), power, rtol=0.05)
        np.testing.assert_allclose(components[:, sample].mean(axis=0), 0, atol=0.02)
    lag = 11
    expected = power * (model.rotation**lag).real
    np.testing.assert_allclose((components[:, 5] * components[:, 5 + lag]).mean(axis=0), expected, atol=0.02)
    noise = mixtures - components.mean(axis=2)
    assert noise.std() == pytest.approx(model.noise_std, rel=0.01)
    assert np.corrcoef(noise[:, 3], noise[:, 4])[0, 1] == pytest.approx(0, abs=0.03)
    amplitude = np.sqrt(2 * (components**2).mean(axis=1))
    if not model.rayleigh:  # over whole periods
        _, periods = model.draw(np.random.default_rng(2), 50, 50)
        np.testing.assert_allclose(np.sqrt(2 * (periods**2).mean(axis=1)), np.tile(model.amplitudes, (50, 1)))
    else:
        assert amplitude[:, 0].std() > 0.3


def test_the_first_recordings_do_not_depend_on_their_number() -> None:
    few, many = seeded_recordings(MODEL, 7, 3, 40), seeded_recordings(MODEL, 7, 9, 40)
    assert torch.equal(few.mixtures, many.mixtures[:3])
    assert not torch.equal(few.mixtures, seeded_recordings(MODEL, 8, 3, 40).mixtures)
    assert few.digest() != many.digest()


def test_steps_are_consecutive_chunks_of_the_same_recordings() -> None:
    data = splits().epoch(1)
    assert isinstance(data, Recordings)
    order = torch.tensor([4, 2, 0, 1, 3, 5, 6])
    assert data.n_steps(batch_size=4) == 2 * 3
    steps = [data.step(order, number, 4) for number in range(6)]
    assert [step.continues for step in steps] == [False, True, True] * 2
    assert torch.equal(torch.cat([step.inputs for step in steps[:3]], dim=1), data.mixtures[order[:4]])
    assert torch.equal(torch.cat([step.clean for step in steps[3:]], dim=1), data.components[order[4:]])
    assert steps[2].inputs.shape == (4, 10)


def test_each_split_and_epoch_has_recordings_of_its_own() -> None:
    data = splits()
    assert data.holdout
    parts = [data.epoch(1), data.epoch(2), data.validation, data.test, data.holdout]
    firsts = [part.batch(torch.tensor([0]))[0][0, :60] for part in parts]
    for number, one in enumerate(firsts):
        for other in firsts[number + 1 :]:
            assert abs(np.corrcoef((one - one.mean()).numpy().round(6), other.numpy())[0, 1]) < 0.9
    assert torch.equal(data.epoch(2).batch(torch.tensor([3]))[0], splits().epoch(2).batch(torch.tensor([3]))[0])


def test_targets_are_conditional_means_where_they_are_known() -> None:
    data = splits().epoch(1)
    step = data.step(torch.arange(7), 0, 7)
    error = (step.targets - step.clean).square().mean()
    assert 0 < error < step.clean.square().mean()
    fixed = splits(recipe="random_phases").epoch(1).step(torch.arange(7), 0, 7)
    assert torch.equal(fixed.targets, fixed.clean)


def test_burn_in_and_weights_scale_the_loss() -> None:
    weighted = splits(burn_in="10", loss_weighting="inverse_limit").epoch(1)
    assert weighted.loss_scale is not None
    assert weighted.loss_scale.shape == (60, 4)
    assert (weighted.loss_scale[:10] == 0).all()
    assert (weighted.loss_scale[11:] >= weighted.loss_scale[10:-1] - 1e-4).all()  # the limit falls
    gentler = splits(burn_in="10", loss_weighting="inverse_sqrt_limit").epoch(1)
    assert gentler.loss_scale is not None
    torch.testing.assert_close(gentler.loss_scale.square(), weighted.loss_scale)
    plain = splits(loss_weighting="none").epoch(1)
    assert plain.loss_scale is not None
    assert (plain.loss_scale == 1).all()


def test_recordings_that_are_too_long_are_refused_before_they_are_drawn() -> None:
    for name in ("n_samples", "recording_length"):
        with pytest.raises(UserError, match=f"{name}=1000000: .* at most 100,000"):
            splits(**{name: "1e6"})


REFUSED = {
    "memory_s": ("default", {"memory_s": "3"}, "add phase_distribution=uniform"),
    "rayleigh": ("default", {"amplitude_distribution": "rayleigh"}, "add phase_distribution=uniform"),
    "drift": ("random_phases", {"memory_s": "3"}, "add amplitude_distribution=rayleigh"),
    "zero memory": ("stochastic_cycles", {"memory_s": "0"}, "memory_s=0"),
    "lengths": ("stochastic_cycles", {"memory_s": "[1, 2]"}, "frequencies_hz has 4 values and memory_s has 2"),
    "phases": ("stochastic_cycles", {"phases_deg": "10"}, "phases_deg"),
    "nyquist": ("stochastic_cycles", {"frequencies_hz": "[600]"}, "half of the sample rate"),
    "backwards": ("stochastic_cycles", {"bidirectional": "true"}, "bidirectional"),
    "fixed noise": ("stochastic_cycles", {"noise": "fixed"}, "noise=fixed"),
    "split": ("stochastic_cycles", {"split": "random"}, "split=random"),
    "unknown means": ("random_phases", {"targets": "posterior_mean"}, "use targets=clean"),
    "weighted ratio": ("random_phases", {"loss": "snr"}, "add loss_weighting=none"),
    "burn_in": ("stochastic_cycles", {"burn_in": "5000"}, "burn_in=5000"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_other_combinations_are_refused_with_the_reason(case: str) -> None:
    recipe, given, reason = REFUSED[case]
    with pytest.raises(UserError, match=re.escape(reason)) as refusal:
        resolve(given, recipe=recipe)
    assert "\n" not in str(refusal.value)
