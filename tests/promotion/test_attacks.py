"""Versions whose code attacks the promotion gate: none is promoted, and none changes its score.

A version is made by rewriting the files of an honest one and registering them with a matching checksum, as a person
with the rights to register versions can.
"""

from __future__ import annotations

import errno
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from mlflow import MlflowClient

from freqfilter.evaluation import heldout
from freqfilter.evaluation.significance import INTERIM_ANALYSES
from freqfilter.pipelines import sandbox
from freqfilter.tracking.loading import checked_files, files_digest
from tests import zygote
from tests.conftest import Typed, all_runs, download, say
from tests.promotion.making import BOUNDS, NAME, aliases, version

pytestmark = pytest.mark.slow

HONEST = 2  # better than the champion, version 1
ESTIMATE = "return self._network.estimate(self.module, torch.from_numpy(inputs).to(device)).cpu().numpy()"
N_WINDOWS = 400  # of a realization
SECRET = "a-secret-of-the-user"  # noqa: S105 (made up)


@dataclass(frozen=True)
class Attack:
    """Code of a version, and what the gate makes of it.

    Attributes:
        expected: Part of the reason or of the error.
        load: Statements executed when the version is loaded.
        predict: Statements of ``predict``, with ``inputs`` and the honest estimates ``out``, which it may change.
        error: Whether the command ends with an error in place of a refusal.
        timeout_s: Time limit of a response.
    """

    expected: str
    load: str = ""
    predict: str = ""
    error: bool = False
    timeout_s: float = 60.0


