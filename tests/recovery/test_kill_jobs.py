"""Jobs that are killed at any moment, some several times, and repeated: the results of an uninterrupted job."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import mlflow
import numpy as np
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from freqfilter.tracked_names import SYSTEM
from freqfilter.tracking.loading import files_digest
from tests import zygote
from tests.conftest import ELSEWHERE, SEED, SMALL, SOAK, Typed, all_runs, draw_nothing, is_repeatable, options, work_in
from tests.recovery.comparing import RICH, Outcome, history

pytestmark = [
    pytest.mark.slow,
    pytest.mark.soak,
    pytest.mark.skipif(not SOAK, reason=f"{ELSEWHERE}make soak"),
]

TRIALS = range(6)
MOST_KILLS = 3  # of one job
SIGNALS = options({name: SMALL[name] for name in ("n_samples", "duration_s", "window_length")})
OF_A_FILE = RICH | {
    "data_file": "mine.npz", "augment_noise_std": "0.1", "augment_gain_db": "3", "checkpoint_minutes": "0.002"
}  # fmt: skip
SWEEPS = {
    "seeds": ["train", *options(RICH | {"epochs": "4"}), "--seeds", "[1, 2]"],
    "ablate": ["ablate", *options(RICH | {"epochs": "4"}), "--values", "{hidden_size: 4}", "--register", "true"],
}
Workplace = Callable[[str], Path]


@pytest.fixture
def workplace(tmp_path: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch) -> Workplace:
    """Function that makes a working folder with a store of its own and changes to it."""
    draw_nothing(monkeypatch)

    def make(name: str) -> Path:
        work = tmp_path / name / "work"
        work.mkdir(parents=True)
        store = Path(shutil.copy(empty_store, tmp_path / name / "mlflow.db"))
        work_in(work, store, monkeypatch, cache=empty_store.parent / "cache")
        return work

    return make


class Killing:
    """Starts commands and kills them at random moments.

    Args:
        seed: Seed of the moments.
    """

    def __init__(self, seed: str) -> None:
        self.seed = seed
        self.random = random.Random(seed)
        self.moments: list[str] = []

    def __str__(self) -> str:
        return f"seed {self.seed!r}: killed {', '.join(self.moments)}"

    def kill(self, lasts_s: float, words: list[str]) -> bool:
        """Start a command and kill it within its usual duration; return whether it ended before."""
        after_s = self.random.uniform(0, 1.1 * lasts_s)
        process = start(words)
        try:
            process.wait(after_s)
        except subprocess.TimeoutExpired:
            process.kill()
        ended = process.wait() == 0
        self.moments.append(f"{words[0]} {'not' if ended else f'after {after_s:.2f} s'}")
        return ended

    def times(self) -> Iterator[int]:
        yield from range(self.random.randint(1, MOST_KILLS))


def start(words: list[str]) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "freqfilter", *words]
    return zygote.Popen(command, cwd=Path.cwd(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, text=True)


def timed(words: list[str]) -> float:
    """Run a command and return its duration in seconds."""
    started = time.monotonic()
    assert start(words).wait() == 0
    return time.monotonic() - started


def metrics(run: Run) -> dict[str, list[tuple[int, float]]]:
    """All points of a run's repeatable metrics."""
    names = [name for name in run.data.metrics if not name.startswith(SYSTEM)]
    names = [name for name in names if is_repeatable(name.removesuffix("_mean").removesuffix("_std"))]
    return {name: history(run, name) for name in names}


def sweep() -> tuple[Run, dict[str, Outcome]]:
    """The newest finished parent run, and the outcomes of its children."""
    runs = all_runs()
    parent = [run for run in runs if run.data.tags.get("workflow") in SWEEPS and run.info.status == "FINISHED"][-1]
    children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    return parent, {run.info.run_name: Outcome.of(run) for run in children}


def finished(workflow: str = "train") -> bool:
    """Whether a run of a job has finished, although its process was killed afterwards."""
    return any((run.info.status, run.data.tags.get("workflow")) == ("FINISHED", workflow) for run in all_runs())


def close_stale_runs(typed: Typed, context: object) -> None:
    """Run the doctor, after which no run is RUNNING."""
    assert typed("doctor") == (0, ""), str(context)
    assert "RUNNING" not in {run.info.status for run in all_runs()}, str(context)


@pytest.mark.parametrize("number", TRIALS)
@pytest.mark.parametrize("workflow", SWEEPS)
def test_several_trainings(workflow: str, number: int, workplace: Workplace, typed: Typed) -> None:
    words, killing = SWEEPS[workflow], Killing(f"{SEED} {workflow} {number}")
    workplace("whole")
    lasts_s = timed(words)
    parent, children = sweep()
    metrics_of_parent = metrics(parent)
    workplace("killed")
    for _ in killing.times():
        if killing.kill(lasts_s, words) or finished(workflow):
            break
        close_stale_runs(typed, killing)
        for run in [run for run in all_runs() if run.info.status == "KILLED" and run.info.run_name in children]:
            code, line = typed("resume", run.info.run_id)
            assert code == 0 or "has no checkpoint" in line, f"{killing}: {line}"
            if code == 0:
                children[run.info.run_name].assert_same(MlflowClient().get_run(run.info.run_id))
    else:
        assert typed(*words) == (0, ""), str(killing)
    again, of_again = sweep()
    assert {**again.data.params, "run_dir": ""} == {**parent.data.params, "run_dir": ""}, str(killing)
    assert metrics(again) == metrics_of_parent, str(killing)
    assert of_again.keys() == children.keys(), str(killing)
    for run in all_runs():
        if run.data.tags.get("mlflow.parentRunId") == again.info.run_id:
            children[run.info.run_name].assert_same(run)


