"""One process works on a run: by a lock where its folder is shared, by the store's owner elsewhere."""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from mlflow import MlflowClient

from freqfilter.config import TrackingParams, resolve
from freqfilter.errors import UserError
from freqfilter.tracking import lifecycle
from freqfilter.tracking.lifecycle import Job, open_run
from freqfilter.tracking.owner import LOCK, RunLock, RunOwner
from tests import zygote
from tests.conftest import SEED, SMALL, Typed, all_runs, interrupt_after_an_epoch, many, options, start, wait_for_line
from tests.recovery.comparing import RICH, Outcome, end_by

pytestmark = pytest.mark.slow

PROGRAM = [sys.executable, "-m", "freqfilter"]
# A process in PID and time namespaces of its own: it does not see the other's id, and its clock differs by a day.
CONTAINER = ["unshare", "--pid", "--fork", "--time", "--boottime", "86400"]


def tracking_params(folder: Path) -> TrackingParams:
    return resolve({"experiment": "e", "run_dir": str(folder / "runs")}).tracking


def can_unshare() -> bool:
    return bool(shutil.which("unshare")) and subprocess.run([*CONTAINER, "true"], check=False).returncode == 0


@pytest.mark.soak
@pytest.mark.parametrize("number", range(many(1, 50)))
def test_of_two_processes_that_resume_a_run_at_once_one_does(number: int, whole: Outcome, folder: Path) -> None:
    chance = random.Random(f"{SEED} owners {number}")
    epoch = chance.randint(2, 9)
    end_by(wait_for_line(f"epoch {epoch:2}/12", [*PROGRAM, "train", *options(RICH)], folder), signal.SIGKILL)
    run_id = all_runs()[-1].info.run_id
    words = [*PROGRAM, "resume", run_id]
    # Every second time, the other process is in a container, started anew.
    separate = number % 2 == 1 and can_unshare()
    other = subprocess.Popen if separate else zygote.Popen
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "cwd": folder}
    processes = [other([*CONTAINER, *words] if separate else words, **pipes)]  # type: ignore[operator]
    time.sleep(chance.random() * (8 if separate else 1))
    processes.append(zygote.Popen(words, **pipes))  # type: ignore[arg-type]
    outputs = [process.communicate(timeout=240)[0] for process in processes]
    codes = [process.returncode for process in processes]
    assert sorted(codes) == [0, 2], outputs
    refused = outputs[codes.index(2)].splitlines()[-1]
    assert f"run {run_id} is running in process" in refused or f"run {run_id} has finished" in refused
    whole.assert_same(MlflowClient().get_run(run_id))
    assert list((folder / "runs").iterdir()) == []


def test_the_doctor_of_a_container_leaves_a_running_training_alone(folder: Path) -> None:
    if not can_unshare():
        pytest.skip("executed by test_of_two_processes_that_resume_a_run_at_once_one_does")
    endless = RICH | {"epochs": "100000", "early_stopping_patience": "0"}
    process = wait_for_line("epoch      2/", [*PROGRAM, "train", *options(endless)], folder)
    try:
        done = subprocess.run([*CONTAINER, *PROGRAM, "doctor"], cwd=folder, capture_output=True, text=True, check=False)
        (run,) = all_runs()
        assert f"run {run.info.run_id} ({run.info.run_name}) is running" in done.stdout, done.stdout + done.stderr
        assert run.info.status == "RUNNING"
    finally:
        end_by(process, signal.SIGKILL)


def test_a_process_whose_run_is_taken_over_stops_before_its_next_delivery(
    whole: Outcome, folder: Path, typed: Typed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lifecycle, "TAKE_OVER_S", 0.5)
    former = wait_for_line("epoch  6/12", [*PROGRAM, "train", *options(RICH)], folder)
    former.send_signal(signal.SIGSTOP)
    client, (run,) = MlflowClient(), all_runs()
    owner = json.loads(run.data.tags["process"])
    client.set_tag(run.info.run_id, "process", json.dumps(owner | {"run_dir": "/on/another/machine"}))
    words = ("resume", run.info.run_id, "--run_dir", "runs_here")
    code, line = typed(*words)
    assert (code, "add --take-over" in line) == (2, True)
    assert not (folder / "runs_here" / run.info.run_id).exists()
    assert typed("doctor", "--run_dir", "runs_here") == (0, "")
    assert all_runs()[0].info.status == "RUNNING"
    assert typed(*words, "--take-over") == (0, "")
    former.send_signal(signal.SIGCONT)
    output, _ = former.communicate(timeout=120)
    assert former.returncode == 2, output
    assert output.splitlines()[-1].startswith(f"freqfilter: run {run.info.run_id} was taken over by process ")
    assert "Traceback" not in output
    whole.assert_same(client.get_run(run.info.run_id))
    # The former owner's folder has what was not delivered; it stays undelivered.
    code, line = typed("sync")
    assert (code, "was taken over by" in line) == (2, True)
    whole.assert_same(client.get_run(run.info.run_id))


