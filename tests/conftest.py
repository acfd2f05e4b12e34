"""Shared fixtures: a store for each test, a small setting, and the program as a user starts it."""

from __future__ import annotations

import inspect
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import mlflow
import psutil
import pytest
import torch
from filelock import FileLock
from matplotlib.figure import Figure
from mlflow import MlflowClient
from mlflow.entities import Run

from freqfilter.cli import main
from freqfilter.config import Params, resolve
from freqfilter.errors import UserError
from freqfilter.models.network import FrequencyFilterLSTM
from freqfilter.pipelines import sandbox
from freqfilter.plots import data, evaluation
from freqfilter.progress import ProgressHandler
from freqfilter.tracked_names import EPOCH_SECONDS, PEAK_MEMORY, SYSTEM
from freqfilter.tracking import configure_environment
from freqfilter.training.device import Accelerator
from freqfilter.training.reports import EpochReport
from freqfilter.training.state import TrainingState
from tests import zygote

configure_environment()

# A program that was started in the background or by nohup ignores these signals, and so would all that it starts.
for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)

pytest.register_assert_rewrite("tests.recovery.comparing")  # for messages that show the difference

# More threads than free cores slow each other down.
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)

ROOT = Path(__file__).parents[1]
SOAK = "FREQFILTER_SOAK" in os.environ  # `make soak`
SEED = int(os.environ.get("FREQFILTER_SEED", "1"))  # of the tests' random numbers


def is_repeatable(name: str) -> bool:
    """Whether a metric has the same value when a run is repeated: no time, memory or load."""
    return name not in (EPOCH_SECONDS, PEAK_MEMORY) and not name.startswith(SYSTEM)


MEMORY = Path("/dev/shm")  # noqa: S108 (a file system in memory, by its name on Linux)
ROOM = 4e9  # bytes; the tests use some hundred megabytes
ELSEWHERE = "executed by "  # prefix of the reason for skipping what another test covers


def pytest_configure(config: pytest.Config) -> None:
    """Keep the tests' files in memory if there is space: stores are flushed to disk thousands of times."""
    free = shutil.disk_usage(MEMORY).free if MEMORY.is_dir() and os.access(MEMORY, os.W_OK) else 0
    if min(free, psutil.virtual_memory().available) > ROOM:
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> Iterator[None]:
    """Print a last line that names the tests which this machine cannot run, if any.

    In CI pytest's summary is the last line; the report above it lists them.
    """
    yield
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None or hasattr(session.config, "workerinput"):
        return
    reasons = [report.longrepr[2].removeprefix("Skipped: ") for report in reporter.stats.get("skipped", [])]
    left_out = Counter(reason for reason in reasons if not reason.startswith(ELSEWHERE))
    if left_out and "FREQFILTER_REQUIRE_BROWSER" not in os.environ:
        reporter.write_line("left out: " + "; ".join(f"{count} {reason}" for reason, count in left_out.items()))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run files of slow tests first, so that fast tests balance the load of the workers."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


def many(in_ci: int, in_soak: int) -> int:
    """Number of trials of a randomized test."""
    return in_soak if SOAK else in_ci


# Trains in a second, with all parts of a real run.
SMALL = {
    "n_samples": "400",
    "duration_s": "0.4",
    "window_length": "20",
    "hidden_size": "8",
    "epochs": "3",
    "windows_per_epoch": "null",
    "batch_size": "128",
    "precision": "fp32",
    "optimizer": "adam",
    "targets": "clean",
    "learning_rate": "0.002",
    "scheduler": "plateau",
    "holdout_windows": "200",
    "threads": "1",
}


# Added to SMALL: recordings of random signals, with a state that is carried from chunk to chunk.
SMALL_RECORDINGS = {
    "phase_distribution": "uniform",
    "amplitude_distribution": "rayleigh",
    "memory_s": "0.5",
    "recording_length": "100",
    "chunk_length": "30",
    "recordings_per_epoch": "24",
    "validation_recordings": "6",
    "test_recordings": "8",
    "batch_size": "8",
}


def _coarsest_precision() -> str:
    """Return bf16 if this processor can train in it, else fp32."""
    try:
        Accelerator.open(resolve({"precision": "bf16", "threads": "1"}).training)
    except UserError:
        return "fp32"
    return "bf16"


COARSEST = _coarsest_precision()


def network(*, n_components: int) -> FrequencyFilterLSTM:
    """The network of the small setting."""
    return FrequencyFilterLSTM(n_components=n_components, **resolve(SMALL).model.model_dump())


