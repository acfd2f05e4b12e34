"""Servers: MLflow's UI on the store, and a model version over HTTP."""

from __future__ import annotations

import errno
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

from freqfilter.atomic_io import temporary_folder
from freqfilter.config import TrackingParams
from freqfilter.errors import UserError
from freqfilter.process import shutdown
from freqfilter.tracking import aliases
from freqfilter.tracking.client import is_reachable, open_store
from freqfilter.tracking.queries import TRAININGS, stored_runs
from freqfilter.tracking.ui_views import RunRef

logger = logging.getLogger(__name__)

HOST = "127.0.0.1"
POLL_S = 0.5  # between checks of the server
TERMINATION_S = 1.0  # until a server that has got SIGTERM is killed
# The job runner and its workers take two gigabytes of memory and are not used.
SERVER_ENVIRONMENT = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}


def ui(*, port: int) -> int:
    """Serve MLflow's UI on the loopback address until interrupted, or print the address of a remote store's UI.

    Returns:
        The exit code of the server.

    Raises:
        UserError: If the store cannot be used, or the port is in use.
    """
    tracking_uri = open_store()
    server = tracking_uri if tracking_uri.startswith("http") else f"http://{HOST}:{port}"

    def print_addresses() -> None:
        logger.info(f"MLflow: {server}")
        if training := next(stored_runs(TRAININGS), None):
            run = RunRef(training.run_id, "", training.experiment_id, tracking_uri)
            logger.info(f"  newest training, {training.name}: {run.page(server)}")
            logger.info(f"  all trainings: {run.view(server, 'trainings')}")
            logger.info(f"  all decisions: {run.view(server, 'decisions')}")

    if server == tracking_uri:
        print_addresses()
        return 0
    _check_port(port)
    command = [sys.executable, "-m", "mlflow", "server", "--host", HOST, "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", os.environ.get("MLFLOW_TRACKING_URI") or tracking_uri]
    return run_server(
        command, SERVER_ENVIRONMENT, ready=lambda: is_reachable(server, direct=True), on_ready=print_addresses
    )


def serve(tracking: TrackingParams, *, version: int | None, port: int) -> int:
    """Serve a version with `mlflow models serve` on the loopback address until interrupted.

    Args:
        tracking: Tracking parameters with the name of the model.
        version: Version number; None for the champion.
        port: Port of the server.

    Returns:
        The exit code of the server.

    Raises:
        UserError: If the port is in use, there is no such version, or its files are missing or were changed.
    """
    from freqfilter.tracking.loading import MODEL_SPACE, checked_files  # imports PyTorch, which the UI does not need

    _check_port(port)
    open_store()
    name = tracking.model_name
    chosen = aliases.candidate_version(name, version) if version else aliases.require_alias(name, aliases.CHAMPION)
    with temporary_folder(space=MODEL_SPACE) as folder:
        files = checked_files(chosen.uri, folder)  # serve exactly the files that were checked
        logger.info(f"serving {chosen.uri} on http://{HOST}:{port}/invocations; ready when /ping returns 200")
        arguments = ["models", "serve", "--model-uri", str(files), "--env-manager", "local", "--host", HOST]
        return run_server(
            [sys.executable, "-m", "mlflow", *arguments, "--port", str(port)],
            {"MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false", "OMP_NUM_THREADS": "1", "PATH": _path()},
        )


def _check_port(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            reason = "is in use; stop the program that listens there, or" if error.errno == errno.EADDRINUSE else ""
            raise UserError(f"port={port} {reason or f'{error.strerror};'} give another --port") from None


def _path() -> str:
    """Search path with the programs of this interpreter's environment, which may not be activated; MLflow calls one."""
    return os.pathsep.join([os.path.dirname(sys.executable), os.environ.get("PATH", os.defpath)])  # noqa: PTH120


def run_server(
    command: Sequence[str],
    environment: Mapping[str, str],
    *,
    ready: Callable[[], bool] = lambda: True,
    on_ready: Callable[[], None] = lambda: None,
) -> int:
    """Run a server until it exits or this process is interrupted; return its exit code.

    Args:
        command: Command of the server.
        environment: Its environment variables, in addition to those of this process.
        ready: Returns whether the server accepts requests.
        on_ready: Called once, when the server is ready.
    """
    # No process of the server imports from the working folder, where a file may have a library's name.
    # Ctrl-C of a terminal reaches this process alone, since MLflow would print a traceback.
    server = subprocess.Popen(command, env=os.environ | {"PYTHONSAFEPATH": "1", **environment}, process_group=0)
    waiting = True
    try:
        with shutdown.deferred():
            while server.poll() is None:
                shutdown.check()
                if waiting and ready():
                    waiting = False
                    on_ready()
                with suppress(subprocess.TimeoutExpired):
                    server.wait(timeout=POLL_S)
        return server.returncode
    finally:
        for number, timeout_s in ((signal.SIGTERM, TERMINATION_S), (signal.SIGKILL, None)):
            with suppress(ProcessLookupError, subprocess.TimeoutExpired):
                os.killpg(server.pid, number)
                server.wait(timeout_s)  # uvicorn delays a signal until it has imported MLflow
                break