def test_a_file_system_without_locks_is_refused_before_a_run_exists(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("freqfilter.tracking.owner.fcntl.flock", no_locks)
    with (
        pytest.raises(UserError, match="has no file locks; use another folder"),
        open_run(tracking_params(folder), Job("test", "n")),
    ):
        pass
    assert all_runs() == []


def test_a_lock_whose_folder_was_deleted_meanwhile_is_not_taken(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with RunLock(folder) as lock:
        with pytest.raises(BlockingIOError):
            RunLock(folder)
        (folder / "kept").touch()
    assert (folder / LOCK).exists(), "the folder of an unfinished run stays"
    lock = RunLock(folder)
    lock.remove_folder()
    assert not folder.exists()


@contextmanager
def launched(run_id: str) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_RUN_ID", run_id)
        yield


def run_in_state(state: str, folder: Path) -> tuple[str, RunLock | None]:
    """A run of ``evaluate`` with p=1 in a state, and its lock if it is running."""
    client = MlflowClient()
    if state == "fresh":
        return str(client.create_run("0").info.run_id), None
    lock = None
    try:
        with open_run(tracking_params(folder), Job("evaluate", "n", {"p": "1"})) as run:
            run.log_metrics({"m": 1.0}, step=0)
            run.deliver()
            (run.folder / "checkpoints").mkdir()
            (run.folder / "checkpoints" / "kept.pt").touch()
            if state != "finished":
                raise UserError("stopped")
    except UserError:
        pass
    if state == "running":
        lock = RunLock(folder / "runs" / run.run_id)
    if state in ("running", "killed"):
        client.update_run(run.run_id, "RUNNING" if state == "running" else "KILLED")
    if state == "deleted":
        client.delete_run(run.run_id)
    return run.run_id, lock


@pytest.mark.parametrize("state", ["fresh", "running", "killed", "failed", "finished", "deleted"])
@pytest.mark.parametrize(
    ("job", "repeats"),
    [
        (Job("evaluate", "n", {"p": "1"}), True),
        (Job("evaluate", "n", {"p": "2"}), False),
        (Job("prepare", "n", {"p": "1"}), False),
        (Job("evaluate", "n", {"p": "1"}, repeatable=False), False),
    ],
    ids=["same", "other parameters", "other job", "not repeatable"],
)
def test_a_job_takes_a_run_that_is_new_or_its_own_and_unfinished(
    state: str, job: Job, repeats: bool, folder: Path
) -> None:
    run_id, lock = run_in_state(state, folder)
    client = MlflowClient()
    before = client.get_run(run_id)
    if state == "fresh" or (repeats and state in ("killed", "failed")):
        with launched(run_id), open_run(tracking_params(folder), job) as run:
            run.log_metrics({"m": 1.0}, step=0)
        assert run.run_id == run_id
        assert client.get_run(run_id).info.status == "FINISHED"
        assert len(client.get_metric_history(run_id, "m")) == 1, "a repeated point is logged once"
        return
    with (
        launched(run_id),
        pytest.raises(UserError, match=f"run {run_id} is .*; start a new run"),
        open_run(tracking_params(folder), job),
    ):
        pass
    after = client.get_run(run_id)
    assert after.to_dictionary() == before.to_dictionary()
    if state != "finished":
        assert (folder / "runs" / run_id / "checkpoints" / "kept.pt").exists()
    if lock:
        lock.release()


def test_entry_points_leave_an_interrupted_training_as_it_is(
    folder: Path, typed: Typed, monkeypatch: pytest.MonkeyPatch, whole: Outcome
) -> None:
    with interrupt_after_an_epoch(signal.SIGTERM):
        assert start("train", *options(RICH)) == 143
    (run,) = all_runs()
    run_id = run.info.run_id
    for words in (
        ("prepare", "--output", "data.npz"),
        ("limit",),
        ("find_learning_rate", *options(SMALL)),
        ("train", "--seeds", "[1, 2]", *options(RICH)),
        ("ablate", "--values", "{cell: gru}", *options(RICH)),
        ("train", *options(RICH | {"epochs": "13"})),
    ):
        monkeypatch.setenv("MLFLOW_RUN_ID", run_id)
        code, lines = typed(*words)
        assert code == 2, words
        assert lines.splitlines()[-1].startswith(f"freqfilter: run {run_id} "), words
    monkeypatch.delenv("MLFLOW_RUN_ID")
    assert {path.name for path in folder.iterdir()} == {"mlruns", "runs"}, "no file of prepare or limit"
    assert MlflowClient().get_run(run_id).to_dictionary() == run.to_dictionary()
    assert typed("resume", run_id) == (0, "")
    whole.assert_same(MlflowClient().get_run(run_id))


def test_the_owner_of_an_old_run_is_read(folder: Path) -> None:
    tag = json.dumps({"host": "h", "pid": 7, "started": 1.5, "run_dir": "/runs"})
    assert RunOwner.from_tags({"process": tag}) == RunOwner("h", 7, "/runs", id="")
    assert RunOwner.from_tags({"process": "[]"}) is None
    assert RunOwner.from_tags({}) is None