def fresh_state(params: Params) -> TrainingState:
    """Initial state of a training."""
    return TrainingState(
        n_components=len(params.signals.frequencies_hz),
        model=params.model,
        training=params.training,
        accelerator=Accelerator.open(params.training),
        selector=not params.of_recordings,
    )


def options(values: dict[str, str]) -> list[str]:
    return [word for name, value in values.items() for word in (f"--{name}", value)]


def start(*words: str) -> object:
    """Run the command line in this process; return its exit status."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["freqfilter", *words])
        try:
            main.main()
        except SystemExit as ended:
            return ended.code
        return 0


def say(
    words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> tuple[object, str, str]:
    """Run the command line in this process; return exit status, stdout and stderr."""
    monkeypatch.setattr(sys, "argv", ["freqfilter", *words])
    try:
        main.main()
    except SystemExit as ended:
        code = ended.code
    else:
        code = 0
    heard = capsys.readouterr()
    return code, heard.out, heard.err


def call(words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> tuple[object, str]:
    """Run the command line in this process; return exit status and stderr."""
    code, _, last_words = say(words, capsys, monkeypatch)
    return code, last_words


@contextmanager
def interrupt_after_an_epoch(number: signal.Signals) -> Iterator[None]:
    """Context manager that sends a signal to a training in this process after its first epoch."""
    show = ProgressHandler.show

    def interrupt(self: ProgressHandler, report: object, *, epochs: int) -> None:
        show(self, report, epochs=epochs)  # type: ignore[arg-type]
        if isinstance(report, EpochReport):
            signal.raise_signal(number)

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ProgressHandler, "show", interrupt)
            yield
    finally:  # an interrupted program ignores further signals
        for number, handler in before.items():
            signal.signal(number, handler)


def wait_for_line(
    words: str, command: list[str], folder: Path, *, start: type[subprocess.Popen[str]] = zygote.Popen
) -> subprocess.Popen[str]:
    """Start the program in a new session, and return once it has printed a line with these words."""
    process = start(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    assert process.stdout
    heard = []
    for line in process.stdout:
        heard.append(line)
        if words in line:
            return process
    raise AssertionError(f"it ended before {words!r}:\n{''.join(heard)}")


def free_port() -> int:
    """Return a free port of the loopback address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def wait_until_it_answers(url: str, process: subprocess.Popen[str], log: Path) -> None:
    """Wait until a started server responds."""
    deadline = time.monotonic() + 90
    while True:
        try:
            urllib.request.urlopen(url, timeout=5).close()  # noqa: S310 (our own server)
            return
        except OSError:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, "the server does not answer"
            time.sleep(0.3)


def all_runs() -> list[Run]:
    """Runs of all experiments, the oldest first."""
    client = MlflowClient()
    return list(client.search_runs([e.experiment_id for e in client.search_experiments()], order_by=["start_time"]))


def artifacts(run: Run, folder: str = "") -> set[str]:
    """Paths of a run's artifacts."""
    found = set()
    for file in MlflowClient().list_artifacts(run.info.run_id, folder):
        found |= artifacts(run, file.path) if file.is_dir else {file.path}
    return found


def download(run: Run, artifact: str, to: Path) -> Path:
    return Path(mlflow.artifacts.download_artifacts(run_id=run.info.run_id, artifact_path=artifact, dst_path=str(to)))


def made_once(name: str, make: Callable[[Path], object], factory: pytest.TempPathFactory) -> Path:
    """Folder whose content takes seconds to create: the first of pytest's workers creates it for all."""
    among = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        among = among.parent
    folder = among / name
    with FileLock(among / f"{name}.lock"):
        if not (folder / "made").exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            make(folder)
            (folder / "made").touch()
    return folder


def in_store(store: Path, cache: Path, *words: str, run: Callable[..., object] = zygote.run) -> None:
    """Run ``python -m freqfilter WORD…`` on an SQLite store, in its folder."""
    environment = os.environ | {
        "MLFLOW_TRACKING_URI": f"sqlite:///{store}",
        "XDG_CACHE_HOME": str(cache),
        "PYTHONPATH": str(ROOT),
        zygote.DRAW_NOTHING: "1",
    }
    run([sys.executable, "-m", "freqfilter", *words], env=environment, check=True, cwd=store.parent)


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SQLite store with all of MLflow's tables."""

    def make(folder: Path) -> None:
        in_store(folder / "mlflow.db", folder / "cache", "init_store")

    return made_once("store", make, tmp_path_factory) / "mlflow.db"


