"""The process that owns a run, and the status that a run gets after its launcher has ended.

``python -m freqfilter.tracking.owner RUN_ID STATUS PID`` waits for the launcher and sets the status. It is needed since
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

PROCESS = "process"  # the tag that names the owner
LONGEST_WAIT_S = 60.0  # for the launcher to end


@dataclass(frozen=True)
class RunOwner:
    """The process that owns a run.

    Attributes:
        host: The machine's name.
        pid: The process's number there.
        started: Its start, seconds since 1970; with host and number no other process has it.
        run_dir: The folder in which it keeps a folder for the run.
    """

    host: str
    pid: int
    started: float
    run_dir: str

    @classmethod
    def current(cls, run_dir: str) -> Self:
        """This process."""
        process = psutil.Process()
        return cls(HOST, process.pid, process.create_time(), run_dir)

    @classmethod
    def from_tags(cls, tags: Mapping[str, str]) -> Self | None:
        """The process that the tags of a run name; None where they name none."""
        try:
            named = json.loads(tags[PROCESS])
            return cls(str(named["host"]), int(named["pid"]), float(named["started"]), str(named["run_dir"]))
        except (KeyError, TypeError, ValueError):
            return None

    @property
    def tag(self) -> dict[str, str]:
        """The tag that names it."""
        return {PROCESS: json.dumps(asdict(self))}

    @property
    def is_local(self) -> bool:
        """Whether it is on this machine."""
        return self.host == HOST

    @property
    def is_alive(self) -> bool | None:
        """Whether it is still running; None where the process is on another machine."""
        if not self.is_local:
            return None
        try:
            process = psutil.Process(self.pid)
            return running(process) and abs(process.create_time() - self.started) < 1
        except psutil.Error:
            return False


def set_status_after(launcher: psutil.Process, run_id: str, status: str) -> None:
    """Leave a process behind that waits for ``launcher`` to end and then sets the run's status."""
    command = [sys.executable, "-m", __name__, run_id, status, str(launcher.pid)]
    quiet = subprocess.DEVNULL
    subprocess.Popen(command, stdin=quiet, stdout=quiet, stderr=quiet, start_new_session=True)


def _main(run_id: str, status: str, pid: str) -> None:
    with suppress(psutil.Error):  # it is gone already, or will not go
        psutil.Process(int(pid)).wait(LONGEST_WAIT_S)
    MlflowClient().set_terminated(run_id, status)


if __name__ == "__main__":
    _main(*sys.argv[1:])
