"""The only part that imports mlflow: store, runs, provenance and registry."""

import os
from pathlib import Path
from urllib.parse import unquote, urlsplit

from freqfilter.process import launcher_folder

# MLflow reads these when it is imported or asks its server. What a user has set stays as it is. Its own patience is
# four minutes for a server that is away and two for one that says nothing; ours is in the outbox, where nobody waits.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")

# MLflow would show the password of such an address in its errors, and takes it from elsewhere too.
_server = urlsplit(os.environ.get("MLFLOW_TRACKING_URI", ""))
if _server.scheme in ("http", "https") and _server.username is not None:
    os.environ["MLFLOW_TRACKING_USERNAME"] = unquote(_server.username)
    os.environ["MLFLOW_TRACKING_PASSWORD"] = unquote(_server.password or "")
    os.environ["MLFLOW_TRACKING_URI"] = _server._replace(netloc=_server.netloc.rpartition("@")[2]).geturl()

# `mlflow run` starts this process in the project's folder; the user means a relative path in the one of the command.
_uri = os.environ.get("MLFLOW_TRACKING_URI", "")
_path = Path(_uri.removeprefix("sqlite:///"))
if _uri.startswith("sqlite:///") and not _path.is_absolute() and (_folder := launcher_folder()):
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{_folder / _path}"
