"""Concurrent runs on one store: each has complete data and its own version."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tests import zygote
from tests.conftest import Server, all_runs, many, options
from tests.recovery.comparing import RICH, Outcome

pytestmark = [pytest.mark.slow, pytest.mark.soak]

CROWD = many(3, 16)


def train_at_once(folder: Path) -> None:
    command = [sys.executable, "-m", "freqfilter", "train", *options(RICH)]
    crowd = [
        zygote.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        for _ in range(CROWD)
    ]
    ends = [(process.communicate(timeout=900)[1], process.returncode) for process in crowd]
    assert [code for _, code in ends] == [0] * CROWD, ends


def assert_each_complete(whole: Outcome) -> None:
    runs = all_runs()
    assert len(runs) == CROWD
    for run in runs:
        whole.assert_same(run)
    versions = MlflowClient().search_model_versions("name = 'frequency-filter'")
    assert sorted(int(version.version) for version in versions) == list(range(1, CROWD + 1))


def test_concurrent_runs_create_a_missing_store(folder: Path, whole: Outcome, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/new/mlflow.db")
    train_at_once(folder)
    assert_each_complete(whole)


def test_concurrent_runs_on_a_server(
    server: Server, folder: Path, whole: Outcome, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.start()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.url)
    train_at_once(folder)
    assert_each_complete(whole)
