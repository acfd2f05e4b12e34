"""The experiment of new runs: the parameter, or else MLflow's variables."""

from __future__ import annotations

from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient

import freqfilter
from freqfilter.config import TrackingParams, resolve
from freqfilter.errors import UserError
from freqfilter.tracking.client import experiment_name
from freqfilter.tracking.lifecycle import Job, open_run
from freqfilter.tracking.queries import stored_runs, trainings
from tests.conftest import Typed, all_runs


def tracking(**given: str) -> TrackingParams:
    return resolve(given).tracking


def experiment_of_a_run(**given: str) -> str:
    with open_run(tracking(**given), Job("test", "a name")) as run:
        pass
    assert MlflowClient().get_run(run.run_id).info.experiment_id == run.experiment_id
    return run.experiment


def test_variables_choose_the_experiment_where_the_parameter_is_not_given(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert experiment_of_a_run() == "freqfilter"
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "named")
    assert experiment_of_a_run() == "named"
    by_id = MlflowClient().create_experiment("by its id")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", by_id)
    assert experiment_of_a_run() == "by its id"
    assert experiment_of_a_run(experiment="given") == "given"
    assert experiment_name(tracking().experiment) == "by its id"
    assert len(list(stored_runs("", experiment=tracking().experiment))) == 1


def test_a_recipe_states_the_experiment(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "named")
    (folder / "mine.yaml").write_text("tracking:\n  experiment: of the recipe\n")
    assert resolve({}, recipe="mine.yaml", folder=folder).tracking.experiment == "of the recipe"


def test_set_experiment_chooses_the_experiment_of_the_python_functions(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "")  # restored after the test
    mlflow.set_experiment("of the notebook")
    assert experiment_of_a_run() == "of the notebook"
    with pytest.raises(UserError, match="found 0"):
        freqfilter.compare()


def test_an_id_of_no_experiment_is_refused_in_one_line(typed: Typed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "777")
    code, line = typed("compare")
    assert code == 2
    assert line.startswith("freqfilter: MLFLOW_EXPERIMENT_ID=777: ")
    assert line.count("\n") == 1
    assert not all_runs()


def test_under_mlflow_run_the_experiment_is_that_of_the_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    launched = MlflowClient().create_run(MlflowClient().create_experiment("of the launcher"))
    monkeypatch.setenv("MLFLOW_RUN_ID", launched.info.run_id)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", launched.info.experiment_id)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "of the user")
    assert trainings(None, tracking()) == []  # searched in the launcher's experiment; the user's does not exist
    assert experiment_of_a_run() == "of the launcher"
    assert experiment_of_a_run() == "of the launcher"  # a second job of the same program
