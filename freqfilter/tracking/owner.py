"""The process that owns a run, and the status that a run gets after its launcher has ended.

``python -m freqfilter.tracking.owner RUN_ID STATUS PID`` waits for the launcher to end and sets the status, because
``mlflow run`` marks a run FAILED when its child was stopped, even if the child has ended the run as KILLED:
``mlflow.projects._maybe_set_run_terminated`` compares the name of the status with numbers, so that no status counts as
terminal (MLflow 3.17.2).
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Self

import psutil
from mlflow import MlflowClient

from freqfilter.atomic_io import HOST
from freqfilter.process import running

PROCESS = "process"  # tag of the owner
LONGEST_WAIT_S = 60.0  # for the launcher to end


@dataclass(frozen=True)
class RunOwner:
    """The process that owns a run.

    Attributes:
        host: Name of the machine.
        pid: Process id.
        started: Start of the process, seconds since 1970; unique together with ``host`` and ``pid``.
        run_dir: Folder of the runs' folders.
    """

    host: str
    pid: int
    started: float
    run_dir: str

    @classmethod
    def current(cls, run_dir: str) -> Self:
        """Describe this process."""
        process = psutil.Process()
        return cls(HOST, process.pid, process.create_time(), run_dir)

    @classmethod
    def from_tags(cls, tags: Mapping[str, str]) -> Self | None:
        """Read the owner from a run's tags; None if they have none."""
        try:
            owner = json.loads(tags[PROCESS])
            return cls(str(owner["host"]), int(owner["pid"]), float(owner["started"]), str(owner["run_dir"]))
        except (KeyError, TypeError, ValueError):
            return None

    @property
    def tag(self) -> dict[str, str]:
        """Name and value of the run's tag."""
        return {PROCESS: json.dumps(asdict(self))}

    @property
    def is_local(self) -> bool:
        """Whether the process is on this machine."""
        return self.host == HOST

    @property
    def is_alive(self) -> bool | None:
        """Whether the process is running; None if it is on another machine."""
        if not self.is_local:
            return None
        try:
            process = psutil.Process(self.pid)
            return running(process) and abs(process.create_time() - self.started) < 1
        except psutil.Error:
            return False


def set_status_after(launcher: psutil.Process, run_id: str, status: str) -> None:
    """Start a detached process that waits for ``launcher`` to end and then sets the run's status."""
    command = [sys.executable, "-m", __name__, run_id, status, str(launcher.pid)]
    quiet = subprocess.DEVNULL
    subprocess.Popen(command, stdin=quiet, stdout=quiet, stderr=quiet, start_new_session=True)


def _main(run_id: str, status: str, pid: str) -> None:
    with suppress(psutil.Error):  # it has ended already, or does not end in time
        psutil.Process(int(pid)).wait(LONGEST_WAIT_S)
    MlflowClient().set_terminated(run_id, status)


if __name__ == "__main__":
    _main(*sys.argv[1:])
