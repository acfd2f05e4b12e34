"""Set a run's status once the launcher is gone: ``python -m freqfilter.tracking.afterwards RUN_ID STATUS PID``.

When its child has stopped, ``mlflow run`` calls the run FAILED, also where the child has ended it as KILLED:
``mlflow.projects._maybe_set_run_terminated`` compares the status's name with numbers, so that no status ever looks
terminal to it (MLflow 3.17.2). So the truth has to be told after it.
"""

from __future__ import annotations

import subprocess
import sys
from contextlib import suppress

import psutil
from mlflow import MlflowClient

LONGEST_WAIT_S = 60.0


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
