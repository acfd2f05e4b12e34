"""Serve a version over HTTP, once its files have been checked."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from freqfilter.params import TrackingParams
from freqfilter.stopping import Stopping
from freqfilter.tracking.champions import CHAMPION
from freqfilter.tracking.loading import checked_files
from freqfilter.tracking.store import open_store
from freqfilter.workflows.console import Console

HOST = "127.0.0.1"
POLL_S = 0.5  # between looks at the server


def serve(tracking: TrackingParams, *, number: int | None, port: int, stopping: Stopping, console: Console) -> int:
    """Serve a version with `mlflow models serve` on the loopback address until it is stopped.

    Args:
        tracking: Where the registry is, and the name of the model.
        number: The version; None: the champion.
        port: Where it listens.
        stopping: Tells when to stop.
        console: Hears where it is.

    Returns:
        The exit code of the server.

    Raises:
        UserError: If there is no such version, or its files are not those that were registered.
    """
    open_store()
    name = tracking.model_name
    uri = f"models:/{name}/{number}" if number is not None else f"models:/{name}@{CHAMPION}"
    with tempfile.TemporaryDirectory() as folder:
        files = checked_files(uri, Path(folder))  # what has been checked is what is served
        console.say(f"serving {uri} on http://{HOST}:{port}/invocations, ready when /ping answers")
        words = ["models", "serve", "--model-uri", str(files), "--env-manager", "local", "--host", HOST]
        return run_server(
            [sys.executable, "-m", "mlflow", *words, "--port", str(port)],
            os.environ | {"MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false", "OMP_NUM_THREADS": "1"},
            stopping,
        )


def run_server(
    command: Sequence[str],
    environment: Mapping[str, str],
    stopping: Stopping,
    *,
    ready: Callable[[], bool] = lambda: True,
    on_ready: Callable[[], None] = lambda: None,
) -> int:
    """Run a server until it ends or this process is stopped; its exit code.

    Args:
        command: The server's command.
        environment: Its environment.
        stopping: Ends the server.
        ready: Whether the server answers.
        on_ready: Called once, when it does.
    """
    server, waiting = subprocess.Popen(command, env=environment), True
    try:
        with stopping.deferred():
            while server.poll() is None:
                stopping.check()
                if waiting and ready():
                    waiting = False
                    on_ready()
                try:
                    server.wait(timeout=POLL_S)
                except subprocess.TimeoutExpired:
                    continue
        return server.returncode
    finally:
        server.terminate()
        server.wait()
