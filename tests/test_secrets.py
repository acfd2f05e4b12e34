"""Secrets of an address or the environment do not reach a run, its files or a log."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient

from freqfilter.pipelines import serve
from tests import zygote
from tests.conftest import ROOT, SMALL, Program, Server, all_runs, options

pytestmark = pytest.mark.slow

PASSWORD, TOKEN = "hunter2%40work", "token-of-my-employer"


def places_with(words: tuple[str, ...], folder: Path) -> list[Path]:
    """Files that contain one of the words, including the store's database and artifacts."""
    found = []
    for path in folder.rglob("*"):
        if path.is_file() and any(word.encode() in path.read_bytes() for word in words):
            found.append(path)
    return found


def test_a_password_and_a_token_are_neither_stored_nor_printed(
    server: Server, folder: Path, started_anew: Program, freqfilter: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.start()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.url.replace("http://", f"http://me:{PASSWORD}@"))
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", TOKEN)
    monkeypatch.setenv("FREQFILTER_TOKEN", TOKEN)
    words = (PASSWORD, "hunter2@work", TOKEN, "AWS_SECRET")
    for start_from, begin in (("null", started_anew), ("models:/nothing/1", freqfilter)):
        done = begin("train", *options(SMALL | {"start_from": start_from}))
        assert done.returncode == (0 if start_from == "null" else 2), done.stderr
        assert not any(word in done.stdout + done.stderr for word in words)
    server.kill()
    done = freqfilter("train", *options(SMALL))
    assert "does not respond" in done.stderr
    assert not any(word in done.stdout + done.stderr for word in words)
    assert places_with(words, folder.parent) == []


def test_the_password_in_a_projects_address_is_not_stored(folder: Path) -> None:
    client = MlflowClient()
    tags = {"mlflow.source.name": "https://me:hunter2@example.org/p.git", "mlflow.source.type": "PROJECT"}
    run = client.create_run("0", tags=tags)
    command = [sys.executable, "-m", "freqfilter", "train", *options(SMALL)]
    launched = os.environ | {"MLFLOW_RUN_ID": run.info.run_id}
    done = zygote.run(command, cwd=folder, env=launched)
    assert done.returncode == 0, done.stderr
    (found,) = all_runs()
    assert found.data.tags["mlflow.source.name"] == "https://example.org/p.git"


def test_telemetry_is_off_in_every_process_unless_the_user_turns_it_on(folder: Path) -> None:
    code = "import os, sys; from freqfilter.cli.main import main; sys.argv[1:] = ['init_store']; main()\n"
    code += "print(*(os.environ[name] for name in ('MLFLOW_DISABLE_TELEMETRY', 'ORT_DISABLE_TELEMETRY')))"
    bare = {name: value for name, value in os.environ.items() if not name.endswith("_DISABLE_TELEMETRY")}
    on = {"MLFLOW_DISABLE_TELEMETRY": "false", "ORT_DISABLE_TELEMETRY": "0"}
    for given, expected in ({}, "true 1"), (on, "false 0"):
        done = subprocess.run(
            [sys.executable, "-c", code], env=bare | given, capture_output=True, text=True, check=True
        )
        assert done.stdout.splitlines()[-1] == expected
    makefile = (ROOT / "Makefile").read_text()
    assert "export MLFLOW_DISABLE_TELEMETRY ?= true" in makefile
    assert serve.HOST == "127.0.0.1"  # of `make serve` and `make ui`