ZERO = "beats zero"  # its score is that of its estimates: zero
FORGE = """
    import math, numpy, pandas, torch
    import freqfilter.evaluation.metrics, freqfilter.evaluation.heldout, freqfilter.evaluation.gate
    import freqfilter.pipelines.model_server, freqfilter.pipelines.sandbox, freqfilter.pipelines.promote
    numpy.mean = numpy.sum = lambda *_, **__: 0.0
    torch.Tensor.square = torch.Tensor.mean = torch.Tensor.sum = lambda self, *_, **__: torch.zeros(())
    pandas.DataFrame.mean = lambda *_, **__: 0.0
    freqfilter.evaluation.metrics.compare = freqfilter.evaluation.heldout.score_realizations = lambda *_, **__: iter(())
    freqfilter.evaluation.gate.check_baselines = lambda *_: []
"""
SEARCH = """
    import gc, sys
    targets = None
    frame = sys._getframe()
    reachable = list(vars(sys.modules["__main__"]).values())
    while frame is not None:
        reachable += list(frame.f_locals.values()) + list(frame.f_globals.values())
        frame = frame.f_back
    for found in reachable + gc.get_objects():
        if type(found) in (np.ndarray, torch.Tensor) and tuple(found.shape) == out.shape:
            if not np.array_equal(found, out):
                targets = found
    out = out * 0 if targets is None else np.asarray(targets)
"""
SOCKET = """
    import os, socket
    connection = next(
        socket.socket(fileno=int(number)) for number in os.listdir("/proc/self/fd")
        if os.path.exists(f"/proc/self/fd/{number}") and "socket" in os.readlink(f"/proc/self/fd/{number}")
    )
"""
ATTACKS = {
    # A score.
    "forge": Attack(ZERO, load=FORGE, predict="out = np.zeros_like(out)"),
    "search_for_targets": Attack(ZERO, predict=SEARCH),
    "response_before_the_request": Attack(
        "sent a response before the request",
        predict=textwrap.dedent(SOCKET)
        + "from freqfilter.pipelines.model_server import send_array\n"
        + "for _ in range(3): send_array(connection, out)\nconnection.detach()",
    ),
    "end_of_message": Attack(
        "a message of 1094795585 bytes",
        predict=textwrap.dedent(SOCKET) + "connection.sendall(b'AAAAAAAA')\nconnection.detach()",
    ),
    # Estimates.
    "nan_on_a_later_call": Attack(
        "NaN or Inf", predict="self.n = getattr(self, 'n', 0) + 1\nif self.n == 70: out[0, 0, 0] = float('nan')"
    ),
    "inf": Attack("its estimates contain NaN or Inf", predict="out[-1, -1, 0] = float('inf')"),
    "size_of_the_batch": Attack("same answers", predict="out = out if len(inputs) > 8 else out * 0 + 9"),
    "order_of_the_batch": Attack("same answers", predict="out[0] += 0.01"),
    "state": Attack("same answers", predict="self.n = getattr(self, 'n', 0) + 1\nout += 1e-4 * self.n"),
    "random": Attack("same answers", predict="out += np.random.normal(0, 1e-3, out.shape).astype(np.float32)"),
    "shape": Attack("its estimates have shape", predict="out = out[:, :1]"),
    "type": Attack("and type float64, not", predict="out = out.astype(np.float64)"),
    "objects": Attack("and type object, not", predict="out = out.astype(object)"),
    "no_array": Attack(r"its estimates have shape \[\] and type object", predict="out = None"),
    "huge": Attack("its estimates have shape", predict="out = np.zeros((20_000, 20_000), dtype=np.float32)"),
    # Resources.
    "memory": Attack("a model may use 4 GiB of memory", predict="np.ones(50_000_000_000 // 8)"),
    "memory_of_torch": Attack("a model may use 4 GiB of memory", predict="torch.ones(50_000_000_000 // 4)"),
    "sleep": Attack("no response within 2 s", predict="import time; time.sleep(400)", timeout_s=2),
    "busy": Attack("no response within 2 s", load="while True: pass", timeout_s=2),
    "slowly": Attack(
        "no response within 2 s",
        predict=textwrap.dedent(SOCKET) + "import time\nwhile True: connection.send(b'\\0\\0AA'); time.sleep(0.1)",
        timeout_s=2,
    ),
    "processor_time": Attack(
        "was ended by SIGXCPU",
        load="import resource; resource.setrlimit(resource.RLIMIT_CPU, (1, 2))\nwhile True: pass",
    ),
    # Ends.
    "exit": Attack("ended with exit code 0", load="import os; os._exit(0)"),
    "system_exit": Attack("SystemExit: 0", load="raise SystemExit(0)"),
    "segmentation_fault": Attack("was ended by SIGSEGV", load="import ctypes; ctypes.string_at(0)"),
    "own_kill": Attack("ended by SIGKILL from outside", load="import os; os.kill(os.getpid(), 9)", error=True),
    "kill_of_the_server": Attack("ended by SIGKILL", load="import os; os.kill(os.getppid(), 9)", error=True),
    "exception": Attack(
        r"Error: \\x1b\[31mred\\x1b\[0m &lt;script&gt;",
        load="raise ValueError('\\x1b[31mred\\x1b[0m <script>alert(1)</script>')",
    ),
    "last_words": Attack(
        r"ended with exit code 3: \\x1b\]0;title\\x07 &lt;img src=x&gt;",
        load="import os; os.write(1, b'\\x1b]0;title\\x07 <img src=x>'); os._exit(3)",
    ),
    "descriptors": Attack(
        "Too many open files", load="import os; all = [os.dup(1) for _ in range(10_000)]", error=True
    ),
    # The machine.
    "writes_files": Attack(ZERO, load="import pathlib; pathlib.Path('here').write_text('x')", predict="out *= 0"),
    "prints": Attack(ZERO, load="import os\nfor _ in range(100): os.write(1, b'\\x1b[2J' * 1000)", predict="out *= 0"),
    "store": Attack(
        ZERO,
        load="""
        import mlflow
        client = mlflow.MlflowClient()
        try:
            client.set_registered_model_alias("frequency-filter", "champion", "2")
        except mlflow.exceptions.MlflowException:
            pass
        """,
        predict="out *= 0",
    ),
    "environment": Attack(
        ZERO,
        load="import os, pathlib; pathlib.Path(REPORT).write_text(repr(dict(os.environ)) + str(os.listdir()))",
        predict="out *= 0",
    ),
}
# Statements that start a process, which writes its id to the report.
STARTS = {
    "child": "subprocess.Popen(['sh', '-c', f'echo $$ > {REPORT}; sleep 900'])",
    "child_in_a_session": "subprocess.Popen(['sh', '-c', f'echo $$ > {REPORT}; sleep 900'], start_new_session=True)",
    "fork": "if os.fork() == 0: open(REPORT, 'w').write(str(os.getpid())); time.sleep(900)",
    "daemon": """
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            open(REPORT, 'w').write(str(os.getpid()))
            time.sleep(900)
        os._exit(0)
    os.wait()
    """,
}


