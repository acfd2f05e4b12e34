"""Filter on windows, on signals of any length, and sample by sample."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from freqfilter.config import resolve
from freqfilter.errors import UserError
from freqfilter.models.filter import CHUNK_SIZE, Filter
from freqfilter.models.network import FrequencyFilterLSTM, estimate
from tests.conftest import SMALL

LENGTH = 20


def make_filter(*, bidirectional: bool = False) -> Filter:
    torch.manual_seed(3)
    params = resolve(SMALL | {"bidirectional": str(bidirectional).lower()})
    module = FrequencyFilterLSTM(n_components=4, **params.model.model_dump()).eval()
    facts = {
        "network": {"bidirectional": bidirectional},
        "frequencies_hz": [1.0, 3.0, 5.0, 7.0],
        "sample_rate_hz": 1000.0,
        "window_length": LENGTH,
        "params": params.model_dump(mode="json"),
    }
    return Filter(
        "a test", None, module, facts, estimate=lambda x: estimate(module, torch.from_numpy(x)).numpy(), golden=None
    )


def signal(n_samples: int) -> np.ndarray:
    return np.random.default_rng(n_samples).standard_normal(n_samples).astype(np.float32)


@pytest.mark.parametrize("n_samples", [1, 2, LENGTH - 1, LENGTH, LENGTH + 1, 57, CHUNK_SIZE + LENGTH + 3])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_a_signal_of_any_length_gives_an_estimate_for_each_sample(n_samples: int, bidirectional: bool) -> None:
    mixture = signal(n_samples)
    found = make_filter(bidirectional=bidirectional).extract(mixture, 5.0)
    assert found.shape == (n_samples,)
    assert np.isfinite(found).all()


def test_each_estimate_is_from_the_window_that_ends_at_its_sample() -> None:
    filter_, mixture = make_filter(), signal(60)
    found = filter_.extract(mixture, 3.0)
    for at in (LENGTH - 1, 30, 59):
        x = np.zeros((1, LENGTH, 5), dtype=np.float32)
        x[0, :, 0], x[0, :, 2] = mixture[at - LENGTH + 1 : at + 1], 1
        assert found[at] == pytest.approx(filter_.predict(x)[0, -1, 0], abs=1e-6)


@pytest.mark.parametrize("n_samples", [5, 60])
def test_a_stream_gives_the_same_estimates_as_the_whole_signal(n_samples: int) -> None:
    filter_, mixture = make_filter(), signal(n_samples)
    stream = filter_.stream(7.0)
    streamed = [stream.push(sample) for sample in mixture]
    np.testing.assert_allclose(streamed, filter_.extract(mixture, 7.0), atol=1e-6)


def test_later_samples_do_not_change_causal_estimates() -> None:
    filter_, mixture = make_filter(), signal(80)
    whole, first = filter_.extract(mixture, 1.0), filter_.extract(mixture[:50], 1.0)
    np.testing.assert_allclose(whole[:50], first, atol=1e-6)


def test_a_bidirectional_filter_uses_samples_on_both_sides() -> None:
    filter_, mixture = make_filter(bidirectional=True), signal(80)
    changed = mixture.copy()
    changed[45] += 1
    moved = np.flatnonzero(np.abs(filter_.extract(changed, 1.0) - filter_.extract(mixture, 1.0)) > 1e-6)
    assert moved.min() < 45 < moved.max()
    assert moved.min() >= 45 - LENGTH
    assert moved.max() <= 45 + LENGTH


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda f: f.extract(signal(30), 4.0), "frequency_hz=4: unknown; choose from 1, 3, 5, 7 Hz"),
        (lambda f: f.extract(signal(30), 3.0, sample_rate_hz=500), "trained at 1000 Hz; resample"),
        (lambda f: f.stream(3.0, sample_rate_hz=500), "trained at 1000 Hz; resample"),
        (lambda f: f.stream(2.0), "choose from"),
        (lambda f: f.extract(np.zeros((3, 30)), 3.0), r"shape \(3, 30\)"),
        (lambda f: f.extract([], 3.0), r"shape \(0,\)"),
        (lambda f: f.extract([0.0, np.nan], 3.0), "NaN or Inf"),
        (lambda f: f.stream(3.0).push(float("inf")), "NaN or Inf"),
        (lambda f: f.predict(np.zeros((1, 5, 4))), r"pass \(windows, samples, 5\)"),
    ],
)
def test_invalid_input_is_refused(call, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(UserError, match=message):
        call(make_filter())


def test_a_nearly_equal_sample_rate_is_accepted() -> None:
    assert make_filter().extract(signal(30), 3.0, sample_rate_hz=1000.1).shape == (30,)
