"""A fork of the zygote behaves like a new process, towards the program and its parent."""

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

# State of a program that depends on its start.
START = """
import gc, json, locale, os, signal, sys, tempfile, threading
status = dict(line.split(":", 1) for line in open("/proc/self/status").read().splitlines())
print(json.dumps({
    "argv": sys.argv, "path": sys.path, "name": __name__, "main": sys.modules["__main__"].__name__,
    "cwd": os.getcwd(), "environment": dict(os.environ), "temporary": tempfile.gettempdir(),
    # Except 32 and 33, which the C library uses in a process that has had threads.
    "signals": [int(status[name], 16) & ~(3 << 31) for name in ("SigBlk", "SigIgn", "SigCgt", "ShdPnd")],
    "sigint": signal.getsignal(signal.SIGINT) is signal.default_int_handler,
    "threads": len(os.listdir("/proc/self/task")), "python_threads": [t.name for t in threading.enumerate()],
    "main_thread": threading.main_thread() is threading.current_thread(),
    "files": sorted(int(name) for name in os.listdir("/proc/self/fd")),
    "leads_session": os.getsid(0) == os.getpid(), "group_of_parent": os.getpgrp() == os.getpgid(os.getppid()),
    "umask": os.umask(0o22), "flags": list(sys.flags), "locale": locale.getlocale(),
    "streams": [(s.encoding, s.errors, s.line_buffering, s.isatty(), s.fileno())
                for s in (sys.stdin, sys.stdout, sys.stderr)],
    "garbage": [gc.isenabled(), gc.get_threshold()],
}))
"""
# State of the libraries, and results computed with them.
NUMBERS = f"""
import importlib, json, os, random, sys
for name in {zygote.LIBRARIES}: importlib.import_module(name)
import mlflow, numpy, torch
drawn = [random.random(), numpy.random.random(), torch.initial_seed()]
torch.manual_seed(1)
network = torch.nn.LSTM(5, 8, 2, dropout=0.3, batch_first=True)
optimizer = torch.optim.Adam(network.parameters())
for step in range(5):
    optimizer.zero_grad()
    network(torch.randn(16, 20, 5))[0].square().mean().backward()
    optimizer.step()
print(json.dumps({{
    "environment": dict(os.environ), "tracking": mlflow.get_tracking_uri(),
    "threads": len(os.listdir("/proc/self/task")),
    "torch": [torch.get_num_threads(), torch.get_num_interop_threads(), torch.is_grad_enabled()],
    "weights": [weight.double().sum().item().hex() for weight in network.parameters()],
    "drawn": drawn,
}}))
"""


@pytest.fixture
def environment(folder: Path) -> dict[str, str]:
    """The environment in ``os.environ``: readline exports LINES and COLUMNS in C only."""
    # The first is set by freqfilter.tracking, the second because a zygote has one thread.
    changed = {"MLFLOW_DISABLE_TELEMETRY": "true", "JE_ARROW_MALLOC_CONF": "background_thread:false", "JUST_NOW": "1"}
    # MLflow and PyTorch set the last two on import, as in this process.
    gone = ("HOME", "_MLFLOW_TELEMETRY_SESSION_ID", "TORCHINDUCTOR_CACHE_DIR")
    return {name: value for name, value in os.environ.items() if name not in gone} | changed


@pytest.mark.parametrize("form", ["-m", "-c", "file"])
def test_a_fork_starts_like_a_new_process(form: str, folder: Path, environment: dict[str, str]) -> None:
    (folder / "reporting").mkdir()
    (folder / "reporting" / "__init__.py").touch()
    file = folder / "reporting" / "__main__.py"
    file.write_text(START)
    words = {"-m": ["-m", "reporting"], "-c": ["-c", START], "file": [str(file)]}[form]
    given: dict[str, Any] = {"cwd": folder, "env": environment, "start_new_session": form == "file"}
    given["stdin"] = subprocess.DEVNULL
    command = [sys.executable, *words, "a", "--b"]
    started = subprocess.run(command, capture_output=True, text=True, check=True, **given)
    forked = zygote.run(command, check=True, **given)
    expected, found = json.loads(started.stdout), json.loads(forked.stdout)
    found["environment"].pop("TORCHINDUCTOR_CACHE_DIR", None)  # set by an import, unless it was set before
    assert found["environment"] == expected["environment"]
    assert found == expected
    assert forked.stderr == started.stderr == ""


