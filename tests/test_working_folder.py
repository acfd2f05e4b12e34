"""Files in the working folder that have the names of modules."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient

from freqfilter.pipelines.serve import run_server
from freqfilter.process import WAITER

# Modules of libraries, and those of the standard library that `python -m` does not import before it starts a program.
NAMES = (
    "click",
    "copy",
    "json",
    "logging",
    "mlflow",
    "pandas",
    "queue",
    "random",
    "select",
    "signal",
    "socket",
    "tqdm",
)


@pytest.fixture
def namesakes(folder: Path) -> Path:
    """The working folder, with a file for each of ``NAMES``."""
    for name in NAMES:
        (folder / f"{name}.py").write_text(f"raise SystemExit('{name}.py of the working folder was imported')\n")
    return folder


def test_the_command_does_not_import_files_of_the_working_folder(namesakes: Path) -> None:
    command = [sys.executable, "-m", "freqfilter", "init_store"]
    done = subprocess.run(command, cwd=namesakes, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("tracking store: ")


def test_the_process_that_waits_for_a_launcher_does_not_import_files_of_the_working_folder(
    namesakes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It finds the package where this process has found it, installed or not."""
    run = MlflowClient().create_run(mlflow.set_experiment("e").experiment_id)
    monkeypatch.delenv("PYTHONPATH")
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    command = [sys.executable, "-P", "-c", WAITER, run.info.run_id, "KILLED", str(ended.pid)]
    done = subprocess.run(command, cwd=namesakes, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert MlflowClient().get_run(run.info.run_id).info.status == "KILLED"


def test_a_server_and_its_processes_do_not_import_files_of_the_working_folder(
    namesakes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(namesakes)
    code = "import random, subprocess, sys; sys.exit(subprocess.call([sys.executable, '-c', 'import random']))"
    assert run_server([sys.executable, "-c", code], {}) == 0
    assert os.environ.get("PYTHONSAFEPATH") is None
