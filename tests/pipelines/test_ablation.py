"""Ablations, and trainings that start from the weights of another, on a real store."""

from __future__ import annotations

import os
import shutil
import signal
import statistics
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from mlflow import MlflowClient
from mlflow.entities import Run

from tests import zygote
from tests.conftest import (
    SMALL,
    Program,
    Typed,
    all_runs,
    artifacts,
    download,
    draw_nothing,
    made_once,
    options,
    start,
    work_in,
)

PARENT = "mlflow.parentRunId"
QUIET = {"register": "false"}


@pytest.fixture(scope="module")
def store_with_a_training(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> Path:
    """A store with a registered version of the small setting."""

    def make(folder: Path) -> None:
        store, cache = folder / "mlflow.db", empty_store.parent / "cache"
        shutil.copy(empty_store, store)
        with pytest.MonkeyPatch.context() as patch:
            work_in(folder, store, patch, cache=cache)
            draw_nothing(patch)
            assert start("train", *options(SMALL)) == 0

    return made_once("training", make, tmp_path_factory) / "mlflow.db"


@pytest.fixture
def trained(store_with_a_training: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """The only run of a copy of that store, which is the store of this test; its artifacts are shared."""
    shutil.copy(store_with_a_training, folder / "mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
    (run,) = all_runs()
    return run


def family() -> tuple[Run, dict[str, Run]]:
    """Return the parent run, and its children by name."""
    runs = all_runs()
    (parent,) = [run for run in runs if run.data.tags.get("workflow") in ("seeds", "ablate")]
    children = [run for run in runs if run.data.tags.get(PARENT) == parent.info.run_id]
    return parent, {child.info.run_name: child for child in children}


def history(run: Run, name: str) -> list[tuple[int, float]]:
    return [(p.step, p.value) for p in MlflowClient().get_metric_history(run.info.run_id, name)]


def test_several_seeds_have_a_parent_with_mean_and_spread_over_all_of_them(typed: Typed, folder: Path) -> None:
    assert typed("train", *options(SMALL | QUIET), "--seeds", "[7, 8, 9]") == (0, "")
    parent, children = family()
    assert parent.info.status == "FINISHED"
    assert list(children) == ["seed=7", "seed=8", "seed=9"]
    assert parent.data.params["seeds"] == "[7, 8, 9]"
    assert "seed" not in parent.data.params
    assert parent.data.params["epochs"] == "3"
    assert [child.data.params["seed"] for child in children.values()] == ["7", "8", "9"]
    for name in ("test/mse", "best/val_mse", "best/holdout_mse", "test/r2_3hz"):
        values = [child.data.metrics[name] for child in children.values()]
        assert len(set(values)) == 3
        assert parent.data.metrics[f"{name}_mean"] == pytest.approx(statistics.fmean(values))
        assert parent.data.metrics[f"{name}_std"] == pytest.approx(statistics.stdev(values))
    table = pd.read_csv(download(parent, "comparison/runs.csv", folder), index_col="run")
    for column, name in {
        "test_mse": "test/mse",
        "test_mse_over_limit": "test/mse_over_limit",
        "val_mse_over_limit": "best/val_mse_over_limit",
    }.items():
        # pandas before 3 reads the last bit of a decimal number inexactly.
        metrics = [child.data.metrics[name] for child in children.values()]
        assert table[column].tolist() == pytest.approx(metrics, rel=1e-14, abs=0)
    assert {"comparison/runs.md", "comparison/runs.png"} <= artifacts(parent)
    assert "seed=8" in parent.data.tags["mlflow.note.content"]

    assert typed("train", *options(SMALL | QUIET), "--seed", "8") == (0, "")
    alone = all_runs()[-1]
    assert PARENT not in alone.data.tags
    assert history(alone, "val/loss") == history(children["seed=8"], "val/loss")


def test_a_failed_run_is_reported_and_the_others_are_trained(typed: Typed, folder: Path) -> None:
    given = SMALL | QUIET | {"gradient_clip_norm": "0"}
    code, line = typed("ablate", *options(given), "--values", "{learning_rate: [1e30, 0.01], cell: gru}")
    assert code == 2
    assert "1 of 4 runs failed; first: learning_rate=1e30: the training loss is not finite" in line
    parent, children = family()
    assert parent.info.status == "FAILED"
    assert {name: child.info.status for name, child in children.items()} == {
        "base": "FINISHED",
        "learning_rate=1e30": "FAILED",
        "learning_rate=0.01": "FINISHED",
        "cell=gru": "FINISHED",
    }
    assert parent.data.metrics == {}
    assert r"learning\_rate=1e30 failed" in parent.data.tags["mlflow.note.content"]
    table = pd.read_csv(download(parent, "comparison/runs.csv", folder), index_col="run")
    assert table.index.tolist() == ["base", "learning_rate=0.01", "cell=gru"]


def test_variants_differ_in_one_value_and_are_compared_without_the_test_set(typed: Typed, folder: Path) -> None:
    values = "{hidden_size: [4, 16], frequencies_hz: [[10, 20]]}"
    assert typed("ablate", *options(SMALL | QUIET | {"epochs": "1"}), "--values", values) == (0, "")
    parent, children = family()
    assert list(children) == ["base", "hidden_size=4", "hidden_size=16", "frequencies_hz=[10, 20]"]
    base = children["base"].data.params
    for name, changed in (("hidden_size=4", {"hidden_size"}), ("frequencies_hz=[10, 20]", {"frequencies_hz"})):
        differing = {key for key, value in children[name].data.params.items() if base[key] != value}
        assert differing - {"phases_deg", "amplitudes"} == changed
    table = pd.read_csv(download(parent, "comparison/runs.csv", folder), index_col="run")
    assert "test_mse" not in table
    assert table["parameter_count"].is_unique
    assert "test/mse_mean" not in parent.data.metrics
    assert parent.data.params["values"] == values


def test_invalid_variants_are_rejected_before_a_run_is_created(typed: Typed, folder: Path) -> None:
    code, line = typed("train", *options(SMALL | {"data_file": "absent.npz"}), "--seeds", "[1, 2]")
    assert code == 2
    assert "absent.npz: No such file" in line
    assert all_runs() == []


def test_variants_are_registered_only_if_requested(typed: Typed) -> None:
    arguments = ["ablate", *options(SMALL | {"epochs": "1"}), "--values", "{cell: gru}"]
    assert typed(*arguments) == (0, "")
    assert MlflowClient().search_model_versions() == []
    assert typed(*arguments, "--register", "true") == (0, "")
    assert len(MlflowClient().search_model_versions()) == 2


@pytest.mark.slow
def test_an_interrupt_ends_the_parent_and_the_current_run(folder: Path) -> None:
    given = SMALL | QUIET | {"epochs": "100000", "early_stopping_patience": "0"}
    command = [sys.executable, "-m", "freqfilter", "train", *options(given), "--seeds", "[1, 2]"]
    process = zygote.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=folder)
    assert process.stdout
    while not process.stdout.readline().startswith("epoch "):
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 143
    parent, children = family()
    assert parent.info.status == "KILLED"
    assert {name: child.info.status for name, child in children.items()} == {"seed=1": "KILLED"}


@pytest.mark.slow
def test_under_mlflow_run_its_run_is_the_parent(mlflow_run: Program, folder: Path) -> None:
    done = mlflow_run("--experiment-name", "mine", **SMALL, **QUIET, seeds="[1, 2]")
    assert done.returncode == 0, done.stdout + done.stderr
    parent, children = family()
    assert len(all_runs()) == 3
    assert {run.info.experiment_id for run in all_runs()} == {parent.info.experiment_id}
    assert parent.info.run_name.startswith("default seeds=[1,2]")
    assert [run.info.status for run in (parent, *children.values())] == ["FINISHED"] * 3


def test_training_starts_from_the_weights_of_a_run_or_a_version(trained: Run, typed: Typed, folder: Path) -> None:
    origin = trained
    frozen = SMALL | QUIET | {"learning_rate": "1e-30", "epochs": "1"}
    for start_from in (origin.info.run_id, "models:/frequency-filter/latest"):
        assert typed("train", *options(frozen | {"start_from": start_from})) == (0, "")
        run = all_runs()[-1]
        before, after = (
            torch.load(download(each, "models/best_model.pth", folder / each.info.run_id), weights_only=True)
            for each in (origin, run)
        )
        assert all(torch.equal(before[name], after[name]) for name in before)
        assert run.data.metrics["test/mse"] == pytest.approx(origin.data.metrics["test/mse"])
        assert run.data.tags["start_from_run"] == origin.info.run_id
        # The parameters have the model ID, since an alias may move.
        pinned = f"models:/{origin.outputs.model_outputs[0].model_id}"
        assert run.data.tags["start_from_model"] == pinned
        assert f"start_from: {pinned}" in download(run, "params.yaml", folder).read_text()
    assert typed("train", *options(SMALL | QUIET | {"start_from": origin.info.run_id, "dropout": "0.3"})) == (0, "")
    assert history(all_runs()[-1], "val/loss")[0][1] < history(origin, "val/loss")[0][1]


@pytest.mark.parametrize(
    ("changed", "part"),
    [
        ({"hidden_size": "9"}, "hidden_size=8, but hidden_size=9 is requested; add hidden_size=8"),
        ({"cell": "gru"}, "add cell=lstm"),
        ({"bidirectional": "true"}, "add bidirectional=false"),
        ({"frequencies_hz": "[10, 20]"}, "n_components=4, but n_components=2 is requested; add frequencies_hz"),
    ],
)
def test_weights_of_another_architecture_are_rejected(
    changed: dict[str, str], part: str, trained: Run, typed: Typed
) -> None:
    code, line = typed("train", *options(SMALL | changed | {"start_from": "models:/frequency-filter/1"}))
    assert code == 2
    assert part in line
    assert len(all_runs()) == 1
    assert not Path("runs").exists() or os.listdir("runs") == []  # noqa: PTH208 (names are enough)
