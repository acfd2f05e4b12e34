"""Models in worker processes: a failing model affects only its own checks."""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import torch

from freqfilter.errors import UserError
from freqfilter.pipelines import model_server, sandbox
from freqfilter.pipelines.sandbox import ModelServer, ModelWorker, ModelWorkerError
from freqfilter.process import Interrupted, shutdown
from freqfilter.tracking.loading import NO_PICKLE_ENV, checked_files
from tests import zygote
from tests.promotion.making import NAME

pytestmark = pytest.mark.slow

URI = f"models:/{NAME}/1"
SECRETS = ("AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_PASSWORD", "PYTHON_TOKEN", "MPL_TOKEN", "TORCH_TOKEN", "LC_TOKEN")
SET_BY_IMPORTS = {"HOME", "MLFLOW_DISABLE_TELEMETRY", "TMPDIR", "TORCHINDUCTOR_CACHE_DIR"}  # and by the worker
WINDOWS = torch.cat([torch.zeros(30, 20, 1), torch.tensor([1.0, 0, 0, 0]).expand(30, 20, 4)], dim=2)


@pytest.fixture
def server(registry: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModelServer]:
    """A server whose parent has credentials."""
    for name in SECRETS:
        monkeypatch.setenv(name, "a secret")
    with ModelServer() as started:
        yield started


@pytest.fixture
def worker_with(
    server: ModelServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[str], ModelWorker]]:
    """A worker whose model executes a statement when it is loaded."""
    opened: list[ModelWorker] = []

    def start(statement: str) -> ModelWorker:
        def changed(uri: str, folder: Path) -> Path:
            files = checked_files(uri, folder)
            code = files / "artifacts" / "network.py"
            code.write_text(f"{code.read_text()}\n{statement}\n")
            return files

        monkeypatch.setattr(sandbox, "checked_files", changed)
        opened.append(ModelWorker(server, URI))
        return opened[-1]

    yield start
    for worker in opened:
        worker.__exit__()


def log_of(worker: ModelWorker) -> str:
    worker._log.seek(0)
    return worker._log.read().decode()


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_output_of_a_model_is_not_a_response(worker_with: Callable[[str], ModelWorker]) -> None:
    worker = worker_with("import os; print('{}', flush=True); os.write(1, b'{}\\n'); os.system('echo {}')")
    assert worker.description["golden_difference"] == 0
    assert worker.estimate(WINDOWS).shape == (30, 20, 1)
    assert log_of(worker).count("{}") == 3


def test_a_worker_has_one_thread_no_credentials_and_no_descriptor_of_another(
    worker_with: Callable[[str], ModelWorker], registry: Path
) -> None:
    before = sorted(registry.iterdir())
    report = (
        "import json, os, resource, sys, torch; from pathlib import Path; print(json.dumps({"
        "'environment': dict(os.environ), 'started_with': Path(f'/proc/{os.getppid()}/environ').read_text(),"
        "'threads': torch.get_num_threads(), 'deterministic': torch.are_deterministic_algorithms_enabled(),"
        "'files': len(os.listdir('/proc/self/fd')), 'path': sys.path, 'group': os.getpgrp() == os.getpid(),"
        "'input': sys.stdin.read(), 'folder': os.getcwd(), 'content': os.listdir(), 'home': str(Path.home()),"
        "'limits': [resource.getrlimit(getattr(resource, f'RLIMIT_{name}'))[1] for name in ('CORE', 'CPU', 'AS')]"
        "}), flush=True)"
    )
    first, second = worker_with(report), worker_with(report)
    for worker in (first, second):
        assert worker.description
    for worker in (first, second):
        shown = json.loads(log_of(worker))
        assert shown["environment"]["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] == "false"
        assert set(shown["environment"]) <= sandbox.KEPT | sandbox.SET.keys() | NO_PICKLE_ENV.keys() | SET_BY_IMPORTS
        assert "a secret" not in json.dumps(shown)
        assert (shown["threads"], shown["deterministic"], shown["input"], shown["group"]) == (1, True, "", True)
        assert not {"", str(registry)} & set(shown["path"])
        assert shown["files"] == 5  # three streams, the connection, and the folder that is listed
        assert (shown["content"], shown["home"]) == ([], shown["folder"])
        core, cpu_s, memory = shown["limits"]
        assert (core, cpu_s) == (0, model_server.PROCESSOR_LIMIT_S)
        assert model_server.MEMORY_LIMIT < memory < 16 * model_server.MEMORY_LIMIT
        worker.__exit__()
        assert not Path(shown["folder"]).exists()
    assert sorted(registry.iterdir()) == before


def test_a_model_that_hangs_is_refused_and_killed_with_its_children(
    worker_with: Callable[[str], ModelWorker], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sandbox, "RESPONSE_TIMEOUT_S", 3.0)
    pid_file = tmp_path / "child"
    hang = "import pathlib, signal, subprocess, time; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    hang += f"child = subprocess.Popen(['sleep', '600']); pathlib.Path({str(pid_file)!r}).write_text(str(child.pid))\n"
    worker = worker_with(f"{hang}time.sleep(600)")
    eventually(lambda: pid_file.exists() and pid_file.read_text() != "")
    processes = [psutil.Process(worker.pid), psutil.Process(int(pid_file.read_text()))]
    with pytest.raises(ModelWorkerError, match="no response within 3 s"):
        _ = worker.description
    worker.__exit__()
    eventually(lambda: not any(map(running, processes)))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_signal_whose_exception_was_lost_ends_the_wait_for_a_response(
    worker_with: Callable[[str], ModelWorker],
) -> None:
    """Python ignores an exception that a signal handler raises while ``__del__`` runs."""

    class Signals:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGINT)

    worker = worker_with("import time; time.sleep(600)")
    with shutdown.installed():
        Signals()
        assert shutdown.received
        with pytest.raises(Interrupted):
            _ = worker.description
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGHUP):  # ignored after the block, since a program ends
        signal.signal(number, signal.SIG_DFL)


