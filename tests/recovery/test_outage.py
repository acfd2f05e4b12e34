"""Outages of the tracking server interrupt no training and lose no metric."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tests.conftest import SEED, SMALL, Program, Server, Typed, all_runs, many, options, wait_for_line
from tests.recovery.comparing import RICH, Outcome, end_by, history

pytestmark = pytest.mark.slow

EPOCHS = many(75, 150)
LONG = SMALL | {"epochs": str(EPOCHS), "checkpoint_every": "50"}
# The command line with short timeouts.
HASTY = (
    "import freqfilter.tracking.run as r, freqfilter.tracking.lifecycle as o, freqfilter.tracking.client as s\n"
    "r.DELIVERY_TIMEOUT_S = o.DELIVERY_TIMEOUT_S = s.RETRY_TIMEOUT_S = 2\n"
    "from freqfilter.cli.main import main; main()"
)


@pytest.fixture
def at_server(server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.url)
    return server


def read_epochs(process: subprocess.Popen[str], n_epochs: int) -> None:
    """Read the output of ``n_epochs`` more epochs."""
    assert process.stdout
    n_read = 0
    for line in process.stdout:
        n_read += "  left " in line
        if n_read == n_epochs:
            return
    raise AssertionError("the process ended too early")


def assert_complete(run_id: str) -> None:
    run = MlflowClient().get_run(run_id)
    assert run.info.status == "FINISHED"
    for name in ("train/loss", "val/mse", "holdout/mse", "train/epoch_seconds"):
        assert [step for step, _ in history(run, name)] == list(range(1, EPOCHS + 1)), name


def test_an_unreachable_server_is_reported_in_one_line_and_no_file_is_written(
    at_server: Server, folder: Path, freqfilter: Program
) -> None:
    done = freqfilter("train", *options(SMALL))
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert f"tracking store {at_server.url} does not respond" in done.stderr
    assert "--tracking offline" in done.stderr
    assert done.stdout == ""
    assert list(folder.iterdir()) == []


def test_a_server_that_hangs_is_reported_in_one_line(at_server: Server, freqfilter: Program) -> None:
    at_server.start()
    at_server.send(signal.SIGSTOP)
    started = time.monotonic()
    done = freqfilter("train", *options(SMALL))
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "does not respond" in done.stderr
    assert time.monotonic() - started < 120  # MLflow alone would take many minutes


@pytest.mark.soak
@pytest.mark.parametrize("number", range(many(2, 20)))
def test_training_continues_through_outages_and_each_point_arrives_once(
    number: int, at_server: Server, folder: Path
) -> None:
    chance = random.Random(f"{SEED} outages {number}")
    outages = [("killed", "paused")[(number + n) % 2] for n in range(chance.randint(1, 2))]
    at_server.start()
    process = wait_for_line(f"/{EPOCHS} ", [sys.executable, "-m", "freqfilter", "train", *options(LONG)], folder)
    for outage in outages:
        read_epochs(process, chance.randint(1, EPOCHS // 8))
        if outage == "killed":
            at_server.kill()
        else:
            at_server.send(signal.SIGSTOP)
        read_epochs(process, chance.randint(1, EPOCHS // 4))  # training continues meanwhile
        if outage == "killed":
            at_server.start()
        else:
            at_server.send(signal.SIGCONT)
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    (run,) = all_runs()
    assert_complete(run.info.run_id)
    assert len(MlflowClient().search_model_versions()) == 1
    assert list((folder / "runs").iterdir()) == []


def test_a_server_that_is_down_at_the_end_receives_everything_later(
    at_server: Server, folder: Path, freqfilter: Program, whole: Outcome
) -> None:
    at_server.start()
    process = wait_for_line("epoch  2/12", [sys.executable, "-c", HASTY, "train", *options(RICH)], folder)
    at_server.kill()
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 2
    (folder_of_run,) = (folder / "runs").iterdir()
    last = output.splitlines()[-1]
    assert "the tracking store did not accept" in last
    assert "python -m freqfilter sync" in last
    assert "Traceback" not in output

    assert "does not respond" in freqfilter("sync").stderr
    at_server.start()
    assert MlflowClient().get_run(folder_of_run.name).info.status == "RUNNING"
    # As MLflow does at the exit of a process whose store is back.
    MlflowClient().set_terminated(folder_of_run.name, "FINISHED")
    done = freqfilter("sync")
    assert done.returncode == 0, done.stderr
    assert f"run {folder_of_run.name} is delivered: FINISHED, registered: frequency-filter version 1" in done.stdout
    whole.assert_same(MlflowClient().get_run(folder_of_run.name))
    assert list((folder / "runs").iterdir()) == []
    assert "nothing to sync" in freqfilter("sync").stdout


def test_offline_runs_are_delivered_as_if_they_had_been_online(
    folder: Path, freqfilter: Program, whole: Outcome, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = os.environ["MLFLOW_TRACKING_URI"]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")  # no server
    offline = ["--tracking", "offline"]
    done = freqfilter("train", *options(RICH), *offline)
    assert done.returncode == 0, done.stderr
    assert "python -m freqfilter sync" in done.stdout
    end_by(
        wait_for_line("epoch  4/12", [sys.executable, "-m", "freqfilter", "train", *options(RICH), *offline], folder),
        signal.SIGKILL,
    )
    done = freqfilter("resume", "auto", *options(RICH), *offline)
    assert done.returncode == 0, done.stderr
    assert "resuming after epoch" in done.stdout

    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert all_runs() == []
    done = freqfilter("sync")
    assert done.returncode == 0, done.stderr
    runs = all_runs()
    assert len(runs) == 2
    for run in runs:
        assert run.data.params["tracking"] == "offline"
        run.data.params["tracking"] = "online"
        whole.assert_same(run)
    names = [run.info.run_name for run in runs]
    assert names[0].startswith("default ")
    assert list((folder / "runs").iterdir()) == []


def test_an_interrupted_offline_run_is_delivered_and_can_be_resumed(
    folder: Path, freqfilter: Program, whole: Outcome
) -> None:
    command = [sys.executable, "-m", "freqfilter", "train", *options(RICH), "--tracking", "offline"]
    end_by(wait_for_line("epoch  4/12", command, folder), signal.SIGTERM)
    done = freqfilter("sync")
    assert done.returncode == 0, done.stderr
    (run,) = all_runs()
    assert run.info.status == "KILLED"
    assert f"resume with: python -m freqfilter resume {run.info.run_id}" in done.stdout
    done = freqfilter("resume", run.info.run_id)
    assert done.returncode == 0, done.stderr
    run = MlflowClient().get_run(run.info.run_id)
    run.data.params["tracking"] = "online"
    whole.assert_same(run)


def test_a_corrupt_outbox_does_not_block_other_runs(folder: Path, freqfilter: Program, typed: Typed) -> None:
    assert freqfilter("train", *options(SMALL), "--tracking", "offline").returncode == 0
    corrupt = folder / "runs" / "0123" / "outbox.jsonl"
    corrupt.parent.mkdir()
    corrupt.write_text("nonsense\n")
    for job in ("sync", "doctor"):
        code, line = typed(job)
        assert code == 2
        assert f"{corrupt}: corrupt line" in line
    assert [run.info.status for run in all_runs()] == ["FINISHED"]
    assert list((folder / "runs").iterdir()) == [corrupt.parent]