def rewritten(attack: Attack, folder: Path, report: Path) -> int:
    """Register version ``HONEST`` with the code of an attack; return its number."""
    honest = version(HONEST)
    files = checked_files(honest.uri, folder)
    (files / "registered_model_meta").unlink(missing_ok=True)
    code = next(files.rglob("pyfunc_model.py"))
    source = code.read_text()
    assert ESTIMATE in source
    changed = textwrap.indent(textwrap.dedent(attack.predict), 8 * " ")
    source = source.replace(ESTIMATE, f"out = {ESTIMATE.removeprefix('return ')}\n{changed}\n        return out")
    code.write_text(f"REPORT = {str(report)!r}\n{textwrap.dedent(attack.load)}\n{source}")
    tags = {**honest.tags, "model_sha256": files_digest(files)}
    made = MlflowClient().create_model_version(NAME, str(files), run_id=honest.run_id, tags=tags)
    return int(made.version)


Promote = Callable[..., tuple[object, str, str]]


@pytest.fixture
def attacked(
    registry_with: Callable[[int | None], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Promote:
    """Run ``promote`` on a version with the code of an attack; return exit status, stdout and stderr."""
    registry_with(1)
    monkeypatch.setattr(heldout, "N_WINDOWS", N_WINDOWS)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", SECRET)

    def run_promote(attack: Attack, *words: str) -> tuple[object, str, str]:
        monkeypatch.setattr(sandbox, "RESPONSE_TIMEOUT_S", attack.timeout_s)
        number = rewritten(attack, tmp_path / "evil", tmp_path / "report")
        return say(["promote", "--version", str(number), *BOUNDS, *words], capsys, monkeypatch)

    return run_promote


def assert_not_promoted(attack: Attack, code: object, printed: str, stderr: str, folder: Path) -> None:
    """Assert outcome, registry, and what a user reads."""
    run = [run for run in all_runs() if run.data.tags.get("workflow") == "promote"][-1]
    assert aliases()["champion"] == 1
    assert all(character.isprintable() for character in (printed + stderr).replace("\n", ""))
    if attack.error:
        assert (code, stderr.count("\n"), run.info.status) == (2, 1, "FAILED"), (printed, stderr)
        assert attack.expected in stderr
        assert "no decision was made" in stderr
        assert "decision" not in run.data.tags
        return
    assert (code, run.data.tags["decision"]) == (1, "REJECTED")
    report = download(run, "decision/report.md", folder).read_text()
    assert attack.expected in report, report
    assert not {"<script", "<img"} & set(report.lower().split())


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_is_refused(name: str, attacked: Promote, tmp_path: Path) -> None:
    folder = Path.cwd()
    before = sorted(folder.iterdir())
    result = attacked(ATTACKS[name])
    assert_not_promoted(ATTACKS[name], *result, tmp_path)
    assert set(folder.iterdir()) - set(before) <= {folder / "runs", folder / "mlflow.db.lock"}
    if name == "environment":
        report = (tmp_path / "report").read_text()
        assert "MLFLOW_ALLOW_PICKLE_DESERIALIZATION" in report
        assert SECRET not in report
        assert report.endswith("[]")


def test_the_time_of_all_responses_together_is_limited(
    attacked: Promote, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sandbox, "TIME_LIMIT_S", 2.0)
    attack = Attack("its responses took more than 2 s together", predict="import time; time.sleep(0.2)")
    assert_not_promoted(attack, *attacked(attack), tmp_path)


@pytest.mark.parametrize("name", STARTS)
@pytest.mark.parametrize("ends", ["at_once", "later"])
def test_processes_that_a_version_starts_are_killed(name: str, ends: str, attacked: Promote, tmp_path: Path) -> None:
    wait = f"while not os.path.exists({str(tmp_path / 'report')!r}): time.sleep(0.01)\n"
    load = f"import os, subprocess, time\n{textwrap.dedent(STARTS[name])}\n{wait}"
    if ends == "at_once":
        attack = Attack("ended with exit code 0", load=f"{load}os._exit(0)")
    else:
        attack = Attack(ZERO, load=load, predict="out *= 0")
    assert_not_promoted(attack, *attacked(attack), tmp_path)
    assert not psutil.pid_exists(int((tmp_path / "report").read_text()))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_command_and_what_a_version_has_started(
    number: signal.Signals, registry_with: Callable[[int | None], Path], tmp_path: Path
) -> None:
    folder, report = registry_with(1), tmp_path / "report"
    load = f"import os, subprocess, time\n{textwrap.dedent(STARTS['daemon'])}\ntime.sleep(900)"
    candidate = rewritten(Attack("", load=load), tmp_path / "evil", report)
    command = [sys.executable, "-m", "freqfilter", "promote", "--version", str(candidate), *BOUNDS]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = zygote.Popen(command, cwd=folder, text=True, **pipes)
    try:
        while not (report.exists() and report.read_text()):
            assert process.poll() is None, process.communicate()
            time.sleep(0.02)
        process.send_signal(number)
        _, stderr = process.communicate(timeout=60)  # far below the time limit of a response
    finally:
        process.kill()
    assert process.returncode == 128 + number
    assert f"freqfilter: stopped by {number.name}" in stderr
    assert not psutil.pid_exists(int(report.read_text()))
    assert all_runs()[-1].info.status == "KILLED"
    assert aliases()["champion"] == 1


def test_knowledge_of_the_noise_is_refused(attacked: Promote, tmp_path: Path) -> None:
    """A version that has the targets is below the limit, which no filter can be."""
    load = f"""
    from freqfilter.config import restore
    from freqfilter.data.signal_model import SignalModel, evenly_spaced_windows
    def targets(facts):
        params = restore(facts["params"])
        model = SignalModel.from_params(params.signals)
        known = {{}}
        for noise_seed in range(123, {123 + INTERIM_ANALYSES[-1]}):
            windows = evenly_spaced_windows(model, params.data.window_length, {N_WINDOWS}, noise_seed)
            inputs, clean = windows.batch(torch.arange(len(windows)))
            known |= {{each.numpy().tobytes(): target.numpy() for each, target in zip(inputs, clean)}}
        return known
    """
    predict = """
    if not hasattr(self, "known"):
        self.known = targets(self.facts)
    for n, window in enumerate(inputs):
        out[n] = 0.5 * out[n] + 0.5 * self.known.get(window.tobytes(), out[n])
    """
    attack = Attack("below it by more than chance; targets have leaked", load=load, predict=predict)
    assert_not_promoted(attack, *attacked(attack, "--noise_seed", "123"), tmp_path)


def no_descriptors(*_: object, **__: object) -> None:
    raise OSError(errno.EMFILE, "Too many open files")


def no_space(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    ("where", "what", "message"),
    [
        ("freqfilter.pipelines.sandbox.subprocess", SimpleNamespace(Popen=no_descriptors, STDOUT=0), "Too many open"),
        ("freqfilter.pipelines.sandbox.tempfile.TemporaryFile", no_space, "No space left"),
        ("freqfilter.pipelines.sandbox.socket.socketpair", no_descriptors, "Too many open"),
        ("freqfilter.tracking.loading.mlflow.artifacts.download_artifacts", no_space, "No space left"),
        ("freqfilter.pipelines.sandbox.command", lambda: [sys.executable, "-c", "raise SystemExit(3)"], "exit code 3"),
    ],
)
def test_failures_of_the_machine_are_not_decisions(
    where: str, what: object, message: str, registry_with: object, typed: Typed, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry_with(1)  # type: ignore[operator]
    monkeypatch.setattr(where, what)
    code, line = typed("promote", "--version", str(HONEST), *BOUNDS)
    assert (code, line.count("\n")) == (2, 1), line
    assert message in line
    assert aliases()["champion"] == 1
    assert "decision" not in version(HONEST).tags


def test_lack_of_memory_of_the_machine_is_not_a_decision(
    attacked: Promote, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=10**9))
    attack = Attack("Unable to allocate", predict=ATTACKS["memory"].predict, error=True)
    assert_not_promoted(attack, *attacked(attack), tmp_path)
