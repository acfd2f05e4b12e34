"""The program as users start it: `mlflow run`, `python -m freqfilter` and the wheel."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Iterator
from pathlib import Path

import mlflow
import numpy as np
import PIL.Image
import pytest
import torch
from mlflow import MlflowClient
from mlflow.entities import Run

from freqfilter.config import resolve
from freqfilter.data.windows import noise_inputs
from freqfilter.tracked_names import COMPARED
from tests import zygote
from tests.conftest import (
    COARSEST,
    ROOT,
    SMALL,
    Program,
    all_runs,
    artifacts,
    download,
    is_repeatable,
    network,
    options,
)

pytestmark = pytest.mark.slow

FORKED = {"PYTHONPATH": str(ROOT), zygote.DRAW_NOTHING: "1"}

BOTH_RECIPES = """
import runpy, sys
runpy.run_path({zygote!r})["draw_nothing"]()
for recipe in ("default", "original"):
    sys.argv = ["freqfilter", "train", "--recipe", recipe, *{words!r}]
    try:
        runpy.run_path({command!r}, run_name="__main__")
    except SystemExit as ended:
        assert not ended.code, ended.code
"""

# None of these spellings is the canonical one.
TYPED = SMALL | {
    "learning_rate": "1e-2",
    "weight_decay": ".00001",
    "dropout": "0.10",
    "precision": f" {COARSEST} ",
    "optimizer": " muon",
    "scheduler": "cosine",
    "windows_per_epoch": "1.5e3",
    "targets": "posterior_mean",
    "frequencies_hz": "[20, 50, 90]",
    "data_file": "",
    "checkpoint_every": "2",
    "run_dir": "scratch",
    "device": " cpu",
}


def history(run: Run) -> dict[str, list[tuple[int, float]]]:
    client = MlflowClient()
    return {
        name: [(p.step, p.value) for p in client.get_metric_history(run.info.run_id, name)]
        for name in run.data.metrics
        if is_repeatable(name)
    }


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> Iterator[tuple[Path, Run, str]]:
    """Folder, run and output of a real `mlflow run`, called outside the project's folder."""
    folder = tmp_path_factory.mktemp("typed_here")
    shutil.copy(empty_store, folder / "mlflow.db")
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("MLFLOW_")]:
            patch.delenv(name)
        patch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")  # in the folder of the command, not the project's
        patch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
        patch.chdir(folder)
        given = [word for name, value in TYPED.items() for word in ("-P", f"{name}={value}")]
        command = [sys.executable, "-m", "mlflow", "run", str(ROOT), "--env-manager", "local"]
        done = subprocess.run(
            [*command, "--experiment-name", "mine", *given], capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        yield folder, all_runs()[0], done.stdout


def test_the_run_is_finished_with_every_parameter_under_its_own_name_once(trained: tuple[Path, Run, str]) -> None:
    _, run, _ = trained
    assert len(all_runs()) == 1
    assert run.info.status == "FINISHED"
    assert run.info.run_name.startswith("default n_samples=400 duration_s=0.4")
    assert MlflowClient().get_experiment_by_name("mine").tags["mlflow.experimentKind"] == "custom_model_development"
    resolved = resolve({k: v for k, v in TYPED.items() if k != "run_dir"}).canonical()
    assert set(run.data.params) == {*resolved, "recipe"}
    own = {name: value for name, value in run.data.params.items() if name not in TYPED}
    assert own == {name: resolved[name] for name in own if name not in ("recipe", "experiment")} | {
        "recipe": "default",
        "experiment": "mine",
    }


def test_each_epoch_is_logged_once(trained: tuple[Path, Run, str]) -> None:
    _, run, _ = trained
    points = history(run)
    of_epochs = ("train/loss", "val/loss", "val/mse", "holdout/mse", "train/learning_rate", "train/gradient_norm")
    for name in (*of_epochs, "val/limit_mse", "val/mse_over_limit"):
        assert [step for step, _ in points[name]] == [1, 2, 3], name
    assert points["val/loss"] != points["train/loss"]
    metrics = run.data.metrics
    assert len({value for _, value in points["val/limit_mse"]}) == 1
    for (_, ratio), (_, mse), (_, limit) in zip(
        points["val/mse_over_limit"], points["val/mse"], points["val/limit_mse"], strict=True
    ):
        assert ratio == pytest.approx(mse / limit)
    assert metrics["test/mse_over_limit"] == pytest.approx(metrics["test/mse"] / metrics["test/limit_mse"])
    assert metrics["test/limit_two_sided_mse"] < metrics["test/limit_mse"] < metrics["test/mse"]
    assert metrics["limit/expected_mse"] == pytest.approx(metrics["test/limit_mse"], rel=0.3)
    best = dict(points["val/loss"])
    assert metrics["best/val_loss"] == min(best.values()) == best[int(metrics["best/epoch"])]
    assert metrics["epochs_run"] == 3
    assert metrics["test/rmse"] == pytest.approx(metrics["test/mse"] ** 0.5)
    of_components = [metrics[f"test/mse_{f}hz"] for f in (20, 50, 90)]
    assert metrics["test/mse"] == pytest.approx(sum(of_components) / 3)
    assert {"test/mae", "test/r2", "test/pearson_r", "test/zero_mse", "test/mean_mse", "test/r2_90hz"} <= set(metrics)
    assert metrics["test/zero_mse"] == pytest.approx(0.5, abs=0.02)


def test_the_run_has_its_provenance(trained: tuple[Path, Run, str]) -> None:
    _, run, _ = trained
    tags = run.data.tags
    for name in ("git_commit", "device", "processor", "threads", "torch_version", "params_digest", "recipe"):
        assert tags[name]
    assert "Test MSE" in tags["mlflow.note.content"]
    inputs = {data.dataset.name: data.dataset.digest for data in run.inputs.dataset_inputs}
    assert set(inputs) == {"train_without_noise", "validation", "test", "holdout"}
    assert len(set(inputs.values())) == 4


def test_files_have_the_names_of_the_original_script(trained: tuple[Path, Run, str], tmp_path: Path) -> None:
    folder, run, _ = trained
    names = {name for name in artifacts(run) if not name.startswith("source/")}
    pictures = {name for name in names if name.startswith("images/")}
    assert {name.split("+")[0] for name in pictures} == {f"images/{key}" for key in COMPARED.values()}
    assert names - pictures == {
        "checkpoints/epoch_0002.pt", "evaluation/test_scores.csv", "models/best_model.pth",
        "models/training_history.npz", "model_card.md", "params.yaml", "visualizations/07_training_loss.png",
        "visualizations/08_prediction.png", "visualizations/09_errors.png", "visualizations/10_scatter.png",
        "visualizations/11_spectrum.png", "visualizations/12_long_stretch.png",
        "visualizations/13_mse_per_frequency.png", "visualizations/14_mse_over_window.png",
        "evaluation/test_scores.md", "evaluation/test_mse_over_window.csv", "evaluation/overlap.json",
    }  # fmt: skip
    with PIL.Image.open(download(run, "visualizations/07_training_loss.png", tmp_path)) as picture:
        assert picture.size == (12 * 300, 6 * 300)
    losses = np.load(download(run, "models/training_history.npz", tmp_path))
    assert losses["num_epochs"] == 3
    assert losses["train_losses"].tolist() == [value for _, value in history(run)["train/loss"]]
    assert losses["val_losses"].tolist() == [value for _, value in history(run)["val/loss"]]
    module = network(n_components=3)
    module.load_state_dict(torch.load(download(run, "models/best_model.pth", tmp_path), weights_only=True))
    assert list((folder / "scratch").iterdir()) == []  # a path relative to the user's folder, with no files left


def test_training_prints_what_the_original_prints(trained: tuple[Path, Run, str], freqfilter: Program) -> None:
    _, _, output = trained
    for words in (
        "device: CPU, 1 thread",
        "windows: 1,500 training, 1,143 validation, 1,143 test, each 20 samples of 4 features",
        "network: 1,033 parameters",
        "(lstm): LSTM(4, 8, num_layers=2, dropout=0.1)",
    ):
        assert words in output
    assert [line.split()[1] for line in output.splitlines() if line.startswith("epoch ")] == ["1/3", "2/3", "3/3"]
    hurried = SMALL | {"learning_rate": "0.5", "epochs": "60", "early_stopping_patience": "2", "register": "false"}
    assert (
        "stopped early: 2 validations without improvement since epoch" in freqfilter("train", *options(hurried)).stdout
    )


def test_the_version_names_its_run_and_computes_its_modules_estimates(
    trained: tuple[Path, Run, str], tmp_path: Path
) -> None:
    _, run, output = trained
    version = MlflowClient().get_model_version("frequency-filter", "1")
    assert version.run_id == run.info.run_id
    assert version.tags["test/mse"] == f"{run.data.metrics['test/mse']:.6g}"
    module = network(n_components=3)
    module.load_state_dict(torch.load(download(run, "models/best_model.pth", tmp_path), weights_only=True))
    inputs = noise_inputs(np.random.default_rng(1), 3, 77, n_components=3)
    with torch.inference_mode():
        expected = module.eval()(torch.from_numpy(inputs)).numpy()
    found = mlflow.pyfunc.load_model("models:/frequency-filter/1").predict(inputs)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
    for words in ("best epoch", "registered: frequency-filter version 1", "mlflow ui --backend-store-uri", "zero"):
        assert words in output


def test_the_parameters_file_reproduces_the_run_bit_for_bit_and_another_seed_does_not(
    trained: tuple[Path, Run, str], tmp_path: Path
) -> None:
    """With dropout, shuffling, fresh noise and low precision; repeated without the MLproject, in a forked process."""
    _, run, _ = trained
    recipe = str(download(run, "params.yaml", tmp_path))
    command = [sys.executable, "-m", "freqfilter", "train", "--recipe", recipe, "--register", "false"]
    for words in ([], ["--seed", "43"]):
        zygote.run([*command, *words], check=True, env=os.environ | FORKED)
    first, again, other = all_runs()[-3:]
    assert first.info.run_id == run.info.run_id
    assert {"train/loss", "val/loss", "holdout/mse", "test/mse"} <= set(history(first))
    assert history(again) == history(first)
    assert history(other)["train/loss"][0] != history(first)["train/loss"][0]
    assert again.data.tags["params_digest"] == first.data.tags["params_digest"]


@pytest.mark.parametrize("by_version", [True, False])
def test_evaluate_reproduces_the_test_scores(trained: tuple[Path, Run, str], by_version: bool) -> None:
    _, run, _ = trained
    word = ["--version", "1"] if by_version else ["--run_id", run.info.run_id]
    command = [sys.executable, "-m", "freqfilter", "evaluate", *word]
    zygote.run(command, check=True, env=os.environ | FORKED)
    evaluated = all_runs()[-1]
    assert evaluated.info.status == "FINISHED"
    scores = {name: value for name, value in run.data.metrics.items() if name.startswith("test/")}
    assert evaluated.data.metrics == pytest.approx(scores, rel=1e-5)


def test_limit_and_export_are_runs_with_artifacts_under_mlflow_run(
    trained: tuple[Path, Run, str], tmp_path: Path
) -> None:
    folder, run, _ = trained
    signals = {name: TYPED[name] for name in ("frequencies_hz", "n_samples", "duration_s", "window_length")}
    environment = os.environ | FORKED | zygote.stand_ins(tmp_path / "stand_ins")
    jobs = {"limit": signals, "export": {"version": "1", "output": "mine.onnx"}}
    for entry_point, given in jobs.items():
        words = [word for name, value in given.items() for word in ("-P", f"{name}={value}")]
        command = [sys.executable, "-m", "mlflow", "run", str(ROOT), "--env-manager", "local", "-e", entry_point]
        done = zygote.run([*command, "--experiment-name", "jobs", *words], cwd=folder, env=environment)
        assert done.returncode == 0, done.stdout + done.stderr
    found = {one.data.tags.get("workflow"): one for one in all_runs()}
    of_limit, of_export = found["limit"], found["export"]
    assert [of_limit.info.status, of_export.info.status] == ["FINISHED", "FINISHED"]
    assert {"limit/limit.json", "limit/limit.png"} <= artifacts(of_limit)
    assert of_limit.data.metrics["limit/causal_mse"] == pytest.approx(run.data.metrics["limit/expected_mse"])
    assert of_limit.data.metrics["limit/two_sided_mse"] < of_limit.data.metrics["limit/causal_mse"]
    assert {"onnx/frequency-filter_1.onnx"} <= artifacts(of_export) & artifacts(MlflowClient().get_run(run.info.run_id))
    assert (folder / "mine.onnx").read_bytes() == download(
        of_export, "onnx/frequency-filter_1.onnx", folder
    ).read_bytes()


@pytest.mark.parametrize("url", ["file://{clone}", "https://example.org/freqfilter.git"])
def test_a_git_url_and_commit_run_with_a_path_relative_to_the_users_folder(
    url: str, mlflow_run: Program, freqfilter: Program, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clone = tmp_path / "clone"  # MLflow checks the commit out in place where the URL is a folder of this machine
    subprocess.run(["git", "clone", "-q", str(ROOT), str(clone)], check=True)
    # Git uses the clone for the remote repository, which MLflow then copies to a folder of its own.
    monkeypatch.setenv("GIT_CONFIG_COUNT", "1")
    monkeypatch.setenv("GIT_CONFIG_KEY_0", f"url.file://{clone}.insteadOf")
    monkeypatch.setenv("GIT_CONFIG_VALUE_0", "https://example.org/freqfilter.git")
    signal_model = {name: SMALL[name] for name in ("n_samples", "duration_s", "window_length")}
    assert freqfilter("prepare", "--output", "mine/data.npz", *options(signal_model)).returncode == 0
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=clone, capture_output=True, text=True, check=True
    ).stdout.strip()
    given = SMALL | {"epochs": "1", "data_file": "mine/data.npz"}
    monkeypatch.delenv("PYTHONPATH")
    done = mlflow_run("-v", commit, project=url.format(clone=clone), **given)
    assert done.returncode == 0, done.stdout + done.stderr
    run = all_runs()[-1]  # the first one is that of prepare
    assert run.data.tags["git_commit"] == commit
    assert run.data.params["noise"] == "fixed"
    assert str(folder / "mine/data.npz") in download(run, "params.yaml", folder).read_text()
    assert [data.dataset.name for data in run.inputs.dataset_inputs] == ["train", "validation", "test"]


def test_the_original_recipe_has_an_entry_point(mlflow_run: Program) -> None:
    done = mlflow_run("-e", "original", "--run-name", "as a person named it", **SMALL)
    assert done.returncode == 0, done.stdout + done.stderr
    (run,) = all_runs()
    assert (run.data.params["recipe"], run.data.params["split"], run.data.params["noise"]) == (
        "original",
        "random",
        "fixed",
    )
    assert run.data.params["weight_decay"] == "1e-05"
    assert run.info.run_name == "as a person named it"


def test_an_unknown_parameter_under_mlflow_run_fails_the_run_with_one_line(mlflow_run: Program) -> None:
    done = mlflow_run(learnin_rate="1")
    assert done.returncode == 1
    line = next(line for line in done.stderr.splitlines() if line.startswith("freqfilter: "))
    assert "learning_rate" in line
    assert "Traceback" not in done.stderr
    assert [run.info.status for run in all_runs()] == ["FAILED"]


def test_a_diverging_run_fails_with_a_reason_and_keeps_good_weights(freqfilter: Program, folder: Path) -> None:
    done = freqfilter("train", *options(SMALL | {"learning_rate": "1e30", "gradient_clip_norm": "0"}))
    assert done.returncode == 2
    assert "batch 2 of 12: try learning_rate=1e+29" in done.stderr
    (run,) = all_runs()
    assert run.info.status == "FAILED"
    for tag in ("ended_because", "diagnosis.loss_not_finite"):
        assert "batch 2 of 12: try learning_rate=1e+29" in run.data.tags[tag]
    kept = download(run, "models/last_good_model.pth", folder)
    network(n_components=4).load_state_dict(torch.load(kept, weights_only=True))


def test_the_tracking_server_of_the_environment_is_used(
    tracking_server: str, freqfilter: Program, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking_server)
    done = freqfilter("train", *options(SMALL))
    assert done.returncode == 0, done.stderr
    assert f"view in MLflow: {tracking_server}" in done.stdout
    (run,) = all_runs()
    page = f"{tracking_server}/#/experiments/{run.info.experiment_id}/runs"
    assert done.stdout.splitlines()[-2:] == [
        f"  this run: {page}/{run.info.run_id}?workflowType=machine_learning",
        f"  all trainings: {page}?workflowType=machine_learning&viewStateShareKey=trainings&compareRunsMode=CHART",
    ]
    assert run.info.status == "FINISHED"
    assert [step for step, _ in history(run)["val/loss"]] == [1, 2, 3]
    assert run.info.artifact_uri.startswith("mlflow-artifacts:")
    logged = MlflowClient().get_logged_model(run.outputs.model_outputs[0].model_id)
    assert {"test/mse"} <= {metric.key for metric in logged.metrics}
    found = mlflow.pyfunc.load_model("models:/frequency-filter/1").predict(np.eye(5)[[[1] * 4]])
    assert found.shape == (1, 4, 1)
    assert sorted(path.name for path in folder.iterdir()) == ["kept", "runs"]


def test_the_wheel_contains_parameters_and_recipes_and_works_from_an_empty_folder(folder: Path, tmp_path: Path) -> None:
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(tmp_path)]
    subprocess.run([*build, str(ROOT)], check=True)
    environment = tmp_path / "environment"
    venv.create(environment, with_pip=False, symlinks=True)
    packages = next(environment.glob("lib/python*/site-packages"))
    (wheel,) = tmp_path.glob("*.whl")
    install = [sys.executable, "-m", "pip", "--python", str(environment / "bin/python"), "install", "-q", "--no-deps"]
    subprocess.run([*install, str(wheel)], check=True)
    # Dependencies of this environment, by a plain path, which does not include its editable install.
    site_packages = next(path for path in sys.path if path.endswith("site-packages"))
    (packages / "dependencies.pth").write_text(site_packages)
    bare = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = environment / "bin/freqfilter"

    def work(*words: str) -> None:
        done = subprocess.run(words, cwd=folder, env=bare, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr

    work(str(command), "--help")
    # Both recipes in one process, whose start takes longer than they do; the shell's way to the command is above.
    words = options(SMALL | {"epochs": "1"})
    work(
        str(environment / "bin/python"),
        "-c",
        BOTH_RECIPES.format(command=str(command), words=words, zygote=zygote.__file__),
    )
    recipes = [run.data.params["recipe"] for run in all_runs()]
    assert recipes == ["default", "original"]
    assert all_runs()[0].data.tags["git_commit"] == "unknown: freqfilter is an installed package"