def work_in(folder: Path, store: Path, patch: pytest.MonkeyPatch, *, cache: Path) -> None:
    """Set working directory and store of this process and its children, whatever the environment."""
    patch.chdir(folder)
    for name in [name for name in os.environ if name.startswith("MLFLOW_")]:
        patch.delenv(name)
    patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{store}")
    patch.setenv("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    patch.setenv("XDG_CACHE_HOME", str(cache))
    patch.setenv("XDG_STATE_HOME", str(cache))
    patch.setenv("PYTHONPATH", str(ROOT))
    patch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)


@pytest.fixture
def folder(tmp_path: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory, with a store in the environment."""
    store = tmp_path / "store" / "mlflow.db"
    store.parent.mkdir()
    shutil.copy(empty_store, store)
    work = tmp_path / "work"
    work.mkdir()
    work_in(work, store, monkeypatch, cache=empty_store.parent / "cache")
    draw_nothing(monkeypatch)
    return work


def draw_nothing(patch: pytest.MonkeyPatch) -> None:
    """Replace pictures by one pixel, here and in forked processes: they take most of a small run's time.

    They are drawn in newly started programs, in tests/plots/test_plots.py and in tests/ui.
    """
    zygote.draw_nothing(patch.setattr)
    for module in (data, evaluation):
        for name, function in inspect.getmembers(module, inspect.isfunction):
            if function.__module__ == module.__name__ and function.__annotations__.get("return") == "Figure":
                patch.setattr(module, name, lambda *_, **__: Figure())
    patch.setenv(zygote.DRAW_NOTHING, "1")


def fork_model_workers(patch: pytest.MonkeyPatch) -> None:
    """Let this process fork its model servers from the zygote; other processes start them anew."""
    names = {"STDOUT": subprocess.STDOUT, "TimeoutExpired": subprocess.TimeoutExpired}
    patch.setattr(sandbox, "subprocess", SimpleNamespace(Popen=zygote.Popen, **names))


Typed = Callable[..., tuple[object, str]]


@pytest.fixture
def typed(folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Typed:
    """Run the command line in this process, since a new one takes seconds; return exit status and stderr."""

    def type_words(*words: str) -> tuple[object, str]:
        return call(list(words), capsys, monkeypatch)

    return type_words


Program = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def freqfilter(folder: Path) -> Program:
    """Run ``python -m freqfilter WORD…`` in the folder, in a process forked from the zygote."""

    def start(*words: str) -> subprocess.CompletedProcess[str]:
        return zygote.run([sys.executable, "-m", "freqfilter", *words], cwd=folder)

    return start


@pytest.fixture
def started_anew(folder: Path) -> Program:
    """Run ``python -m freqfilter WORD…`` in the folder, in a new process."""

    def start(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "freqfilter", *words]
        return subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=300, check=False)

    return start


@pytest.fixture
def mlflow_run(folder: Path, tmp_path: Path) -> Program:
    """``mlflow run PROJECT …`` in the folder, forked from the zygote, as is the program that it starts in a shell."""
    stand_ins = zygote.stand_ins(tmp_path / "stand_ins")

    def start(*words: str, project: str = str(ROOT), **parameters: str) -> subprocess.CompletedProcess[str]:
        given = [word for name, value in parameters.items() for word in ("-P", f"{name}={value}")]
        command = [sys.executable, "-m", "mlflow", "run", project, "--env-manager", "local", *words, *given]
        return zygote.run(command, cwd=folder, env=os.environ | stand_ins)

    return start


class Server:
    """A real `mlflow server` on the loopback address with its own store, which can be stopped and restarted."""

    def __init__(self, folder: Path) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self._log = folder.parent / "server.log"
        words = ["server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
        store = ["--backend-store-uri", f"sqlite:///{folder.parent / 'store' / 'mlflow.db'}"]
        self._command = [
            sys.executable,
            "-m",
            "mlflow",
            *words,
            *store,
            "--artifacts-destination",
            str(folder / "kept"),
        ]
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        environment.pop("MLFLOW_TRACKING_URI", None)
        with self._log.open("a") as log:
            self._process = zygote.Popen(
                self._command, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True, text=True
            )
        wait_until_it_answers(f"{self.url}/health", self._process, self._log)

    def send(self, number: signal.Signals) -> None:
        assert self._process
        os.killpg(self._process.pid, number)

    def kill(self) -> None:
        if self._process:
            self.send(signal.SIGKILL)
            self._process.wait()
            self._process = None


@pytest.fixture
def server(folder: Path) -> Iterator[Server]:
    """A server that has not been started."""
    made = Server(folder)
    yield made
    made.kill()


@pytest.fixture
def tracking_server(server: Server) -> str:
    """Address of a running server."""
    server.start()
    return server.url
