"""Signals, launchers that end early and closed pipes, for the program as users start it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from mlflow import MlflowClient

from freqfilter.process import RAISE_AGAIN_S, Interrupted, shutdown
from tests import zygote
from tests.conftest import ROOT, SMALL, Program, all_runs, options, wait_for_line

pytestmark = pytest.mark.slow

ENDLESS = SMALL | {"epochs": "100000", "early_stopping_patience": "0"}


def under_mlflow() -> list[str]:
    words = [word for name, value in ENDLESS.items() for word in ("-P", f"{name}={value}")]
    return [sys.executable, "-m", "mlflow", "run", str(ROOT), "--env-manager", "local", *words]


def wait_for_status(status: str) -> None:
    deadline = time.monotonic() + 60  # mlflow sets FAILED, which is corrected when it has ended
    while [run.info.status for run in all_runs()] != [status]:
        assert time.monotonic() < deadline, all_runs()[0].info.status
        time.sleep(0.2)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_stopped_run_is_killed_and_keeps_its_metrics(number: signal.Signals, code: int, folder: Path) -> None:
    process = wait_for_line("  left ", [sys.executable, "-m", "freqfilter", "train", *options(ENDLESS)], folder)
    for _ in range(3):  # repeated signals are harmless
        process.send_signal(number)
        time.sleep(0.05)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == code, output
    assert "Traceback" not in output
    (run,) = all_runs()
    assert run.info.status == "KILLED"
    assert len(MlflowClient().get_metric_history(run.info.run_id, "train/loss")) >= 1
    assert MlflowClient().search_model_versions() == []


def test_ctrl_c_during_the_first_imports_prints_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "click.py").write_text("import signal; signal.raise_signal(signal.SIGINT)")
    command = [sys.executable, "-m", "freqfilter", "history"]
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    done = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")


def test_an_ended_command_collects_no_garbage() -> None:
    """The interpreter's last collection would traverse all objects of all libraries."""
    code = (
        "import atexit, gc; atexit.register(lambda: print(gc.get_freeze_count() > 0)); "
        "from freqfilter.cli import start; start()"
    )
    command = [sys.executable, "-c", code, "--version"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines()[-1] == "True"


class InterruptedInCallback:
    def __del__(self) -> None:
        signal.raise_signal(signal.SIGINT)


def test_an_interruption_that_a_library_drops_is_raised_again(capfd: pytest.CaptureFixture[str]) -> None:
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM)
    before = {number: signal.getsignal(number) for number in numbers}
    cleaned_up = False
    try:
        with pytest.raises(Interrupted, match="SIGINT"), shutdown.installed():  # noqa: PT012
            InterruptedInCallback()
            assert shutdown.received
            try:
                time.sleep(60)
            finally:
                with suppress(ValueError):
                    time.sleep(2 * RAISE_AGAIN_S)  # not interrupted again
                    raise ValueError
                cleaned_up = True
        assert cleaned_up
        assert capfd.readouterr().err == ""  # of sys.unraisablehook
        assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)
    finally:  # an interrupted program ignores further signals
        for number, handler in before.items():
            signal.signal(number, handler)


def catches(process: psutil.Process, number: signal.Signals) -> bool:
    """Whether a process has a handler for a signal."""
    caught = re.search(r"^SigCgt:\s*(\w+)", Path(f"/proc/{process.pid}/status").read_text(), re.MULTILINE)
    assert caught
    return bool(int(caught[1], 16) >> (number - 1) & 1)


def wait_until_signals_are_handled(launcher: int) -> None:
    """Wait until the program handles signals, which is before it imports its commands."""
    deadline = time.monotonic() + 60
    while not any(catches(child, signal.SIGTERM) for child in psutil.Process(launcher).children(recursive=True)):
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("moment", ["  left ", "Running command"])
def test_ctrl_c_under_mlflow_run_ends_the_run_killed(moment: str, folder: Path) -> None:
    process = wait_for_line(moment, under_mlflow(), folder, start=subprocess.Popen)
    wait_until_signals_are_handled(process.pid)
    os.killpg(process.pid, signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 1
    wait_for_status("KILLED")


def test_a_run_whose_launcher_is_killed_stops(folder: Path) -> None:
    process = wait_for_line("  left ", under_mlflow(), folder, start=subprocess.Popen)
    process.kill()
    process.communicate(timeout=60)  # the program holds the other end of the pipe until it ends
    wait_for_status("KILLED")


def test_a_signal_that_comes_too_late_leaves_a_finished_run(freqfilter: Program, folder: Path) -> None:
    """A signal during registration does not stop the run: it has a version and is finished."""
    command = [sys.executable, "-m", "freqfilter", "train", *options(SMALL)]
    process = wait_for_line("scoring the best weights", command, folder)
    while not all_runs()[0].outputs.model_outputs:
        time.sleep(0.02)
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert (process.returncode, all_runs()[0].info.status) == (0, "FINISHED")
    assert len(MlflowClient().search_model_versions()) == 1


def test_a_closed_pipe_does_not_end_the_run(folder: Path) -> None:
    command = [sys.executable, "-m", "freqfilter", "train", *options(SMALL)]
    process = zygote.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout
    process.stdout.readline()
    process.stdout.close()
    process.wait(timeout=60)
    assert [run.info.status for run in all_runs()] == ["FINISHED"]
