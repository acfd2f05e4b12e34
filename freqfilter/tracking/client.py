"""The tracking store: address, connection and environment variables of MLflow."""

from __future__ import annotations

import http.client
import logging
import os
import random
import shlex
import ssl
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TypeVar
from urllib.parse import unquote, urlsplit

import mlflow
from filelock import FileLock
from mlflow import MlflowClient
from mlflow.entities import Experiment
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.utils.file_utils import local_file_uri_to_path
from mlflow.utils.uri import is_local_uri

from freqfilter.config.load import EXPERIMENT_ID
from freqfilter.errors import UserError, one_line, without_credentials

SQLITE = "sqlite:///"
STORE_ERRORS = (MlflowException, OSError)  # those of requests are OSErrors
# Errors that a retry does not change.
FINAL_ERRORS = {"INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "PERMISSION_DENIED", "UNAUTHENTICATED"}
RETRY_TIMEOUT_S = 60.0
LOOPBACK = ("localhost", "127.0.0.1", "::1")
RESPONSE_TIMEOUT_S = 10.0
GATEWAY_ERRORS = (502, 503, 504)  # statuses of a proxy that does not reach the server

Response = TypeVar("Response")


def open_store() -> str:
    """Create the store if it is missing, and check that it responds.

    A new SQLite store is created under a lock: MLflow's migrations corrupt a store that two processes create at once.

    Returns:
        The tracking URI to show, without a password: ``MLFLOW_TRACKING_URI``, else ``mlflow.db`` in the working
        directory.

    Raises:
        UserError: If the store cannot be used.
    """
    for noisy in ("alembic", "mlflow"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # tracebacks of errors reported below
    uri: str = mlflow.get_tracking_uri()
    if not os.environ.get("MLFLOW_TRACKING_URI") and not uri.startswith(SQLITE):
        raise UserError(
            "the folder mlruns is a file store, which MLflow no longer supports; move it away, or run "
            "`mlflow migrate-filestore --source mlruns --target sqlite:///mlflow.db`"
        )
    if uri.startswith("http"):
        check_reachable(uri)
    path = _sqlite_file(uri) if uri.startswith(SQLITE) else None
    try:
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)
        with _creation_lock(path) if path else nullcontext():
            MlflowClient().search_experiments(max_results=1)
    except OSError as error:
        raise UserError(f"tracking store {without_credentials(uri)}: {error.strerror or error}") from None
    except Exception as error:  # MLflow does not wrap all exceptions of its database and network
        raise UserError(
            f"tracking store {without_credentials(uri)} cannot be used: {one_line(error)}{_proxy_note(uri)}"
        ) from error
    return without_credentials(uri)


@contextmanager
def _creation_lock(path: Path) -> Iterator[None]:
    """Context manager that locks the creation of an SQLite store; a store of another user is read without."""
    lock = FileLock(f"{path}.lock")
    try:
        lock.acquire()
    except OSError:
        if not path.exists():
            raise
    try:
        yield
    finally:
        lock.release()


def _sqlite_file(uri: str) -> Path:
    """Path of an SQLite store, without the options of its address.

    Raises:
        UserError: If a ``?`` of the path would be taken for the beginning of options.
    """
    path, _, options = uri.removeprefix(SQLITE).partition("?")
    if options and any("=" not in option or "/" in option for option in options.split("&")):
        raise UserError(f"tracking store {uri}: the ? in this path begins options of SQLite; use a folder without it")
    return Path(path)


def check_reachable(uri: str) -> None:
    """Check that a server responds; MLflow itself would wait for minutes.

    Raises:
        UserError: If it does not.
    """
    if not is_reachable(uri):
        raise UserError(
            f"tracking store {uri} does not respond{_proxy_note(uri)}; start it, or train with --tracking offline and "
            "deliver later with: python -m freqfilter sync"
        )


def is_reachable(uri: str, *, direct: bool = False) -> bool:
    """Whether an MLflow server responds at this address, through the proxy of the environment unless ``direct``."""
    opener = urllib.request.build_opener(*([urllib.request.ProxyHandler({})] if direct else []))
    try:
        opener.open(f"{without_credentials(uri).rstrip('/')}/health", timeout=RESPONSE_TIMEOUT_S).close()
    except urllib.error.HTTPError as error:
        return error.code not in GATEWAY_ERRORS or not _proxy_note(uri)
    except (OSError, http.client.HTTPException) as error:
        # A server whose certificate is not trusted is reachable; MLflow may use other certificates.
        return isinstance(getattr(error, "reason", error), ssl.SSLError)
    return True


def _proxy_note(uri: str) -> str:
    """Part of an error message with the proxy through which requests to a server are sent; empty if there is none."""
    server, proxies = urlsplit(uri), urllib.request.getproxies()
    proxy = proxies.get(server.scheme) or proxies.get("all") or ""
    address = without_credentials(proxy if "://" in proxy else f"http://{proxy}")
    if not proxy or not server.hostname or urllib.request.proxy_bypass(server.hostname):
        return ""
    return (
        f" through the proxy {address} of the environment; set NO_PROXY={server.hostname} if the server is not behind "
        "it"
    )


def equality_filter(key: str, value: str) -> str:
    r"""Filter for a value, in MLflow's syntax, or an empty filter if the syntax cannot quote the value.

    The caller compares what is found with the value: MLflow's syntax has no escape character.

    >>> equality_filter("name", "mum's filter")
    'name = "mum\'s filter"'
    """
    quote = next((quote for quote in "'\"" if quote not in value and not value.endswith("\\")), None)
    return f"{key} = {quote}{value}{quote}" if quote else ""


def check_path(name: str, path: str) -> None:
    """Check that MLflow, which takes paths for URIs, leaves a path as it is.

    Raises:
        UserError: If it does not.
    """
    if unquote(path) != path:
        raise UserError(f"{name}={path}: MLflow decodes the % in this path; use a folder without it")


def check_not_moved(location: str) -> None:
    """Check that a local folder of artifacts is where the store has it.

    MLflow stores absolute paths: after a move of the project it finds no files, and creates the former folder anew.

    Raises:
        UserError: If the folder is missing, and is found beside an SQLite store or in the working directory.
    """
    if not is_local_uri(location) or (folder := Path(local_file_uri_to_path(location))).exists():
        return
    uri = mlflow.get_tracking_uri()
    for now in (_sqlite_file(uri).parent.absolute(), Path.cwd()) if uri.startswith(SQLITE) else ():
        for before in list(folder.parents)[:0:-1]:  # the longest path below it first
            if (now / folder.relative_to(before)).exists():
                missing = next(path for path in [*reversed(folder.parents), folder] if not path.exists())
                link = max(before, missing)  # the one that is below the other
                target = now / link.relative_to(before)
                create = "" if link.parent.exists() else f"mkdir -p {shlex.quote(str(link.parent))} && "
                command = f"{create}ln -s {shlex.quote(str(target))} {shlex.quote(str(link))}"
                raise UserError(
                    f"{folder} was moved to {now / folder.relative_to(before)}, but the store has its former path; "
                    f"move it back, or run `{command}`"
                )


def check_location(client: MlflowClient, experiment: Experiment) -> None:
    """Check that the files of an experiment were not moved; see ``check_not_moved``.

    Raises:
        UserError: If they were, or their folder and the project's folder are gone.
    """
    location = experiment.artifact_location
    check_not_moved(location)
    if is_local_uri(location) and mlflow.get_tracking_uri().startswith(SQLITE):
        project = Path(local_file_uri_to_path(location)).parents[1]
        if not project.exists() and client.search_runs([experiment.experiment_id], max_results=1):
            raise UserError(
                f"artifact location {location} of the experiment: {project} does not exist; move the files back to it, "
                "or choose another experiment"
            )


def check_artifacts(client: MlflowClient, experiment_id: str) -> None:
    """Check that files can be written to an experiment's artifact location, with a small file that is deleted again.

    An unreachable server is no error: the outbox delivers the files later.

    Raises:
        UserError: If they cannot.
    """
    experiment, uri = client.get_experiment(experiment_id), mlflow.get_tracking_uri()
    check_location(client, experiment)
    location = experiment.artifact_location
    if urlsplit(location).scheme == "":
        check_path("artifact location", location)
    remedy = "use a server that serves its artifacts, or another experiment, whose location this machine can write"
    server = urlsplit(uri).hostname if uri.startswith("http") else None
    # MLflow would create the folder on this machine, where the server cannot read it.
    on_server = is_local_uri(location) and server not in (None, *LOOPBACK)
    if on_server and not Path(local_file_uri_to_path(location)).parent.exists():
        raise UserError(f"artifact location {location} of the experiment is not on this machine; {remedy}")
    try:
        with tempfile.TemporaryDirectory() as folder:
            (file := Path(folder) / "write_test").write_bytes(b"")
            repository = get_artifact_repository(location)
            repository.log_artifact(str(file), artifact_path=(name := f".{uuid.uuid4().hex}"))
        with suppress(Exception):  # not all stores can delete
            repository.delete_artifacts(name)
    except Exception as error:  # each kind of store has its own errors
        if uri.startswith("http") and not is_reachable(uri):
            return
        raise UserError(
            f"artifact location {without_credentials(location)} of the experiment cannot be written: "
            f"{one_line(error, max_length=300)}; {remedy}"
        ) from error


@contextmanager
def wrap_store_errors(subject: str) -> Iterator[None]:
    """Context manager that converts errors of MLflow to a ``UserError`` about ``subject``.

    The error names the store if something is missing: without ``MLFLOW_TRACKING_URI`` each folder has its own store.
    """
    try:
        yield
    except STORE_ERRORS as error:
        missing = getattr(error, "error_code", None) == "RESOURCE_DOES_NOT_EXIST"
        where = f" (looked in {without_credentials(mlflow.get_tracking_uri())})" if missing else ""
        raise UserError(f"{subject}: {one_line(error, max_length=300)}{where}") from error


def is_missing(error: UserError) -> bool:
    """Whether the store's response was that something is missing, and not that it cannot be read at present."""
    text = str(error.__cause__).lower()
    return any(phrase in text for phrase in ("does not exist", "no such", "nosuchkey", "not found", "404"))


def retry(request: Callable[[], Response]) -> Response:
    """Send a request to the store, repeatedly if the store is busy, locked or unreachable.

    Args:
        request: Sends the request and returns the response; it has to be idempotent.

    Raises:
        Exception: As ``request`` does, if it still fails after a minute or a retry cannot succeed.
    """
    deadline = time.monotonic() + RETRY_TIMEOUT_S
    while True:
        try:
            return request()
        except STORE_ERRORS as error:
            if getattr(error, "error_code", None) in FINAL_ERRORS or time.monotonic() > deadline:
                raise
        time.sleep(random.uniform(0.2, 2.0))  # random, since other processes may retry too


@contextmanager
def temporary_env(**values: str) -> Iterator[None]:
    """Context manager that sets environment variables and restores them afterwards."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def temporary_dir(folder: Path) -> Iterator[None]:
    """Context manager that puts temporary files into ``folder``, which is cleared even if the process is killed."""
    before, tempfile.tempdir = tempfile.tempdir, str(folder)
    try:
        yield
    finally:
        tempfile.tempdir = before


def find_experiment(client: MlflowClient, name: str) -> Experiment | None:
    """Return an experiment by its name, or by ``MLFLOW_EXPERIMENT_ID=ID``; None if there is none of this name.

    Raises:
        UserError: If there is none of this id, or it is deleted.
    """
    if name.startswith(f"{EXPERIMENT_ID}="):
        with wrap_store_errors(name):
            found = client.get_experiment(name.removeprefix(f"{EXPERIMENT_ID}="))
    else:
        found = client.get_experiment_by_name(name)
    if found:
        check_active(client, found)
    return found


def check_active(client: MlflowClient, experiment: Experiment) -> None:
    """Check that an experiment is not deleted.

    Raises:
        UserError: If it is.
    """
    if experiment.lifecycle_stage == "deleted":
        uri = str(client.tracking_uri)
        store = "" if uri == mlflow.get_tracking_uri() else f"MLFLOW_TRACKING_URI={shlex.quote(uri)} "
        restore = f"{store}mlflow experiments restore --experiment-id {experiment.experiment_id}"
        raise UserError(
            f"experiment={experiment.name}: the experiment is deleted; restore it with `{restore}`, or choose another"
        )


def experiment_name(name: str) -> str:
    """Return the name of an experiment given as for ``find_experiment``."""
    experiment = find_experiment(MlflowClient(), name) if name.startswith(f"{EXPERIMENT_ID}=") else None
    return str(experiment.name) if experiment else name


def experiment_id(client: MlflowClient, name: str) -> str:
    """Return the id of an experiment, which is created if it is missing.

    Raises:
        UserError: If it is deleted, or does not exist and has no name.
    """
    if experiment := find_experiment(client, name):
        return str(experiment.experiment_id)
    with suppress(MlflowException):  # another process was faster
        return str(client.create_experiment(name))
    return str(client.get_experiment_by_name(name).experiment_id)
