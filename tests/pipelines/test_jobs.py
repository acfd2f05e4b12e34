"""Jobs with one run each, on a real store: their parameters, metrics and artifacts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from mlflow import MlflowClient
from torch import Tensor

from freqfilter.models.network import FrequencyFilterLSTM
from freqfilter.tracking.run import diagnoses
from tests.conftest import SMALL, Typed, all_runs, artifacts, download, options

SIGNALS = {name: SMALL[name] for name in ("n_samples", "duration_s", "window_length")}
DATA_FIGURES = {
    "visualizations/01_time.png", "visualizations/02_spectrum.png", "visualizations/03_spectrogram.png",
    "visualizations/04_components.png", "visualizations/05_windows.png", "visualizations/06_structure.png",
}  # fmt: skip


def test_prepare_draws_the_data_and_writes_a_data_file(typed: Typed, folder: Path) -> None:
    assert typed("prepare", *options(SIGNALS)) == (0, "")
    (run,) = all_runs()
    files = {name for name in artifacts(run) if not name.startswith("source/")}
    assert files == DATA_FIGURES
    assert run.data.tags["workflow"] == "prepare"
    assert {"recipe", "frequencies_hz", "window_length"} <= set(run.data.params)
    assert "learning_rate" not in run.data.params
    assert run.info.run_name == "prepare default n_samples=400 duration_s=0.4 window_length=20"
    assert {data.dataset.name for data in run.inputs.dataset_inputs} == {"train", "val", "test"}
    given = SMALL | {"data_file": "data/training_data.npz"}
    assert typed("train", *options(given)) == (0, "")
    trained = all_runs()[-1]
    assert diagnoses(trained.data.tags).keys() <= {"no_learning"}  # three short epochs
    drawn = {name for name in artifacts(trained) if name.startswith("visualizations/")}
    # The order of windows from a file is unknown.
    assert len(drawn) == 6
    assert not any("limit" in name for name in trained.data.metrics)  # the signal model of a file is unknown
    assert not {"visualizations/11_spectrum.png", "visualizations/12_long_stretch.png"} & drawn


def test_find_learning_rate_logs_its_curve_and_its_suggestion(typed: Typed, folder: Path) -> None:
    easy = SMALL | {"frequencies_hz": "[3, 40]", "hidden_size": "32", "batch_size": "64"}
    assert typed("find_learning_rate", *options(easy), "--lowest", "1e-5", "--n_steps", "80") == (0, "")
    (run,) = all_runs()
    assert run.info.status == "FINISHED"
    assert {"range_test/curve.csv", "range_test/learning_rate.png"} <= artifacts(run)
    curve = pd.read_csv(download(run, "range_test/curve.csv", folder))
    assert curve["learning_rate"].iloc[[0, -1]].tolist() == pytest.approx([1e-5, 1])
    suggested = run.data.metrics["range_test/suggested_learning_rate"]
    # pandas before 3 reads the last bit of a decimal number inexactly.
    assert np.isclose(curve["learning_rate"], suggested, rtol=1e-14, atol=0).any()
    assert f"learning_rate={suggested:.2g} (now 0.002)" in run.data.tags["mlflow.note.content"]
    assert (run.data.params["lowest"], run.data.params["n_steps"]) == ("1e-05", "80")


def test_find_learning_rate_reports_a_loss_that_does_not_fall(typed: Typed) -> None:
    assert typed("find_learning_rate", *options(SMALL | {"noise_std": "1000"}), "--highest", "1e-4") == (0, "")
    (run,) = all_runs()
    assert "does not fall at any of these rates" in run.data.tags["mlflow.note.content"]
    assert "range_test/suggested_learning_rate" not in run.data.metrics


def test_a_healthy_run_has_no_diagnosis(typed: Typed) -> None:
    easy = {"frequencies_hz": "[3, 40]", "hidden_size": "32", "learning_rate": "0.01", "batch_size": "64"}
    assert typed("train", *options(SMALL | easy | {"register": "false"})) == (0, "")
    assert diagnoses(all_runs()[0].data.tags) == {}


def test_a_diagnosis_is_printed_and_tagged(
    typed: Typed, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    from freqfilter.cli import main

    given = SMALL | {"noise_std": "300", "deterministic": "false", "register": "false"}
    monkeypatch.setattr(sys, "argv", ["freqfilter", "train", *options(given)])
    main.main()
    stdout = capsys.readouterr().out
    found = diagnoses(all_runs()[0].data.tags)
    assert set(found) == {"not_deterministic", "no_learning"}
    for line in found.values():
        assert f"diagnosis: {line}" in stdout.splitlines()


OUT_OF_MEMORY = [
    (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "or use device=cpu"),
    (RuntimeError("CUDA error: out of memory"), "or use device=cpu"),
    (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), "or use device=cpu"),
    (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes"), "lower batch_size"),
]


@pytest.mark.parametrize(("error", "part"), OUT_OF_MEMORY)
def test_an_out_of_memory_error_has_a_remedy(
    error: Exception, part: str, typed: Typed, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_self: FrequencyFilterLSTM, _inputs: Tensor) -> Tensor:
        raise error

    monkeypatch.setattr(FrequencyFilterLSTM, "forward", full)
    code, line = typed("train", *options(SMALL))
    assert code == 2
    assert part in line
    (run,) = all_runs()
    assert run.info.status == "FAILED"
    assert part in diagnoses(run.data.tags)["out_of_memory"]
    assert "models/last_good_model.pth" in artifacts(run)


def test_every_job_reports_out_of_memory_and_training_keeps_its_weights(
    typed: Typed, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, line = typed("train", *options(SMALL | {"epochs": "1"}))
    assert code == 0, line

    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    import freqfilter.pipelines.evaluate as evaluate_module
    import freqfilter.pipelines.finalize as finish_module
    import freqfilter.pipelines.find_learning_rate as find_module

    for module, name, arguments in (
        (finish_module, "score_test_set", ["train", *options(SMALL | {"epochs": "1"})]),
        (evaluate_module, "score_test_set", ["evaluate"]),
        (find_module, "range_test", ["find_learning_rate", *options(SMALL)]),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, full)
            code, line = typed(*arguments)
        assert code == 2
        assert "out of CUDA memory" in line
        run = all_runs()[-1]
        assert run.info.status == "FAILED"
        assert "out of CUDA memory" in diagnoses(run.data.tags)["out_of_memory"]
        if arguments[0] == "train":
            assert "models/best_model.pth" in artifacts(run)


def test_any_other_error_crashes_loudly(typed: Typed, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_self: FrequencyFilterLSTM, _inputs: Tensor) -> Tensor:
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(FrequencyFilterLSTM, "forward", broken)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        typed("train", *options(SMALL))
    assert all_runs()[0].info.status == "FAILED"


def test_overfitting_of_the_original_recipe_is_reported(typed: Typed) -> None:
    """Validation windows share their noise with training, and only the holdout shows it."""
    noisy = {"noise_std": "2", "frequencies_hz": "[3, 40]", "hidden_size": "64", "learning_rate": "0.01"}
    given = SMALL | noisy | {"batch_size": "64", "epochs": "25", "register": "false"}
    assert typed("original", *options(given)) == (0, "")
    tags = all_runs()[0].data.tags
    assert "far below holdout MSE" in diagnoses(tags)["overfitting"]


def test_evaluate_draws_the_figures_of_training(typed: Typed, folder: Path) -> None:
    assert typed("train", *options(SMALL)) == (0, "")
    assert typed("evaluate") == (0, "")
    trained, evaluated = all_runs()
    same = {name for name in artifacts(trained) if name.startswith("visualizations/")} - {
        "visualizations/07_training_loss.png"
    }
    assert len(same) == 7
    assert {name for name in artifacts(evaluated) if name.startswith("visualizations/")} == same
    scores = [
        pd.read_csv(download(run, "evaluation/test_scores.csv", folder / run.info.run_id), index_col=[0, 1])
        for run in (trained, evaluated)
    ]
    np.testing.assert_allclose(scores[0]["mse"], scores[1]["mse"], rtol=1e-5)
    assert scores[0].index.get_level_values("estimator").unique().tolist() == [
        "model", "limit", "limit_two_sided", "linear_mmse", "linear_mmse_two_sided", "band_pass", "band_pass_two_sided",
        "least_squares", "zero", "mean", "random",
    ]  # fmt: skip


def test_tensorboard_gets_the_same_scalars_and_parameters(typed: Typed, folder: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    given = SMALL | {"tensorboard_dir": "board", "register": "false", "dropout": "0.1"}
    assert typed("train", *options(given)) == (0, "")
    (run,) = all_runs()
    (files,) = (folder / "board").iterdir()
    assert files.name.startswith("default_n_samples=400_")
    assert files.name.endswith(run.info.run_id[:8])
    events = EventAccumulator(str(files)).Reload()
    assert set(events.Tags()["scalars"]) == set(run.data.metrics)
    client = MlflowClient()
    for name in ("train/loss", "val/mse", "train/learning_rate", "test/mse", "best/epoch"):
        scalars = [(point.step, point.value) for point in events.Scalars(name)]
        stored_metrics = [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, name)]
        assert [step for step, _ in scalars] == [step for step, _ in stored_metrics]
        np.testing.assert_allclose([value for _, value in scalars], [value for _, value in stored_metrics], rtol=1e-6)
    content = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    stored = HParamsPluginData.FromString(content).session_start_info.hparams
    assert {name: value.string_value for name, value in stored.items()} == dict(run.data.params)


def test_missing_tensorboard_is_reported_before_a_run_is_created(typed: Typed, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    code, line = typed("train", *options(SMALL | {"tensorboard_dir": "board"}))
    assert code == 2
    assert "pip install 'freqfilter[tensorboard]'" in line
    assert all_runs() == []
