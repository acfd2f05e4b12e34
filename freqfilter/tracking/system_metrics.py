"""System metrics of a run, sampled on a thread: processor, memory, this process, and the GPU where there is one."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import psutil
import torch
from mlflow.environment_variables import MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING
from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor

from freqfilter.tracked_names import SYSTEM
from freqfilter.tracking.run import Run

FIRST_S = 1.0  # until the first sample, so that short runs have a curve
Source = Callable[[], dict[str, float]]  # returns values by name


@contextmanager
def system_metrics(run: Run, *, interval_s: float, warn: Callable[[str], None]) -> Iterator[None]:
    """Context manager that logs a sample of system metrics every ``interval_s`` seconds, and one at the end.

    MLflow's monitor writes to the store, which may be unreachable; these samples go through the run's outbox.
    ``MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING=false`` disables them.

    Args:
        run: The open run.
        interval_s: Seconds between samples; 0: none.
        warn: Called with a message if sampling fails; sampling then stops, the run continues.
    """
    switch = MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING
    if not interval_s or (switch.is_set() and not switch.get()):
        yield
        return
    ended, failed = threading.Event(), threading.Event()
    sources = _sources()
    for source in sources:  # psutil measures processor usage between two calls
        source()

    def sample() -> None:
        try:
            values = {name: value for source in sources for name, value in source().items()}
            run.log_system_metrics({f"{SYSTEM}{name}": float(value) for name, value in values.items()})
        except Exception as error:  # drivers and full disks raise exceptions of many types
            failed.set()
            warn(f"system metrics stopped: {type(error).__name__}: {error}")

    def work() -> None:
        pause_s = min(FIRST_S, interval_s)
        while not ended.wait(pause_s) and not failed.is_set():
            sample()
            pause_s = interval_s

    thread = threading.Thread(target=work, name="system_metrics", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        if not failed.is_set():
            sample()


def _sources() -> list[Source]:
    """Sources of this machine; metrics have MLflow's names where it has one."""
    sources: list[Source] = [partial(_sample_monitor, CPUMonitor()), partial(_sample_process, psutil.Process())]
    try:
        sources.append(partial(_sample_monitor, GPUMonitor()))
    except (ImportError, RuntimeError):  # NVIDIA's library or driver is missing
        if torch.cuda.is_available():
            sources.append(_gpu_memory)
    return sources


def _sample_monitor(monitor: Any) -> dict[str, float]:
    monitor.collect_metrics()
    values: dict[str, float] = monitor.aggregate_metrics()
    monitor.clear_metrics()
    return values


def _sample_process(process: psutil.Process) -> dict[str, float]:
    memory_mb = process.memory_info().rss / 1e6
    return {"process_cpu_percentage": process.cpu_percent(), "process_memory_megabytes": memory_mb}


def _gpu_memory() -> dict[str, float]:
    """Sample memory in use on each CUDA device, as PyTorch reports it."""
    values = {}
    for device in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(device)
        values[f"gpu_{device}_memory_usage_megabytes"] = (total - free) / 1e6
        values[f"gpu_{device}_memory_usage_percentage"] = 100 * (total - free) / total
    return values
