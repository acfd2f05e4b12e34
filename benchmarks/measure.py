"""Measurement of sides in separate processes that run alternately, with median and spread."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

import psutil
import torch

ROOT = Path(__file__).parents[1]


@dataclass
class Row:
    """One figure of one side.

    Attributes:
        side: Program or variant that was measured.
        figure: Measured quantity.
        unit: Unit of the values.
        values: One value per measurement; None: not reached.
        against: Side that it is compared with, if any.
        setting: Name and value of the setting, for the part on growth.
    """

    side: str
    figure: str
    unit: str
    values: list[float | None]
    against: str | None = None
    setting: dict[str, float] = field(default_factory=dict)

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Self:
        """Read a row that ``as_json`` returned."""
        return cls(**{name: stored[name] for name in cls.__dataclass_fields__})

    @property
    def median(self) -> float | None:
        """Median of the values; None if fewer than half were reached."""
        values = sorted(float("inf") if value is None else value for value in self.values)
        middle = statistics.median_low(values)
        return None if middle == float("inf") else statistics.median(values)

    @property
    def spread(self) -> tuple[float, float] | None:
        """Minimum and maximum of the values that were reached."""
        reached = [value for value in self.values if value is not None]
        return (min(reached), max(reached)) if reached else None

    def ratio(self, rows: Iterable[Row]) -> float | None:
        """Ratio of the median to that of the row that it is compared with."""
        same = [row for row in rows if (row.side, row.figure, row.setting) == (self.against, self.figure, self.setting)]
        if not same or not same[0].median or self.median is None:
            return None
        return self.median / same[0].median

    def as_json(self, rows: Sequence[Row]) -> dict[str, Any]:
        """Convert the row to JSON values, with median and ratio."""
        return asdict(self) | {"median": self.median, "ratio": self.ratio(rows)}


def say(line: str) -> None:
    """Print a line with the time."""
    print(f"{time.strftime('%H:%M:%S')} {line}", flush=True)


@dataclass(frozen=True)
class Ended:
    """Result of a process.

    Attributes:
        answer: Value of its last line, parsed as JSON; None if it is not JSON.
        output: Its standard output.
        seconds: Wall time.
        processor_seconds: Processor time.
        peak_mb: Peak resident memory, MB.
    """

    answer: Any
    output: str
    seconds: float
    processor_seconds: float
    peak_mb: float


def process(command: Sequence[str], *, environment: Mapping[str, str] | None = None, cwd: Path = ROOT) -> Ended:
    """Run a command and wait for its end.

    Raises:
        RuntimeError: If it fails.
    """
    started = time.perf_counter()
    everything = os.environ | {"PYTHONPATH": str(ROOT)} | dict(environment or {})
    with tempfile.TemporaryFile() as errors:
        child = subprocess.Popen(command, cwd=cwd, env=everything, stdout=subprocess.PIPE, stderr=errors)
        assert child.stdout is not None
        output = child.stdout.read().decode()
        _, status, usage = os.wait4(child.pid, 0)  # the only way to get its peak memory
        child.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.perf_counter() - started
        errors.seek(0)
        stderr = errors.read().decode()
    if child.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {child.returncode}:\n{stderr[-3000:]}")
    last = output.strip().splitlines()[-1:]
    try:
        answer = json.loads(last[0]) if last else None
    except ValueError:
        answer = None
    return Ended(answer, output, seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


def in_turns(
    sides: Mapping[str, Sequence[str]],
    *,
    rounds: int,
    environment: Mapping[str, str] | None = None,
    cwd: Path = ROOT,
) -> dict[str, list[Ended]]:
    """Run the sides' commands A B C A B C, so that changes of the machine affect all alike."""
    ended: dict[str, list[Ended]] = {name: [] for name in sides}
    for turn in range(1, rounds + 1):
        for name, command in sides.items():
            ended[name].append(process(command, environment=environment, cwd=cwd))
            say(f"  round {turn} of {rounds}: {name}, {ended[name][-1].seconds:.1f} s")
    return ended


def side(module: str, **arguments: Any) -> list[str]:
    """Command of a side that is a module of this package and takes its arguments as JSON."""
    return [sys.executable, "-m", f"benchmarks.{module}", json.dumps(arguments)]


def machine() -> dict[str, Any]:
    """Describe the machine and the software versions."""
    return {
        "processor": _processor(),
        "cores": psutil.cpu_count(logical=False),
        "threads": torch.get_num_threads(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9),
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d"),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
