"""MLflow's UI on the tracking store, with the addresses of the newest training's page and of the saved views."""

from __future__ import annotations

import os
import socket
import sys

from freqfilter.errors import UserError
from freqfilter.stopping import Stopping
from freqfilter.tracking.store import answers, open_store
from freqfilter.tracking.stored import newest_training
from freqfilter.workflows.console import Console
from freqfilter.workflows.run_ref import RunRef
from freqfilter.workflows.serve import HOST, run_server

# The job runner and its workers would take two gigabytes, and nothing here uses them.
SERVER_ENVIRONMENT = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}


def ui(*, port: int, stopping: Stopping, console: Console) -> int:
    """Serve MLflow's UI on the loopback address until it is stopped, or print where the store's own UI is.

    Args:
        port: The port.
        stopping: Ends the server.
        console: Prints the addresses once the server answers.

    Returns:
        The exit code of the server.

    Raises:
        UserError: If the store cannot be used, or the port is in use.
    """
    tracking_uri = open_store()
    server = tracking_uri if tracking_uri.startswith("http") else f"http://{HOST}:{port}"

    def print_addresses() -> None:
        console.say(f"MLflow: {server}")
        if found := newest_training():
            run = RunRef(found.run_id, "", found.experiment_id, tracking_uri)
            console.say(f"  newest training, {found.name}: {run.page(server)}")
            console.say(f"  all trainings: {run.view(server, 'trainings')}")
            console.say(f"  all decisions: {run.view(server, 'decisions')}")

    if server == tracking_uri:
        print_addresses()
        return 0
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            raise UserError(
                f"port={port} is in use: end the program that listens there, or give another --port"
            ) from None
    command = [sys.executable, "-m", "mlflow", "server", "--host", HOST, "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", os.environ.get("MLFLOW_TRACKING_URI") or tracking_uri]
    return run_server(
        command,
        os.environ | SERVER_ENVIRONMENT,
        stopping,
        ready=lambda: answers(server),
        on_ready=print_addresses,
    )
