"""Filters of recordings, from training or the signal model to the registry, the gate and a component."""

from __future__ import annotations

import json
from pathlib import Path

import mlflow
import numpy as np
import pytest
from mlflow import MlflowClient

import freqfilter
from freqfilter.config import resolve
from freqfilter.data.kalman import KalmanFilter
from freqfilter.data.recordings import RecordingModel
from tests.conftest import SMALL, SMALL_RECORDINGS, Typed, all_runs, artifacts, download, options, say

SETTING = SMALL | SMALL_RECORDINGS | {"n_samples": "600", "duration_s": "0.599", "epochs": "2"}
OF_SIGNALS = {name: SETTING[name] for name in (*SMALL_RECORDINGS, "n_samples", "duration_s") if name != "batch_size"}
MODEL = RecordingModel.from_params(resolve(SETTING).signals)


@pytest.fixture(scope="module")
def mixture() -> np.ndarray:
    mixtures, _ = MODEL.draw(np.random.default_rng(9), 1, 3000)
    return mixtures[0]


def test_a_trained_filter_of_recordings_is_tested_registered_and_extracts_from_any_stretch(
    folder: Path, typed: Typed, mixture: np.ndarray
) -> None:
    assert typed("train", *options(SETTING)) == (0, "")
    run = all_runs()[-1]
    metrics = run.data.metrics
    expected = KalmanFilter(MODEL).variances(600).mean(axis=1)
    assert metrics["test/limit_mse_after_200"] == pytest.approx(expected[180:220].mean())
    assert metrics["test/mse_over_limit_after_500_low"] < metrics["test/mse_over_limit_after_500"]
    assert metrics["test/measured_over_limit_after_500"] > 1
    assert "test/mse_after_1000" not in metrics
    assert "visualizations/15_mse_over_samples.png" in artifacts(run)
    assert not any("window" in name for name in artifacts(run))
    model = freqfilter.load("frequency-filter", version=1)
    estimates = model.predict(mixture[None])
    assert estimates.shape == (1, 3000, 4)
    component = model.extract(mixture, frequency_hz=5.0)
    np.testing.assert_allclose(component, estimates[0, :, 2], atol=1e-5)
    stream = model.stream(5.0)
    np.testing.assert_allclose([stream.push(sample) for sample in mixture[:70]], component[:70], atol=1e-5)
    loaded = mlflow.pyfunc.load_model("models:/frequency-filter/1")
    assert [tuple(spec.shape) for spec in loaded.metadata.signature.inputs.inputs] == [(-1, -1)]
    np.testing.assert_allclose(loaded.predict(mixture[None, :100].tolist()), estimates[:, :100], atol=1e-5)
    with pytest.raises(Exception, match=r"pass the mixtures of recordings as numbers \(n_recordings, n_samples\)"):
        loaded.predict(np.zeros((2, 20, 5)))
    assert "window" not in download(run, "model_card.md", folder).read_text()
    assert typed("export", "--output", "filter.onnx") == (0, "")
    assert typed("train", *options(SETTING | {"start_from": "models:/frequency-filter/1"})) == (0, "")
    code, line = typed("train", *options(SMALL | {"start_from": "models:/frequency-filter/1"}))
    assert code == 2
    assert "add phase_distribution=uniform" in line


def test_the_kalman_filter_becomes_champion_and_a_worse_network_does_not(
    folder: Path, typed: Typed, mixture: np.ndarray
) -> None:
    assert typed("register_classical", *options(OF_SIGNALS)) == (0, "")
    run = all_runs()[-1]
    assert run.data.metrics["test/mse_over_limit_after_500"] == pytest.approx(1, abs=1e-6)
    assert typed("promote") == (0, "")
    model = freqfilter.load("frequency-filter", alias="champion")
    best = KalmanFilter(MODEL).filter(mixture[None])[0]
    np.testing.assert_allclose(model.extract(mixture, frequency_hz=3.0), best[:, 1], atol=1e-5)
    assert typed("train", *options(SETTING)) == (0, "")
    assert typed("promote")[0] == 1
    versions = MlflowClient().search_model_versions("name = 'frequency-filter'")
    assert {int(version.version): version.tags["decision"] for version in versions} == {1: "PROMOTED", 2: "REJECTED"}
    code, line = typed("train", *options(SETTING | {"start_from": "models:/frequency-filter/1"}))
    assert (code, "no weights to start from" in line) == (2, True)
    assert typed("compare", "--runs", "1, 2", "--realizations", "6") == (0, "")
    code, line = typed("export", "--version", "1", "--output", "filter.onnx")
    assert code == 2
    assert not (folder / "filter.onnx").exists()


def test_where_the_limit_is_unknown_the_best_linear_filter_takes_its_place(typed: Typed) -> None:
    fixed = {"amplitude_distribution": "fixed", "memory_s": "null"}
    assert typed("register_classical", *options(OF_SIGNALS | fixed)) == (0, "")
    metrics = all_runs()[-1].data.metrics
    assert not any("limit" in name for name in metrics)
    assert metrics["test/measured_over_linear_mmse_after_500"] == pytest.approx(1, abs=1e-6)
    assert typed("promote") == (0, "")


@pytest.mark.parametrize(("recipe", "prefix"), [("stochastic_cycles", ""), ("random_phases", "linear_")])
def test_limit_json_has_the_errors_after_so_many_samples(
    recipe: str, prefix: str, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["limit", "--recipe", recipe, "--n_samples", "1001", "--duration_s", "1", "--json"]
    code, output, _ = say(words, capsys, monkeypatch)
    assert code == 0
    found, drift = json.loads(output), recipe == "stochastic_cycles"
    assert found[f"{prefix}causal_mse_after_1000"] == pytest.approx(0.00258 if drift else 0.00032, abs=6e-6)
    assert found[f"{prefix}two_sided_mse_after_500"] < found[f"{prefix}causal_mse_after_500"]
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("register_classical",), "add recipe=stochastic_cycles"),
        (("register_classical", "--recipe", "stochastic_cycles", "--method", "magic"), "choose from kalman"),
        (("limit", "--recipe", "stochastic_cycles", "--noise_seed", "1"), "omit it"),
    ],
)
def test_what_is_not_possible_is_refused_in_a_line(words: tuple[str, ...], message: str, typed: Typed) -> None:
    code, line = typed(*words)
    assert code == 2
    assert message in line
