"""What a training needs at its end is tried before it begins, and a part that fails later delays that part only."""

from __future__ import annotations

import signal
from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository
from requests import HTTPError

from freqfilter.config import TrackingParams, resolve
from freqfilter.errors import UserError
from freqfilter.tracking.lifecycle import Job, open_run
from freqfilter.tracking.locations import check_artifacts
from freqfilter.tracking.outbox import UndeliveredError, sender
from tests.conftest import SMALL, Typed, all_runs, artifacts, interrupt_after_an_epoch, options, start

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("location", "reason"),
    [("/proc/artifacts", "No such file"), ("s3://bucket/runs", "boto3"), ("nothing://x", "nothing")],
)
def test_an_artifact_location_that_cannot_be_written_is_refused_before_a_run_exists(
    location: str, reason: str, folder: Path, typed: Typed
) -> None:
    MlflowClient().create_experiment("e", location)
    code, line = typed("train", *options(SMALL), "--experiment", "e")
    assert code == 2
    assert f"artifact location {location} of the experiment cannot be written" in line
    assert reason in line
    assert "use a server that serves its artifacts" in line
    assert line.count("\n") == 1
    assert all_runs() == []


def test_a_location_on_the_servers_machine_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client = MlflowClient()
    experiment = client.create_experiment("e", str(folder / "of" / "the" / "server" / "1"))
    monkeypatch.setattr(mlflow, "get_tracking_uri", lambda: "http://mlflow.example.org:5000")
    with pytest.raises(UserError, match="of the experiment is not on this machine"):
        check_artifacts(client, experiment)
    assert list(folder.iterdir()) == []
    (folder / "of" / "the" / "server").mkdir(parents=True)  # a shared disk
    check_artifacts(client, experiment)


def test_a_user_who_may_only_read_is_told_whom_to_ask(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise HTTPError("403 Client Error: Forbidden for url: http://127.0.0.1:5000/api/2.0/mlflow-artifacts")

    client = MlflowClient()
    experiment = client.create_experiment("e", str(folder / "here"))
    monkeypatch.setattr(LocalArtifactRepository, "log_artifact", refuse)
    with pytest.raises(UserError, match="ask its administrator for permission") as caught:
        check_artifacts(client, experiment)
    assert "use a server that serves its artifacts" not in str(caught.value)


def test_the_write_test_leaves_no_file(folder: Path) -> None:
    client = MlflowClient()
    check_artifacts(client, client.create_experiment("e", str(folder / "here")))
    assert list((folder / "here").iterdir()) == []


def test_files_that_cannot_be_delivered_wait_while_metrics_and_tags_arrive(
    folder: Path, typed: Typed, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise MlflowException("the bucket is away")

    tracking = resolve({"experiment": "e", "run_dir": str(folder / "runs")}).tracking
    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "log_artifact", full)
        patch.setattr("freqfilter.tracking.lifecycle.DELIVERY_TIMEOUT_S", 1)
        with pytest.raises(UndeliveredError, match=r"the bucket is away.*files\.jsonl"):
            _log_all_kinds(tracking)
    (stored,) = all_runs()
    assert stored.data.metrics == {"m": 1.0}
    assert stored.data.tags["t"] == "1"
    assert typed("sync") == (0, "")
    (stored,) = all_runs()
    assert stored.info.status == "FINISHED"
    assert {"first.txt", "second.txt"} <= artifacts(stored)


def _log_all_kinds(tracking: TrackingParams) -> None:
    with open_run(tracking, Job("test", "n")) as run:
        run.log_bytes(b"1", "first.txt")
        run.log_metrics({"m": 1.0}, step=1)
        run.log_tags({"t": "1"})
        run.log_bytes(b"2", "second.txt")


def test_a_delivery_returns_once_it_is_stored_whatever_mlflow_is_set_to(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = MlflowClient().create_run("0").info.run_id
    monkeypatch.setenv("MLFLOW_ENABLE_ASYNC_LOGGING", "true")
    send = sender(run_id, folder, {""})
    for message in (
        {"kind": "metrics", "values": {"m": 1.0}, "step": 1, "time_ms": 1, "model_id": None},
        {"kind": "params", "values": {"p": "1"}},
        {"kind": "tags", "values": {"t": "1"}},
    ):
        with monkeypatch.context() as patch:
            patch.setattr("mlflow.store.tracking.sqlalchemy_store.SqlAlchemyStore.log_batch", _refuse)
            with pytest.raises(MlflowException, match="the store is away"):
                send([message])
        send([message])
    data = MlflowClient().get_run(run_id).data
    assert (data.metrics, data.params, data.tags["t"]) == ({"m": 1.0}, {"p": "1"}, "1")


def _refuse(*_: object, **__: object) -> None:
    raise MlflowException("the store is away")


def test_a_name_that_the_registry_refuses_is_refused_before_training(folder: Path, typed: Typed) -> None:
    mlflow.genai.register_prompt("greeting", "hello")
    for name, reason in (("..", "Invalid"), ("greeting", "a prompt of the registry has this name")):
        code, line = typed("train", *options(SMALL), "--model_name", name)
        assert (code, line.count("\n")) == (2, 1)
        assert f"model_name={name}" in line
        assert reason in line
    assert all_runs() == []
    assert not (folder / "runs").exists()


def test_a_resumed_training_takes_another_name_for_its_model(folder: Path, typed: Typed) -> None:
    with interrupt_after_an_epoch(signal.SIGTERM):
        assert start("train", *options(SMALL)) == 143
    run_id = all_runs()[0].info.run_id
    assert typed("resume", run_id, "--model_name", "another", "--checkpoints_kept", "1")[0] == 0
    assert [version.name for version in MlflowClient().search_model_versions()] == ["another"]


@pytest.mark.parametrize("name", ["a b#c?d", "ü%"])
def test_run_and_store_folders_may_have_any_name(name: str, folder: Path, typed: Typed) -> None:
    (folder / name).mkdir()
    MlflowClient().create_experiment("e", str(folder / name / "artifacts"))
    words = ("--experiment", "e", "--run_dir", str(folder / name / "runs"))
    assert typed("train", *options(SMALL | {"epochs": "1"}), *words) == (0, "")
    assert [run.info.status for run in all_runs()] == ["FINISHED"]
    assert [path.name for path in folder.iterdir()] == [name]


def test_folders_whose_names_mlflow_would_decode_are_refused(folder: Path, typed: Typed) -> None:
    MlflowClient().create_experiment("e", f"{folder}/100%41")
    for words in (("--experiment", "e"), ("--run_dir", "100%41")):
        code, line = typed("train", *options(SMALL), *words)
        assert (code, line.count("\n")) == (2, 1)
        assert "MLflow decodes the % in this path; use a folder without it" in line
    assert all_runs() == []
    assert not (folder / "100%41").exists()
