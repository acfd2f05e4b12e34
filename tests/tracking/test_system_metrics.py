"""System metrics are logged through the outbox, and their failure does not fail a run."""

from __future__ import annotations

import signal
import threading
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

import freqfilter
from freqfilter.config import resolve
from freqfilter.tracked_names import OUTBOX, SYSTEM
from freqfilter.tracking import system_metrics as module
from freqfilter.tracking.lifecycle import Job, open_run
from freqfilter.tracking.outbox import messages
from freqfilter.tracking.system_metrics import system_metrics
from tests.conftest import SMALL, all_runs, interrupt_after_an_epoch, start

EXPECTED = {
    "system/cpu_utilization_percentage",
    "system/system_memory_usage_megabytes",
    "system/system_memory_usage_percentage",
    "system/process_cpu_percentage",
    "system/process_memory_megabytes",
}
TRACKING = resolve({"experiment": "e"}).tracking


def steps(run: Run) -> dict[str, list[int]]:
    client = MlflowClient()
    return {
        name: sorted(point.step for point in client.get_metric_history(run.info.run_id, name))
        for name in run.data.metrics
        if name.startswith(SYSTEM)
    }


def sampled(folder: Path, *, interval_s: float, seconds: float) -> tuple[Run, list[str]]:
    """Log system metrics for some seconds; return the run and the warnings."""
    warnings: list[str] = []
    with open_run(TRACKING, Job("test", "a name")) as run:
        with system_metrics(run, interval_s=interval_s, warn=warnings.append):
            time.sleep(seconds)
        assert "system_metrics" not in {thread.name for thread in threading.enumerate()}
    return MlflowClient().get_run(run.run_id), warnings


def test_samples_are_taken_at_every_interval_and_at_the_end(folder: Path) -> None:
    run, warnings = sampled(folder, interval_s=0.2, seconds=1.1)
    assert set(steps(run)) >= EXPECTED
    for found in steps(run).values():
        assert 3 <= len(found) <= 6
        assert found == list(range(1, len(found) + 1))
    assert 0 < run.data.metrics["system/system_memory_usage_percentage"] < 100
    assert 50 < run.data.metrics["system/process_memory_megabytes"] < 1e5
    assert warnings == []


def test_a_short_training_has_samples_and_interval_0_none(folder: Path) -> None:
    short = SMALL | {"epochs": "1", "register": "false"}
    for interval, expected in (("10", {1, 2}), ("0", set())):
        freqfilter.train(**short, system_metrics_interval=interval, progress=False)
        found = {step for each in steps(all_runs()[-1]).values() for step in each}
        assert found <= expected
        assert bool(found) == bool(expected)


def test_mlflows_variable_disables_them_and_never_duplicates_them(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "false")
    assert steps(sampled(folder, interval_s=0.1, seconds=0.3)[0]) == {}
    monkeypatch.setenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "true")
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.1")
    run, _ = sampled(folder, interval_s=10, seconds=0.6)
    assert set(map(tuple, steps(run).values())) == {(1,)}
    assert not {name for name in run.data.metrics if "network" in name or "disk" in name}, "MLflow's thread ran too"


def test_a_resumed_run_continues_the_steps_without_duplicates(folder: Path) -> None:
    words = [
        word for name, value in (SMALL | {"system_metrics_interval": "0.2"}).items() for word in (f"--{name}", value)
    ]
    with interrupt_after_an_epoch(signal.SIGTERM):
        assert start("train", *words) == 143
    before = steps(all_runs()[0])
    assert start("resume", all_runs()[0].info.run_id) == 0
    (run,) = all_runs()
    assert run.info.status == "FINISHED"
    assert set(steps(run)) >= EXPECTED
    for name, found in steps(run).items():
        assert found == list(range(1, len(found) + 1))
        assert len(found) > len(before[name])


def test_failed_sampling_prints_a_warning_and_the_run_continues(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: object) -> dict[str, float]:
        calls.append(1)
        if len(calls) > 1:
            raise RuntimeError("the driver has gone")
        return {}

    calls: list[int] = []
    monkeypatch.setattr(module, "_sample_process", broken)
    run, warnings = sampled(folder, interval_s=0.1, seconds=0.5)
    assert run.info.status == "FINISHED"
    assert warnings == ["system metrics stopped: RuntimeError: the driver has gone"]
    assert len(calls) == 2


def test_messages_of_two_threads_are_complete_lines(folder: Path) -> None:
    tracking = TRACKING.model_copy(update={"tracking": "offline", "run_dir": str(folder / "runs")})
    with open_run(tracking, Job("test", "a name")) as run:

        def log_system(count: int) -> None:
            for _ in range(count):
                run.log_system_metrics({"system/x": 1.0})

        thread = threading.Thread(target=log_system, args=(200,))
        thread.start()
        for step in range(200):
            run.log_metrics({"m": float(step)}, step=step)
        thread.join()
        found = [message for message in messages(run.folder / OUTBOX) if message["kind"] == "metrics"]
    for name, expected in (("system/x", range(1, 201)), ("m", range(200))):
        assert [message["step"] for message in found if name in message["values"]] == list(expected)
