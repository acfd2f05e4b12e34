"""Names that filters and addresses cannot hold, places that were moved, and programs that are not MLflow."""

from __future__ import annotations

import shutil
import signal
import sqlite3
import subprocess
import threading
from collections.abc import Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient

from freqfilter.config import resolve
from freqfilter.errors import UserError
from freqfilter.pipelines.sync import sync
from freqfilter.process import Interrupted
from freqfilter.tracking import aliases, registry
from freqfilter.tracking.client import equality_filter, experiment_id, open_store
from freqfilter.tracking.lifecycle import Job, open_run
from freqfilter.tracking.owner import check_owner
from freqfilter.tracking.queries import run_folders, stored_runs, trainings
from tests.conftest import SMALL, Typed, all_runs, options

NAMES = ["mum's", 'the "best"', """it's "both" """.strip(), "back\\", "a;b -- c", "100%41"]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_with_quotes_is_found(name: str, folder: Path) -> None:
    client = MlflowClient()
    for each in (name, "another"):
        client.create_registered_model(each)
        for _ in range(2):
            client.create_model_version(each, f"{folder}/files")
        client.create_run("0", run_name=each)
    assert [each.version for each in aliases.all_versions(name)] == [1, 2]
    assert aliases.candidate_version(name, None).uri == f"models:/{name}/2"
    having = equality_filter("run_name", name)
    assert having == "" or [run.name for run in stored_runs(having)] == [name]
    with pytest.raises(UserError, match="is of `another program`"):  # it is found, and is no training
        trainings(f"{name},", resolve({}).tracking)


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("experiment", "e" * 600, "600 characters; give a name of at most 500"),
        ("experiment", "a\nb", "without line breaks"),
        ("model_name", "a@b", "without /, :, @, ?, #, line breaks"),
        ("model_name", "a?b", "'?' in the name"),
        ("model_name", "m" * 300, "at most 200 characters"),
    ],
)
def test_a_name_that_cannot_be_kept_is_refused_before_a_training(
    name: str, value: str, problem: str, folder: Path, typed: Typed
) -> None:
    for mode in ("online", "offline"):
        code, line = typed("train", *options(SMALL), f"--{name}", value, "--tracking", mode)
        assert (code, line.count("\n"), problem in line) == (2, 1, True)
    assert list(folder.iterdir()) == []


def test_a_name_of_a_run_is_refused_before_the_run_exists(folder: Path) -> None:
    with pytest.raises(UserError, match=r"run_name=a b: '\\n' in the name"):
        Job("test", "a\nb")