@pytest.mark.parametrize("number", TRIALS)
def test_training_from_a_data_file(number: int, workplace: Workplace, typed: Typed) -> None:
    killing, words = Killing(f"{SEED} file {number}"), ["train", *options(OF_A_FILE)]
    workplace("whole")
    assert typed("prepare", "--output", "mine.npz", *SIGNALS) == (0, "")
    data = Path("mine.npz").absolute()
    lasts_s = timed(words)
    whole = Outcome.of(all_runs()[-1])
    whole.params.pop("data_file")
    shutil.copy(data, workplace("killed"))
    run_id = ""
    for _ in killing.times():
        if killing.kill(lasts_s, ["resume", run_id] if run_id else words) or finished():
            break
        resumable = [run.info.run_id for run in all_runs() if list(Path("runs", run.info.run_id).rglob("*.pt"))]
        run_id = resumable[-1] if resumable else ""
        if not run_id:
            close_stale_runs(typed, killing)
    else:
        assert typed(*(["resume", run_id] if run_id else words)) == (0, ""), str(killing)
    run = MlflowClient().get_run(run_id) if run_id else all_runs()[-1]
    run.data.params.pop("data_file")
    whole.assert_same(run)
    assert Counter(run.info.status for run in all_runs())["FINISHED"] == 1, str(killing)


@pytest.mark.parametrize("number", TRIALS)
def test_prepare(number: int, workplace: Workplace, typed: Typed) -> None:
    killing, words = Killing(f"{SEED} prepare {number}"), ["prepare", "--output", "mine.npz", *SIGNALS]
    workplace("whole")
    lasts_s = timed(words)
    whole = dict(np.load("mine.npz"))
    workplace("killed")
    for _ in killing.times():
        if killing.kill(lasts_s, words) or finished("prepare"):
            break
        if Path("mine.npz").exists():
            assert np.load("mine.npz").files == list(whole), str(killing)
    else:
        assert typed(*words) == (0, ""), str(killing)
    close_stale_runs(typed, killing)
    again = dict(np.load("mine.npz"))
    assert again.keys() == whole.keys()
    assert all(np.array_equal(again[name], array) for name, array in whole.items())
    assert sorted(path.name for path in Path().iterdir()) == ["mine.npz", "mlruns", "runs"], str(killing)
    assert Counter(run.info.status for run in all_runs())["FINISHED"] == 1, str(killing)


@pytest.mark.parametrize("number", TRIALS)
def test_export_and_copy(number: int, workplace: Workplace, empty_store: Path, typed: Typed) -> None:
    killing = Killing(f"{SEED} deploy {number}")
    workplace("registry")
    assert typed("train", *options(SMALL | {"epochs": "1"})) == (0, "")
    export = ["export", "--output", "filter.onnx"]
    export_s = timed(export)
    content = Path("filter.onnx").read_bytes()
    Path("filter.onnx").unlink()
    for _ in killing.times():
        if killing.kill(export_s, export):
            break
        assert not Path("filter.onnx").exists() or Path("filter.onnx").read_bytes() == content
    else:
        assert typed(*export) == (0, ""), str(killing)
    assert Path("filter.onnx").read_bytes() == content
    assert sorted(path.name for path in Path().iterdir()) == ["filter.onnx", "mlruns", "runs"], str(killing)

    measured, other = (Path(shutil.copy(empty_store, f"{name}.db")).absolute() for name in ("measured", "other"))
    copy_s = timed(["copy", "--to", f"sqlite:///{measured}"])
    for _ in killing.times():
        if killing.kill(copy_s, ["copy", "--to", f"sqlite:///{other}"]):
            break
    assert typed("copy", "--to", f"sqlite:///{other}") == (0, ""), str(killing)  # once more, if it has ended
    there = MlflowClient(f"sqlite:///{other}", f"sqlite:///{other}")
    (version,) = there.search_model_versions()
    assert there.get_registered_model(version.name).aliases == {"candidate": 1}, str(killing)
    runs = there.search_runs([experiment.experiment_id for experiment in there.search_experiments()])
    assert [(run.info.run_id, run.info.status) for run in runs] == [(version.run_id, "FINISHED")], str(killing)
    files = mlflow.artifacts.download_artifacts(version.source, dst_path="copied")
    assert files_digest(Path(files)) == version.tags["model_sha256"], str(killing)


@pytest.mark.parametrize("number", TRIALS)
def test_sync_and_doctor(number: int, workplace: Workplace, whole: Outcome, typed: Typed) -> None:
    killing = Killing(f"{SEED} sync {number}")
    workplace("offline")
    assert typed("train", *options(RICH), "--tracking", "offline") == (0, "")
    offline = Path("runs").absolute()
    workplace("measured")
    shutil.copytree(offline, "runs")
    sync_s = timed(["sync"])
    doctor_s = timed(["doctor"])
    workplace("killed")
    shutil.copytree(offline, "runs")
    for _ in killing.times():
        if killing.kill(sync_s, ["sync"]):
            break
        killing.kill(doctor_s, ["doctor"])
    assert typed("sync") == (0, ""), str(killing)
    close_stale_runs(typed, killing)
    (run,) = all_runs()
    run.data.params["tracking"] = "online"
    whole.assert_same(run)
    assert list(Path("runs").iterdir()) == [], str(killing)
    assert len(MlflowClient().search_model_versions()) == 1