def running(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def test_a_model_that_exits_is_an_error_of_the_model(worker_with: Callable[[str], ModelWorker]) -> None:
    aborts = worker_with("import os, sys; sys.stderr.write('ouch\\n'); sys.stderr.flush(); os.abort()")
    exits = worker_with("import os; os._exit(0)")
    for worker, how in ((aborts, "was ended by SIGABRT: ouch"), (exits, "ended with exit code 0: it printed nothing")):
        with pytest.raises(ModelWorkerError, match=f"models:/{NAME}/1: its process {how}$"):
            _ = worker.description


def read_responses(worker: ModelWorker) -> None:
    """Read the description, which a worker may have sent before it was killed, and estimates."""
    _ = worker.description
    worker.estimate(WINDOWS)


def test_a_killed_worker_is_not_an_error_of_the_model(worker_with: Callable[[str], ModelWorker]) -> None:
    for number, worker in [(number, worker_with("")) for number in sandbox.KILL_SIGNALS]:
        os.kill(worker.pid, number)
        with pytest.raises(UserError, match=f"ended by {number.name} from outside") as raised:
            read_responses(worker)
        assert not isinstance(raised.value, ModelWorkerError)


@pytest.mark.parametrize(
    "message",
    [b"{}", struct.pack("!I", 2) + b"[]", struct.pack("!I", 1 << 30), struct.pack("!I", 100_000) + b"[" * 100_000],
)
def test_invalid_and_too_long_messages_are_refused(message: bytes) -> None:
    receiver, sender = socket.socketpair()
    with receiver, sender:
        sender.sendall(message)
        sender.shutdown(socket.SHUT_WR)
        if message == b"{}":  # half a header: the sender has ended
            assert model_server.receive(receiver) is None
        else:
            with pytest.raises(ValueError, match="a message"):
                model_server.receive(receiver)
        with pytest.raises(ValueError, match="at most"):
            model_server.send(receiver, "x" * model_server.MESSAGE_LIMIT)


def test_a_killed_server_is_not_an_error_of_the_model(registry: Path) -> None:
    with ModelServer() as server:
        server._process.kill()
        server._process.wait()
        with (
            ModelWorker(server, URI) as worker,
            pytest.raises(UserError, match="model server: its process was ended by SIGKILL from outside"),
        ):
            _ = worker.description


def test_the_end_of_the_parent_ends_server_and_workers(registry: Path) -> None:
    code = f"""
import time
from freqfilter.pipelines.sandbox import ModelServer, ModelWorker
server = ModelServer()
worker = ModelWorker(server, {URI!r})
worker.description
print(server._process.pid, worker.pid, flush=True)
time.sleep(600)
"""
    process = zygote.Popen([sys.executable, "-c", code], cwd=registry, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    processes = [psutil.Process(int(pid)) for pid in process.stdout.readline().split()]
    assert len(processes) == 2
    process.kill()
    process.wait()
    process.stdout.close()
    eventually(lambda: not any(map(running, processes)))


def test_a_server_with_two_threads_starts_workers_as_new_programs(
    registry: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some libraries start a thread when they are imported."""
    thread = "import threading, time; threading.Thread(target=time.sleep, args=[600], daemon=True).start()"
    python, safe_path, option, boot, *arguments = model_server.command()
    words = [python, safe_path, option, thread + boot, *arguments]
    monkeypatch.setattr(sandbox, "command", lambda: words)
    with ModelServer() as server, ModelWorker(server, URI) as worker:
        assert worker.description["golden_difference"] == 0
        assert psutil.Process(worker.pid).cmdline()[-1] == model_server.WORKER
        assert worker.estimate(WINDOWS).shape == (30, 20, 1)


def test_the_server_imports_once_with_one_thread_and_nothing_of_the_working_directory(
    registry: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sandbox, "subprocess", subprocess)  # not forked from the zygote
    modules = ("torch", "freqfilter", "json", "signal", "queue", "random", "select", "types", "copy", "logging")
    monkeypatch.setenv("PYTHONPATH", f"{registry}{os.pathsep}{os.environ['PYTHONPATH']}")
    for name in modules:
        (registry / f"{name}.py").write_text("raise SystemExit(3)")
    with ModelServer() as server, ModelWorker(server, URI) as first, ModelWorker(server, URI) as second:
        assert first.description["weights_sha256"] == second.description["weights_sha256"]
        process = psutil.Process(server._process.pid)
        assert process.num_threads() == 1
        children = {child.pid: child for child in process.children()}
        assert set(children) == {first.pid, second.pid}
        # A fork has its parent's command; a newly started worker has one more argument.
        assert {tuple(child.cmdline()) for child in children.values()} == {tuple(process.cmdline())}