def test_a_deleted_experiment_is_named_with_the_command_that_restores_it(
    folder: Path, typed: Typed, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = MlflowClient()
    deleted = client.create_experiment("freqfilter")
    client.delete_experiment(deleted)
    restore = f"mlflow experiments restore --experiment-id {deleted}`"
    for words in (["compare"], ["find_learning_rate", *options(SMALL)], ["resume", "auto"]):
        code, line = typed(*words)
        assert (code, f"`MLFLOW_TRACKING_URI={mlflow.get_tracking_uri()} {restore}" in line) == (2, True), words
    monkeypatch.chdir(folder)
    other = MlflowClient("sqlite:///other.db")
    other.delete_experiment(other.create_experiment("e"))
    with pytest.raises(UserError, match=rf"`MLFLOW_TRACKING_URI=sqlite:///{folder}/other\.db mlflow experiments"):
        experiment_id(other, "e")


def test_files_that_were_moved_are_named_with_the_command_that_finds_them(
    folder: Path, empty_store: Path, typed: Typed, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, now = folder / "former" / "project", folder / "new project"
    before.mkdir(parents=True)
    shutil.copy(empty_store, before / "mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{before}/mlflow.db")
    client = MlflowClient()
    experiment = client.create_experiment("freqfilter", f"{before}/mlruns/1")
    with open_run(resolve({"run_dir": str(folder / "runs")}).tracking, Job("test", "n")) as run:
        run.log_bytes(b"1", "a.txt")
    (files := before / "mlruns" / "1" / "models" / "m").mkdir(parents=True)
    client.create_registered_model("m")
    client.create_model_version("m", str(files))
    before.parent.rename(now)
    now = now / "project"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{now}/mlflow.db")
    remedy = f"mkdir -p {before.parent} && ln -s '{now}' {before}"
    for words in (["find_learning_rate", *options(SMALL)], ["evaluate", "--model_name", "m"], ["doctor"]):
        code, line = typed(*words)
        assert (code, line.count("\n"), remedy in line) == (2, 1, True), line
    assert not before.parent.exists()
    subprocess.run(remedy, shell=True, check=True)  # noqa: S602
    run_id = MlflowClient().search_runs([experiment])[0].info.run_id
    assert mlflow.artifacts.list_artifacts(run_id=run_id)
    assert "its files are missing" not in typed("evaluate", "--model_name", "m")[1]
    shutil.rmtree(files)
    assert f"its files are missing; restore {files}" in typed("evaluate", "--model_name", "m")[1]


def test_the_description_of_a_version_is_bounded(folder: Path) -> None:
    MlflowClient().create_registered_model("m")
    MlflowClient().create_model_version("m", f"{folder}/files", description="scores of the test")
    version = aliases.candidate_version("m", 1)
    for number in range(50):
        aliases.tag_version(version, {}, description=f"PROMOTED: number {number}, {'x' * 100} (run [`a1`](#/runs/a1))")
    text = str(MlflowClient().get_model_version("m", "1").description)
    assert len(text) <= aliases.MAX_DESCRIPTION
    assert text.startswith("PROMOTED: number 49,")
    assert text.endswith("\n\nscores of the test")
    kept = [int(part.split()[2][:-1]) for part in text.split("\n\n")[:-1]]
    assert kept == list(range(49, 49 - len(kept), -1))


class Other(BaseHTTPRequestHandler):
    """Another program, with the same response to each request."""

    status, body = 200, b""

    def do_GET(self) -> None:
        self.send_response(self.status)
        self.end_headers()
        self.wfile.write(self.body)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.do_GET()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def other_program() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), Other) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (200, b"<html>Log in to the hotel's network</html>"),
        (200, b'{"experiments": [{"experiment_id": "0", "na'),
        (200, b""),
        (200, b'{"status": "ok"}'),
        (200, b'{"experiments": [{"experiment_id": "0", "name": "Default"}]}'),
        (200, b'{"experiments": 3}'),
        (403, b""),  # of macOS, at port 5000
    ],
)
def test_another_program_at_the_address_is_named(
    status: int, body: bytes, other_program: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Other, "status", status)
    monkeypatch.setattr(Other, "body", body)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", other_program)
    with pytest.raises(UserError, match=f"store {other_program} cannot be used: .*another program .*end it") as caught:
        open_store()
    assert "administrator" not in str(caught.value)
    with pytest.raises(Exception):  # noqa: B017, PT011 (the outbox retries after any)
        check_owner(MlflowClient(), "0" * 32, {""})


def test_a_model_whose_stored_files_differ_from_those_sent_is_logged_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logged, stored = iter(["m-1", "m-2"]), {"m-1": "other", "m-2": "sent"}
    deleted = list[str]()

    class Client:
        def get_logged_model(self, _: str) -> object:
            return type("Logged", (), {"tags": {registry.MODEL_DIGEST: "sent"}})

        def delete_logged_model(self, model_id: str) -> None:
            deleted.append(model_id)

    monkeypatch.setattr(registry, "MlflowClient", Client)
    monkeypatch.setattr(registry, "exported_program", lambda _: None)
    monkeypatch.setattr(registry, "_logged_model", lambda _: None)
    monkeypatch.setattr(registry, "log_model", lambda *_: next(logged))
    monkeypatch.setattr(registry, "_check_logged_model", lambda *_: None)
    monkeypatch.setattr(mlflow.artifacts, "download_artifacts", lambda uri, dst_path: f"{dst_path}/{uri[8:]}")
    monkeypatch.setattr(registry, "files_digest", lambda files: stored[files.name])
    trained = type("Trained", (), {"module": None})
    assert registry.log_and_check_model("r", trained, folder=folder) == "m-2"  # type: ignore[arg-type]
    assert deleted == ["m-1"]


