"""Registries whose versions, aliases or files are gone: one rule for the newest version, a way out of each state."""

from __future__ import annotations

import csv
import io
import shutil
import sqlite3
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import mlflow
import pytest
from filelock import FileLock, Timeout
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

import freqfilter
from freqfilter.errors import UserError
from freqfilter.tracking.aliases import champion_lock
from tests.conftest import Typed, all_runs, options, say
from tests.promotion.making import BOUNDS, NAME, SETTING, aliases, module_of, register, setting, version

pytestmark = pytest.mark.slow


def dangling(alias: str, number: int) -> None:
    """Set an alias to a version that does not exist, as a registry without foreign keys can."""
    with sqlite3.connect("mlflow.db") as store:
        columns = [row[1] for row in store.execute("PRAGMA table_info(registered_model_aliases)")]
        values = {"name": NAME, "alias": alias, "version": number, "workspace": "default"}
        store.execute(
            f"INSERT OR REPLACE INTO registered_model_aliases ({', '.join(columns)}) "  # noqa: S608 (MLflow's columns)
            f"VALUES ({', '.join('?' for _ in columns)})",
            [values[column] for column in columns],
        )
    store.close()


@pytest.mark.parametrize("dangles", [False, True])
def test_every_command_takes_the_newest_version_that_exists(
    dangles: bool,
    registry: Path,
    empty_store: Path,
    typed: Typed,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    newest = register(module_of(2), setting())
    MlflowClient().delete_model_version(NAME, str(newest))
    if dangles:
        dangling("candidate", newest)
    assert freqfilter.load(NAME).uri == version(2).uri
    assert "frequency-filter version 2" in say(["export"], capsys, monkeypatch)[1]
    (registry / "other.db").write_bytes(empty_store.read_bytes())
    assert typed("copy", "--to", f"sqlite:///{registry}/other.db") == (0, "")
    (copied,) = MlflowClient(f"sqlite:///{registry}/other.db").search_model_versions(f"name = '{NAME}'")
    assert copied.tags["model_sha256"] == version(2).tags["model_sha256"]
    assert "models:/frequency-filter/2" in say(["evaluate"], capsys, monkeypatch)[1]
    assert all_runs()[-1].data.params["version"] == "2"
    assert "PROMOTED: frequency-filter version 2" in say(["promote", *BOUNDS], capsys, monkeypatch)[1]
    # The alias follows the next registration.
    assert aliases().get("candidate") == (newest if dangles else None)
    later = register(module_of(1), setting())
    assert aliases()["candidate"] == later


def test_a_deleted_champion_has_a_way_out(
    registry_with: Callable[[int | None], Path],
    typed: Typed,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    registry_with(2)
    spare = register(module_of(1), setting())
    MlflowClient().delete_model_version(NAME, "2")
    for words in (["serve"], ["compare", "--runs", "@champion, 1"]):
        code, line = typed(*words)
        assert (code, line.count("\n")) == (2, 1)
        assert "no version has the alias champion, or it was deleted" in line
        assert "`freqfilter promote` or `freqfilter rollback --version N`" in line
    assert typed("rollback") == (0, "")
    assert aliases()["champion"] == 1
    for alias in aliases():
        MlflowClient().delete_registered_model_alias(NAME, alias)
    code, line = typed("rollback")
    assert (code, line.count("\n"), "choose one with --version N" in line) == (2, 1, True)
    code, output, _ = say(["promote", "--version", str(spare), *BOUNDS], capsys, monkeypatch)
    assert code == 0, output
    assert "version 1, the last champion, was deleted or lost its alias" in output
    dangling("champion", 2)
    assert typed("promote", "--version", "1", *BOUNDS) == (0, "")
    assert aliases()["champion"] == 1


def test_a_champion_that_cannot_be_loaded_does_not_stop_a_promotion(
    registry_with: Callable[[int | None], Path],
    typed: Typed,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    registry_with(1)
    broken = register(module_of(1), setting())
    MlflowClient().set_registered_model_alias(NAME, "champion", str(broken))  # moved by hand
    logged = MlflowClient().get_logged_model(version(broken).source.removeprefix("models:/"))
    shutil.rmtree(logged.artifact_location.removeprefix("file://"))
    code, line = typed("serve")
    assert (code, line.count("\n")) == (2, 1)
    assert "its files are missing; restore " in line
    assert line.endswith(", or use a version that has its files, the newest: 2, 1\n")
    code, output, _ = say(["promote", "--version", "2", *BOUNDS], capsys, monkeypatch)
    assert code == 0, output
    assert "–        better than the champion: the champion could not be loaded" in output
    assert (aliases()["champion"], aliases()["previous"]) == (2, broken)
    report = all_runs()[-1].data.tags["mlflow.note.content"]
    assert "Not compared: the champion could not be loaded" in report
    assert "better than the champion | not checked" in report.replace("&nbsp;&nbsp;", "")
    # A candidate that is not good enough is rejected all the same.
    MlflowClient().set_registered_model_alias(NAME, "champion", str(broken))
    code, output, _ = say(["promote", "--version", "1", "--max_mse_ratio", "1.0001"], capsys, monkeypatch)
    assert (code, "REJECTED" in output) == (1, True)
    assert typed("rollback", "--version", "1") == (0, "")
    assert aliases()["champion"] == 1


def test_a_champion_that_cannot_be_read_at_present_is_no_lost_champion(
    registry_with: Callable[[int | None], Path], typed: Typed, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry_with(1)
    download = mlflow.artifacts.download_artifacts

    def unreachable(uri: str, **options: object) -> str:
        if uri == f"models:/{NAME}/1":
            raise MlflowException("the bucket does not respond")
        return str(download(uri, **options))

    monkeypatch.setattr(mlflow.artifacts, "download_artifacts", unreachable)
    code, line = typed("promote", "--version", "2", *BOUNDS)
    assert code == 2
    assert "the champion cannot be read, no decision was made" in line
    assert aliases()["champion"] == 1


def test_a_version_outlives_its_training_run(
    registry_with: Callable[[int | None], Path],
    typed: Typed,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    registry_with(1)
    run_id = version(2).run_id
    MlflowClient()._tracking_client.store._hard_delete_run(run_id)  # as `mlflow gc` does
    gone = f"run {run_id}, which trained models:/{NAME}/2, was deleted from the store; name other runs"
    code, line = typed("compare", "--runs", "1, 2")
    assert (code, line.count("\n"), gone in line) == (2, 1, True)
    assert "the file is not logged as an artifact of the training" in say(["export"], capsys, monkeypatch)[1]
    assert Path("filter.onnx").exists()
    assert "onnx" not in version(2).tags
    assert typed("promote", "--version", "2", *BOUNDS) == (0, "")
    assert typed("history") == (0, "")


def test_a_renamed_model_keeps_its_history(
    registry_with: Callable[[int | None], Path],
    typed: Typed,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    registry_with(2)
    assert typed("rollback") == (0, "")
    assert typed("promote", "--version", "2", *BOUNDS) == (0, "")

    def history(name: str) -> list[tuple[str, str, str]]:
        code, printed, _ = say(["history", "--csv", "--model_name", name], capsys, monkeypatch)
        assert code == 0
        return [(row["event"], row["version"], row["champion_after"]) for row in csv.DictReader(io.StringIO(printed))]

    before = history(NAME)
    assert sorted(event for event, *_ in before) == 3 * ["PROMOTED"] + ["ROLLED BACK"] + 2 * ["registered"]
    MlflowClient().rename_registered_model(NAME, "renamed")
    assert history("renamed") == before
    # Another model of the former name has its own.
    assert typed("train", *options(SETTING | {"epochs": "1"})) == (0, "")
    assert history(NAME) == [("registered", "1", "")]
    assert history("renamed") == before


@pytest.mark.parametrize("words", [["promote"], ["rollback", "--version", "1"]])
def test_a_lock_that_cannot_be_taken_is_reported_before_the_work(
    words: list[str], registry_with: Callable[[int | None], Path], typed: Typed
) -> None:
    registry = registry_with(2)
    MlflowClient().delete_registered_model_alias(NAME, "champion")
    lock = registry / "mlflow.db.lock"
    lock.unlink(missing_ok=True)
    lock.mkdir()  # permissions do not stop root
    n_runs = len(all_runs())
    code, line = typed(*words)
    assert (code, line.count("\n")) == (2, 1)
    assert f"{lock}: cannot be locked: Is a directory" in line
    assert len(all_runs()) == n_runs


def test_the_lock_is_beside_an_sqlite_store_else_in_the_users_state_folder(
    registry: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unwritable, state = tmp_path / "file", tmp_path / "state"
    unwritable.touch()
    for name in ("HOME", "XDG_CACHE_HOME", "XDG_STATE_HOME"):
        monkeypatch.setenv(name, str(unwritable))
    with champion_lock():
        assert is_held(registry / "mlflow.db.lock")
    assert not is_held(registry / "mlflow.db.lock")
    monkeypatch.setattr(mlflow, "get_registry_uri", lambda: "http://127.0.0.1:9")
    with pytest.raises(UserError, match="set XDG_STATE_HOME to a folder that you can write"), champion_lock():
        pass
    monkeypatch.setenv("XDG_STATE_HOME", str(state))
    with champion_lock():
        assert [is_held(path) for path in state.rglob("*.lock")] == [True]


@pytest.mark.parametrize(
    "words",
    [
        *(["promote"], ["serve", "--version", "1"], ["evaluate"], ["compare"], ["export"]),
        *(["copy", "--to", "sqlite:///other.db"], ["rollback", "--version", "1"]),
    ],
)
def test_a_missing_folder_of_temporary_files_is_reported_before_the_work(
    words: list[str], registry: Path, typed: Typed, monkeypatch: pytest.MonkeyPatch
) -> None:
    (registry / "file").touch()  # PyTorch would create a folder
    monkeypatch.setattr(tempfile, "tempdir", str(registry / "file"))
    runs = {run.info.run_id for run in all_runs()}
    code, line = typed(*words)
    assert (code, line.count("\n")) == (2, 1)
    assert "no temporary folder: Not a directory; set TMPDIR to a folder with space" in line
    assert {run.info.run_id for run in all_runs()} == runs


def test_a_small_folder_of_temporary_files_is_reported_before_the_work(
    registry: Path, typed: Typed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=4096))
    for words in (["promote"], ["serve", "--version", "1"]):
        code, line = typed(*words)
        assert (code, line.count("\n")) == (2, 1)
        assert "0.0 MB free where 8 MB are needed; set TMPDIR to a folder with more space" in line


def is_held(lock: Path) -> bool:
    """Whether a process has locked a file."""
    try:
        FileLock(lock).acquire(blocking=False).lock.release()
    except Timeout:
        return True
    return False
