"""The command ``ui`` prints addresses, stops its server when it exits, and reports a port that is in use."""

from __future__ import annotations

import signal
import socket
import sys
import urllib.request
from pathlib import Path

import psutil
import pytest

import freqfilter
from freqfilter.pipelines import serve
from freqfilter.process import Interrupted
from tests.conftest import SMALL, Typed, all_runs, free_port, start, wait_for_line

pytestmark = pytest.mark.slow


def test_the_ui_command_prints_reachable_addresses(folder: Path) -> None:
    freqfilter.train(**SMALL | {"epochs": "1", "register": "false"}, progress=False)
    run, port = all_runs()[0].info, free_port()
    command = [sys.executable, "-m", "freqfilter", "ui", "--port", str(port)]
    with wait_for_line("all decisions", command, folder) as process:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=30) as response:
                assert b"MLflow" in response.read()
            api = f"http://127.0.0.1:{port}/api/2.0/mlflow/runs/get?run_id={run.run_id}"
            with urllib.request.urlopen(api, timeout=30) as response:
                assert run.run_id in response.read().decode()
        finally:
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=60) == 130
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0, "the server is still running"


def test_a_server_that_does_not_end_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "TERMINATION_S", 0.1)
    started = tmp_path / "pid"
    code = (
        "import os, pathlib, signal, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
        "file = pathlib.Path(sys.argv[1]); file.write_text(str(os.getpid())); time.sleep(5); file.write_text('0')"
    )

    def stop() -> None:
        raise Interrupted(signal.SIGINT)

    def has_started() -> bool:
        return started.exists() and started.read_text() != ""

    with pytest.raises(Interrupted):
        serve.run_server([sys.executable, "-c", code, str(started)], {}, ready=has_started, on_ready=stop)
    pid = int(started.read_text())
    assert pid, "it ended by itself"
    assert not psutil.pid_exists(pid)


def test_a_port_in_use_is_reported_in_one_line(typed: Typed) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        code, line = typed("ui", "--port", str(taken.getsockname()[1]))
    assert code == 2
    assert "in use" in line
    assert "--port" in line


def test_a_store_on_a_server_has_its_own_ui(
    tracking_server: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking_server)
    assert start("ui") == 0
    assert capsys.readouterr().out == f"MLflow: {tracking_server}\n"
