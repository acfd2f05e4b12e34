"""A fork of the zygote is, to the program and to its parent, what a newly started process is."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests import zygote
from tests.conftest import ROOT

pytestmark = pytest.mark.slow

# What a program can see of how it was started; the libraries are imported first, as they have been in the zygote.
REPORT = f"""
import importlib, json, locale, os, random, signal, sys, tempfile, threading, warnings
for name in {zygote.LIBRARIES}: importlib.import_module(name)
import numpy, torch
drawn = [random.random(), numpy.random.random(), torch.initial_seed()]
torch.manual_seed(1)
network = torch.nn.LSTM(5, 8, 2, dropout=0.3, batch_first=True)
optimizer = torch.optim.Adam(network.parameters())
for step in range(5):
    optimizer.zero_grad()
    network(torch.randn(16, 20, 5))[0].square().mean().backward()
    optimizer.step()
status = dict(line.split(":", 1) for line in open("/proc/self/status").read().splitlines())
print(json.dumps({{
    "argv": sys.argv, "path": sys.path, "name": __name__, "main": sys.modules["__main__"].__name__,
    "cwd": os.getcwd(), "environment": dict(os.environ), "temporary": tempfile.gettempdir(),
    # But for 32 and 33, which the C library takes when a process has its first thread, or has had one.
    "signals": [int(status[name], 16) & ~(3 << 31) for name in ("SigBlk", "SigIgn", "SigCgt", "ShdPnd")],
    "sigint": signal.getsignal(signal.SIGINT) is signal.default_int_handler,
    "threads": len(os.listdir("/proc/self/task")), "python_threads": [t.name for t in threading.enumerate()],
    "main_thread": threading.main_thread() is threading.current_thread(),
    "files": sorted(int(name) for name in os.listdir("/proc/self/fd")),
    "leads_session": os.getsid(0) == os.getpid(), "group_of_parent": os.getpgrp() == os.getpgid(os.getppid()),
    "umask": os.umask(0o22), "flags": list(sys.flags), "locale": locale.getlocale(),
    "streams": [(s.encoding, s.errors, s.line_buffering, s.isatty(), s.fileno())
                for s in (sys.stdin, sys.stdout, sys.stderr)],
    "torch": [torch.get_num_threads(), torch.get_num_interop_threads(), torch.is_grad_enabled()],
    "weights": [weight.double().sum().item().hex() for weight in network.parameters()],
    "garbage": [gc.isenabled(), gc.get_threshold()],
    "tracking": os.environ.get("MLFLOW_TRACKING_URI") and sys.modules["mlflow"].get_tracking_uri(),
    "drawn": drawn,
}}))
""".replace("import importlib", "import gc, importlib")


def as_program(form: str, folder: Path) -> list[str]:
    """The reporting program in one of the forms in which Python takes one."""
    (folder / "reporting").mkdir()
    (folder / "reporting" / "__init__.py").touch()
    file = folder / "reporting" / "__main__.py"
    file.write_text(REPORT)
    return [sys.executable, *{"-m": ["-m", "reporting"], "-c": ["-c", REPORT], "file": [str(file)]}[form], "a", "--b"]


@pytest.mark.parametrize("form", ["-m", "-c", "file"])
def test_a_fork_finds_what_a_start_finds(form: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUST_NOW", "1")
    monkeypatch.delenv("HOME", raising=False)
    # As freqfilter.tracking does before it imports MLflow.
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("JE_ARROW_MALLOC_CONF", "background_thread:false")  # the zygote cannot have pyarrow's thread
    command = as_program(form, folder)
    # Of this process's environment only what Python knows: readline exports LINES and COLUMNS behind its back.
    settings: dict[str, Any] = {"cwd": folder, "start_new_session": form == "file", "env": dict(os.environ)}
    settings["stdin"] = subprocess.DEVNULL
    started = subprocess.run(command, capture_output=True, text=True, check=True, **settings)
    forked = [zygote.run(command, check=True, **settings) for _ in range(2)]
    expected, *found = (json.loads(done.stdout) for done in (started, *forked))
    drawn = [report.pop("drawn") for report in (expected, *found)]
    for report in found:
        assert report == expected
    assert len({value for seeds in drawn for value in seeds}) == 9
    assert [done.stderr for done in forked] == ["", ""]


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("import sys; sys.exit(3)", 3),
        ("raise SystemExit('a reason')", 1),
        ("1 / 0", 1),
        ("pass", 0),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL),
        ("import os, signal; os.kill(os.getpid(), signal.SIGTERM)", -signal.SIGTERM),
        ("import os, signal; os.kill(os.getpid(), signal.SIGINT)", -signal.SIGINT),
        ("import os; os._exit(9)", 9),
    ],
)
def test_a_fork_ends_as_a_start_does(code: str, status: int) -> None:
    code = "import atexit, sys; atexit.register(print, 'at exit'); print('unflushed', end=''); " + code
    started = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    forked = zygote.run([sys.executable, "-c", code])
    assert forked.returncode == started.returncode == status
    assert forked.stdout == started.stdout
    assert forked.stderr.splitlines()[-1:] == started.stderr.splitlines()[-1:]


def test_a_fork_is_signalled_stopped_and_waited_for_like_a_child() -> None:
    code = "import sys, time\nprint('ready', flush=True)\ntime.sleep(600)"
    with zygote.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
        assert process.poll() is None
        process.send_signal(signal.SIGSTOP)
        seen = psutil.Process(process.pid)
        while seen.status() != psutil.STATUS_STOPPED:
            time.sleep(0.01)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=0.1)
        process.send_signal(signal.SIGCONT)
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait(timeout=60) == process.poll() == -signal.SIGKILL
        assert not psutil.pid_exists(process.pid)


def test_forks_run_side_by_side_and_hold_none_of_each_others_descriptors() -> None:
    """The end of one's output is seen while the other, which was forked later, still runs."""
    first = zygote.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    second = zygote.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert first.communicate("\n", timeout=60) == ("", None)
    assert (first.returncode, second.poll()) == (0, None)
    assert second.communicate("\n", timeout=60) == ("", None)
    assert second.returncode == 0


def test_a_descriptor_is_passed_on_under_its_number() -> None:
    reading, writing = os.pipe()
    code = "import os, sys; os.write(int(sys.argv[1]), b'through it')"
    process = zygote.Popen([sys.executable, "-c", code, str(writing)], pass_fds=[writing])
    os.close(writing)
    assert os.read(reading, 100) == b"through it"
    assert (os.read(reading, 100), process.wait(timeout=60)) == (b"", 0)
    os.close(reading)


@pytest.mark.parametrize("name", ["OMP_NUM_THREADS", "MLFLOW_DISABLE_TELEMETRY", "PYTHONHASHSEED"])
def test_a_variable_that_libraries_have_read_is_not_silently_ignored(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} is read while importing"):
        zygote.run([sys.executable, "-c", "pass"], env=os.environ | {name: "7"})


def test_the_program_itself_is_not_in_the_zygote(tmp_path: Path) -> None:
    code = "import sys; print([name for name in sys.modules if name.startswith(('freqfilter', 'pytest', 'tests'))])"
    assert zygote.run([sys.executable, "-c", code], check=True).stdout == "[]\n"
    assert ROOT.joinpath("tests", "zygote.py").samefile(zygote.__file__)
