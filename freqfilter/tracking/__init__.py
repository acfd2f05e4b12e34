"""Tracking with MLflow; no other part imports it."""

from __future__ import annotations

import getpass
import os
from pathlib import Path
from urllib.parse import unquote, urlsplit

from freqfilter.process import launcher_folder

# MLflow reads these when it is imported and when it sends a request. By default, it retries an unreachable server for
# four minutes; here the outbox retries, and training does not wait for it.
DEFAULTS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "ORT_DISABLE_TELEMETRY": "1",  # of ONNX Runtime, which exports are checked with
}


def configure_environment() -> None:
    """Set the environment variables of MLflow that the user has not set, before MLflow is imported.

    A password in ``MLFLOW_TRACKING_URI`` moves to the variables that MLflow reads it from, since MLflow prints the
    address in its errors. In the SQLite addresses of the tracking store and the registry, ``~`` becomes the home
    folder, and a relative path is resolved against the folder in which ``mlflow run`` was called; MLflow starts this
    process in the project's folder.
    """
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    try:
        getpass.getuser()
    except (KeyError, OSError):  # a user id without a name, as in containers; MLflow asks for it in each run
        os.environ["LOGNAME"] = f"uid{os.getuid()}"
    try:
        Path.home()
    except RuntimeError:  # such a user id without HOME; MLflow asks for it when it is imported
        os.environ["HOME"] = "/"  # as in containers
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"):
        if uri := os.environ.get(name):
            os.environ[name] = resolve_sqlite_uri(uri)
    server = urlsplit(os.environ.get("MLFLOW_TRACKING_URI", ""))
    if server.scheme in ("http", "https") and server.username is not None:
        os.environ["MLFLOW_TRACKING_USERNAME"] = unquote(server.username)
        os.environ["MLFLOW_TRACKING_PASSWORD"] = unquote(server.password or "")
        os.environ["MLFLOW_TRACKING_URI"] = server._replace(netloc=server.netloc.rpartition("@")[2]).geturl()


def resolve_sqlite_uri(uri: str) -> str:
    """Resolve the path of an SQLite address as ``configure_environment`` does; other addresses stay as they are."""
    path = Path(uri.removeprefix("sqlite:///"))
    if not uri.startswith("sqlite:///") or path.is_absolute():
        return uri
    path = path.expanduser() if path.parts[:1] == ("~",) else (launcher_folder() or Path()) / path
    return f"sqlite:///{path}"