def test_a_fork_computes_the_same_with_other_random_numbers(folder: Path, environment: dict[str, str]) -> None:
    command = [sys.executable, "-c", NUMBERS]
    started = subprocess.run(command, capture_output=True, text=True, check=True, cwd=folder, env=environment)
    forked = [zygote.run(command, check=True, cwd=folder, env=environment) for _ in range(2)]
    expected, *found = (json.loads(done.stdout) for done in (started, *forked))
    drawn = [report.pop("drawn") for report in (expected, *found)]
    for report in (expected, *found):
        report["environment"].pop("TORCHINDUCTOR_CACHE_DIR", None)  # set by an import, unless it was set before
    for report in found:
        assert report == expected
    assert len({value for numbers in drawn for value in numbers}) == 9


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
def test_a_fork_ends_like_a_new_process(code: str, status: int) -> None:
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


def test_concurrent_forks_do_not_inherit_each_others_descriptors() -> None:
    """The first one's output ends while the second, which was forked later, is running."""
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


def test_a_program_that_a_fork_starts_is_its_descendant_and_ends_like_a_new_process(
    folder: Path, tmp_path: Path
) -> None:
    report = "import json, os, psutil, sys; print(json.dumps([[p.pid for p in psutil.Process().parents()], " + (
        "[p.name() for p in psutil.Process().parents()], sys.argv, os.getcwd(), os.environ.get('GIVEN')]))"
    )
    code = f"""
import json, os, pathlib, subprocess, sys
def run(*words, **settings):
    done = subprocess.run(words, capture_output=True, text=True, **settings)
    return done.returncode, done.stdout
report = {report!r}
by_name = run("bash", "-c", 'cd /; GIVEN=1 python -c "$1" a "b c"; true', "bash", report)
by_path = run(sys.executable, "-c", report)
ends = [run("python", "-c", code)[0] for code in ("pass", "raise SystemExit(3)", "import os; os.kill(os.getpid(), 9)")]
piped = run("python", "-c", "print(input())", input="through it")
stopped = subprocess.Popen(["python", "-c", "print('ready', flush=True); input()"], stdin=-1, stdout=-1)
stopped.stdout.readline()
stopped.terminate()
print(json.dumps([os.getpid(), by_name, by_path, ends, piped, stopped.wait(), run("mlflow", "--version")[1]]))
"""
    done = zygote.run(
        [sys.executable, "-c", code], env=os.environ | zygote.stand_ins(tmp_path / "stand_ins"), check=True
    )
    pid, by_name, by_path, ends, piped, stopped, version = json.loads(done.stdout)
    for (status, output), seen in ((by_name, [["-c", "a", "b c"], "/", "1"]), (by_path, [["-c"], str(folder), None])):
        parents, names, *rest = json.loads(output)
        assert (status, rest) == (0, seen)
        assert parents[1] == pid
        assert names[0] == "sh"
    assert ends == [0, 3, -signal.SIGKILL]
    assert piped == [0, "through it\n"]
    assert stopped == -signal.SIGTERM
    assert "mlflow, version " in version


@pytest.mark.parametrize("name", ["OMP_NUM_THREADS", "MLFLOW_DISABLE_TELEMETRY", "PYTHONHASHSEED"])
def test_a_variable_that_libraries_have_read_is_not_silently_ignored(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} is read while importing"):
        zygote.run([sys.executable, "-c", "pass"], env=os.environ | {name: "7"})


def test_the_zygote_does_not_import_the_package(tmp_path: Path) -> None:
    code = "import sys; print([name for name in sys.modules if name.startswith(('freqfilter', 'pytest', 'tests'))])"
    assert zygote.run([sys.executable, "-c", code], check=True).stdout == "[]\n"
    assert ROOT.joinpath("tests", "zygote.py").samefile(zygote.__file__)


@pytest.mark.parametrize(("variables", "size"), [({zygote.DRAW_NOTHING: "1"}, (1, 1)), ({}, (640, 480))])
def test_a_fork_replaces_pictures_only_if_requested(
    variables: dict[str, str], size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(zygote.DRAW_NOTHING, raising=False)
    code = (
        "import io, PIL.Image; from matplotlib.figure import Figure; file = io.BytesIO()\n"
        "Figure().savefig(file, format='png'); print(PIL.Image.open(file).size)"
    )
    assert zygote.run([sys.executable, "-c", code], env=os.environ | variables, check=True).stdout == f"{size}\n"