def test_two_deliveries_at_once_deliver_each_run_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second has listed a run before the first delivers it."""
    offline = resolve({"tracking": "offline", "run_dir": str(folder / "runs")}).tracking
    with open_run(offline, Job("test", "n")) as run:
        run.log_metrics({"m": 1.0}, step=1)
    listed = run_folders(folder / "runs")
    sync(folder / "runs")
    (delivered,) = run_folders(folder / "runs")  # no training, which would be finished
    monkeypatch.setattr("freqfilter.pipelines.sync.run_folders", lambda _: listed)
    sync(folder / "runs")
    (stored,) = all_runs()
    assert stored.data.metrics == {"m": 1.0}
    assert list((folder / "runs").iterdir()) == [delivered]


def test_an_interrupted_delivery_leaves_no_running_run_and_is_repeated(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offline = resolve({"tracking": "offline", "run_dir": str(folder / "runs")}).tracking
    with open_run(offline, Job("test", "n")) as run:
        run.log_metrics({"m": 1.0}, step=1)

    def interrupt(*_: object) -> None:
        raise Interrupted(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr("freqfilter.pipelines.sync.sender", interrupt)
        with pytest.raises(Interrupted) as caught:
            sync(folder / "runs")
    assert caught.value.remedy == "python -m freqfilter sync"
    assert [run.info.status for run in all_runs()] == ["KILLED"]
    sync(folder / "runs")
    assert [run.data.metrics for run in all_runs()] == [{"m": 1.0}]


def test_a_percent_sign_in_the_address_of_a_store(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "100%41 a#b").mkdir()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/100%41 a#b/mlflow.db")
    with pytest.raises(UserError, match="MLflow decodes the % in this path; write %25 for it"):
        open_store()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/100%2541 a#b/mlflow.db")
    open_store()
    assert (folder / "100%41 a#b" / "mlflow.db.lock").exists()
    assert not (folder / "100A a#b").exists()


def test_a_registry_has_an_address_of_its_own(folder: Path, typed: Typed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", "sqlite:///~/registry.db")
    assert "not found" in typed("history")[1]
    assert (folder / "registry.db").exists()
    assert not (folder / "~").exists()
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", "http://127.0.0.1:9")
    assert "model registry http://127.0.0.1:9 does not respond" in typed("history")[1]


@pytest.mark.parametrize(
    ("state", "remedy"),
    [
        ("newer", "install the MLflow version that made it"),
        ("locked", "end the program that locks it"),
        ("text", "give the address of an MLflow database"),
    ],
)
def test_a_database_that_cannot_be_used_is_named_with_a_remedy(
    state: str, remedy: str, folder: Path, empty_store: Path, typed: Typed, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(empty_store, folder / "mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db?timeout=1")
    if state == "text":
        (folder / "mlflow.db").write_text("notes " * 100)
    else:
        with closing(sqlite3.connect(folder / "mlflow.db", isolation_level=None)) as store:
            store.execute(
                "UPDATE alembic_version SET version_num = 'of_the_future'" if state == "newer" else "SELECT 1"
            )
    with closing(sqlite3.connect(folder / "mlflow.db", isolation_level=None)) as store:
        if state == "locked":
            store.execute("BEGIN EXCLUSIVE")
        code, line = typed("history")
    assert (code, line.count("\n"), remedy in line, "SQL:" in line) == (2, 1, True, False), line
