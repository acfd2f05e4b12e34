"""The doctor finds stale runs and closes them."""

from __future__ import annotations

import getpass
import signal
import sys
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient

from freqfilter.atomic_io import HOST
from tests.conftest import ROOT, Program, Typed, all_runs, options, wait_for_line
from tests.recovery.comparing import RICH, end_by

pytestmark = pytest.mark.slow

LAUNCHED = {"mlflow.source.type": "PROJECT", "mlflow.source.name": f"file://{ROOT}", "mlflow.user": getpass.getuser()}
ENDLESS = RICH | {"epochs": "100000"}


def test_runs_of_dead_processes_and_of_failed_launches_are_closed_and_no_others(
    folder: Path, freqfilter: Program, mlflow_run: Program
) -> None:
    command = [sys.executable, "-m", "freqfilter", "train", *options(ENDLESS)]
    end_by(wait_for_line("epoch      2/", command, folder), signal.SIGKILL)
    dead = all_runs()[0].info.run_id
    process = wait_for_line("epoch      2/", command, folder)
    process.send_signal(signal.SIGSTOP)  # alive, without using the processor
    try:
        running = all_runs()[-1].info.run_id
        launched = mlflow_run("--env-manager", "conda")
        assert launched.returncode != 0, launched.stderr
        orphans = [run.info.run_id for run in all_runs() if run.info.run_id not in (dead, running)]
        assert len(orphans) == 1, launched.stderr
        (orphan,) = orphans
        client = MlflowClient()
        of_another_project = client.create_run("0", tags=LAUNCHED | {"mlflow.source.name": "file:///another/project"})
        by_hand = client.create_run("0")
        stale = folder / "runs" / dead / "checkpoints" / f".epoch_0001.pt.{HOST}.999999999.x.part"
        stale.touch()
        done = freqfilter("doctor")
        assert done.returncode == 0, done.stderr
        assert not stale.exists()
        status = {run.info.run_id: run.info.status for run in all_runs()}
        assert status == {
            dead: "KILLED",
            running: "RUNNING",
            orphan: "FAILED",
            of_another_project.info.run_id: "RUNNING",
            by_hand.info.run_id: "RUNNING",
        }
        lines = [line for line in done.stdout.splitlines() if " run " in line]
        assert f"resume with: python -m freqfilter resume {dead}" in next(line for line in lines if dead in line)
        assert next(line for line in lines if orphan in line).startswith("fixed")
        assert "is running" in next(line for line in lines if running in line)
        assert "fixed" not in freqfilter("doctor").stdout
    finally:
        end_by(process, signal.SIGKILL)


def test_a_launch_that_may_still_be_running_is_left_alone(
    folder: Path, typed: Typed, monkeypatch: pytest.MonkeyPatch
) -> None:
    MlflowClient().create_run("0", tags=LAUNCHED)
    monkeypatch.setattr("freqfilter.tracking.queries.launcher_start_times", lambda: [time.time() - 60])
    assert typed("doctor") == (0, "")
    assert [run.info.status for run in all_runs()] == ["RUNNING"]
    monkeypatch.setattr("freqfilter.tracking.queries.launcher_start_times", lambda: [time.time() + 60])
    assert typed("doctor") == (0, "")
    assert [run.info.status for run in all_runs()] == ["FAILED"]


def test_problems_that_only_a_user_can_fix_are_an_error(
    folder: Path, typed: Typed, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setattr("freqfilter.pipelines.doctor.version", lambda name: "0.0.1")
    code, line = typed("doctor", "--run_dir", "/proc/x")
    assert code == 2
    assert line.startswith("freqfilter: 3 problems found; first: installation: click 0.0.1 where ")


def test_versions_within_the_required_ranges_pass_and_others_are_reported(
    folder: Path, typed: Typed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("freqfilter.pipelines.doctor.version", lambda name: "2.13.0+cpu")
    stated = ["torch<3,>=2.13.0", 'onnx>=9; extra == "onnx"']
    monkeypatch.setattr("freqfilter.pipelines.doctor.requires", lambda name: stated)
    assert typed("doctor") == (0, "")
    stated[0] = "torch<2.13,>=2.1"
    code, line = typed("doctor")
    assert code == 2
    assert "installation: torch 2.13.0+cpu where <2.13,>=2.1 is required; run make install or pip install -c" in line
    monkeypatch.setattr("freqfilter.pipelines.doctor.__file__", str(folder / "site-packages/freqfilter/pipelines/x.py"))
    assert typed("doctor")[1].rstrip().endswith("is required; run pip install 'torch<2.13,>=2.1'")
