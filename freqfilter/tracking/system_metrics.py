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

FIRST_S = 1.0  # until the first point, so that short runs have a curve
Source = Callable[[], dict[str, float]]  # gives values by name


@contextmanager
def system_metrics(run: Run, *, interval_s: float, warn: Callable[[str], None]) -> Iterator[None]:
    """A block during which a run gets system metrics, a point every ``interval_s`` seconds.

    The first point comes after a second, and there is one at the end. MLflow's own monitor would write to the store
    itself, which may be away; these points go through the run's outbox.
    ``MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING=false`` switches them off.

    Args:
        run: The open run.
        interval_s: Seconds from one point to the next; 0: none.
        warn: Called once with a line if sampling fails, which then ends and leaves the run alone.
    """
    switch = MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING
    if not interval_s or (switch.is_set() and not switch.get()):
        yield
        return
    ended, failed = threading.Event(), threading.Event()
    sources = _sources()
    for source in sources:  # psutil measures the share of a processor from one call to the next
        source()

    def sample() -> None:
        try:
            values = {name: value for source in sources for name, value in source().items()}
            run.log_system_metrics({f"{SYSTEM}{name}": float(value) for name, value in values.items()})
        except Exception as error:  # whatever a driver or a full disk raises
            failed.set()
            warn(f"system metrics end here: {type(error).__name__}: {error}")

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
    """What can be sampled here, under MLflow's names where it has one."""
    sources: list[Source] = [partial(_of_monitor, CPUMonitor()), partial(_of_process, psutil.Process())]
    try:
        sources.append(partial(_of_monitor, GPUMonitor()))
    except (ImportError, RuntimeError):  # NVIDIA's library or its driver is not there
        if torch.cuda.is_available():
            sources.append(_gpu_memory)
    return sources


def _of_monitor(monitor: Any) -> dict[str, float]:
    """A sample of one of MLflow's monitors."""
    monitor.collect_metrics()
    values: dict[str, float] = monitor.aggregate_metrics()
    monitor.clear_metrics()
    return values


def _of_process(process: psutil.Process) -> dict[str, float]:
    """Processor share (100 for a core) and resident memory of a process."""
    return {
        "process_cpu_percentage": process.cpu_percent(),
        "process_memory_megabytes": process.memory_info().rss / 1e6,
    }


def _gpu_memory() -> dict[str, float]:
    """Memory in use on each CUDA device, as PyTorch reports it."""
    values = {}
    for device in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(device)
        values[f"gpu_{device}_memory_usage_megabytes"] = (total - free) / 1e6
        values[f"gpu_{device}_memory_usage_percentage"] = 100 * (total - free) / total
    return values
