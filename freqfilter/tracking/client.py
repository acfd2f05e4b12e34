"""The tracking store: address, connection and environment variables of MLflow."""

from __future__ import annotations

import hashlib
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
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

import mlflow
import platformdirs
from filelock import FileLock
from google.protobuf.json_format import ParseError  # type: ignore[import-untyped]
from mlflow import MlflowClient
from mlflow.entities import Experiment
from mlflow.exceptions import MlflowException
from sqlalchemy.engine import make_url

from freqfilter.atomic_io import writable_folder
from freqfilter.config.load import EXPERIMENT_ID
from freqfilter.errors import UserError, printable, without_credentials

SQLITE = "sqlite:///"
STORE_ERRORS = (MlflowException, OSError, ParseError)  # those of requests are OSErrors; of responses not MLflow's
NO_EXPERIMENT = "e3c5a1f0-no-experiment-has-this-name"
# Errors that a retry does not change.
FINAL_ERRORS = {"INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "PERMISSION_DENIED", "UNAUTHENTICATED"}
RETRY_TIMEOUT_S = 60.0
LOOPBACK = ("localhost", "127.0.0.1", "::1")
RESPONSE_TIMEOUT_S = 10.0
GATEWAY_ERRORS = (502, 503, 504)  # statuses of a proxy that does not reach the server

Response = TypeVar("Response")


def open_store() -> str:
    """Create the store and the registry if they are missing, and check that they respond.

    Returns:
        The tracking URI to show, without a password: ``MLFLOW_TRACKING_URI``, else ``mlflow.db`` in the working
        directory.

    Raises:
        UserError: If one of them cannot be used.
    """
    uri, registry_uri = str(mlflow.get_tracking_uri()), str(mlflow.get_registry_uri())
    if not os.environ.get("MLFLOW_TRACKING_URI") and not uri.startswith(SQLITE):
        raise UserError(
            "the folder mlruns is a file store, which MLflow no longer supports; move it away, or run "
            "`mlflow migrate-filestore --source mlruns --target sqlite:///mlflow.db`"
        )
    open_uri("tracking store", uri, lambda: check_responses(MlflowClient()))
    if registry_uri != uri:
        open_uri("model registry", registry_uri, lambda: MlflowClient().search_registered_models(max_results=1))
    return without_credentials(uri)


def open_uri(what: str, uri: str, request: Callable[[], object]) -> None:
    """Create a store if it is missing, and check that it responds.

    A new SQLite store is created under a lock: MLflow's migrations corrupt a store that two processes create at once.

    Args:
        what: What it is, for messages.
        uri: Its address.
        request: Sends a request to it.

    Raises:
        UserError: If it cannot be used.
    """
    for noisy in ("alembic", "mlflow"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # tracebacks of errors reported below
    if uri.startswith("http"):
        check_reachable(uri, what)
    path = sqlite_file(uri) if uri.startswith(SQLITE) else None
    try:
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)
        with _creation_lock(uri, path) if path else nullcontext():
            request()
    except OSError as error:
        raise UserError(f"{what} {without_credentials(uri)}: {error.strerror or error}") from None
    except Exception as error:  # MLflow does not wrap all exceptions of its database and network
        note = _proxy_note(uri) or _server_note(uri)
        remedy = "" if note and FORBIDDEN in str(error) else known_remedy(error)
        reason = f"{_message(error, remedy)}{'' if remedy else note}"
        raise UserError(f"{what} {without_credentials(uri)} cannot be used: {reason}") from error


def check_responses(client: MlflowClient) -> None:
    """Check that a tracking store responds as MLflow does.

    Raises:
        MlflowException: If it does not, as another program at the address of a server.
    """
    client.search_experiments(max_results=1)
    if client.get_experiment_by_name(NO_EXPERIMENT) is not None:
        raise MlflowException("its responses are not those of MLflow")


FORBIDDEN = "error code 403"  # of MLflow, and of macOS at port 5000
LOG_IN = "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, to those of a user there"
ASK = "ask its administrator for permission, or use another user in MLFLOW_TRACKING_USERNAME"
# What to do, by a part of the error's text.
REMEDIES = {
    "file is not a database": "give the address of an MLflow database, or of a new file",
    "database is locked": "end the program that locks it, or add ?timeout=60 to the address to wait for it",
    "readonly database": "make the file and its folder writable, or use another store",
    "out-of-date database schema": "if it is older, back it up and run `mlflow db upgrade` with this address; if it is "
    "newer, install the MLflow version that made it",
    "error code 401": LOG_IN,
    "401 Client Error": LOG_IN,  # of artifacts
    FORBIDDEN: ASK,
    "403 Client Error": ASK,
    "certificate verify failed": "set MLFLOW_TRACKING_SERVER_CERT_PATH to the file of its certificate",
}


def known_remedy(error: Exception) -> str:
    """What to do about an error of a store; empty if that is not known."""
    return next((remedy for phrase, remedy in REMEDIES.items() if phrase in str(error)), "")


def _message(error: Exception, remedy: str) -> str:
    """Message of a store's error on one line, without SQL; its first sentence and the remedy, if there is one."""
    text = str(error).partition("[SQL:")[0].strip()
    return f"{printable(text.partition('. ')[0])[:120]}; {remedy}" if remedy else printable(text)


def _server_note(uri: str) -> str:
    """Part of an error message about the program that responds at an address; empty if it may be MLflow."""
    if not uri.startswith("http") or _responds_as_mlflow(uri):
        return ""
    return (
        "; another program than MLflow responds there: end it, or start the server at another port, as with `mlflow "
        "server --port 5050`, and set MLFLOW_TRACKING_URI to its address"
    )


def _responds_as_mlflow(uri: str) -> bool:
    try:
        with urllib.request.build_opener().open(_health(uri), timeout=RESPONSE_TIMEOUT_S) as response:
            return bool(response.read(100).strip() == b"OK")
    except (OSError, http.client.HTTPException):
        return False


def store_lock(uri: str) -> FileLock:
    """Lock of a store for the processes of this machine: beside an SQLite store, else in the user's state folder.

    Raises:
        UserError: If the state folder cannot be written.
    """
    if uri.startswith(SQLITE):
        return FileLock(f"{sqlite_file(uri)}.lock")
    try:
        folder = writable_folder(Path(platformdirs.user_state_dir("freqfilter")) / "locks")
    except UserError as error:
        raise UserError(f"{error}: set XDG_STATE_HOME to a folder that you can write") from None
    return FileLock(folder / f"{hashlib.sha256(uri.encode()).hexdigest()[:16]}.lock")


@contextmanager
def _creation_lock(uri: str, path: Path) -> Iterator[None]:
    """Context manager that locks the creation of an SQLite store; a store of another user is read without."""
    lock = store_lock(uri)
    try:
        lock.acquire()
    except OSError:
        if not path.exists():
            raise
    try:
        yield
    finally:
        lock.release()


def sqlite_file(uri: str) -> Path:
    """Path of an SQLite store, without the options of its address.

    Raises:
        UserError: If a ``?`` of the path would be taken for the beginning of options, or a ``%`` decoded.
    """
    path, _, options = uri.removeprefix(SQLITE).partition("?")
    if options and any("=" not in option or "/" in option for option in options.split("&")):
        raise UserError(f"tracking store {uri}: the ? in this path begins options of SQLite; use a folder without it")
    decoded = Path(make_url(uri).database or path)
    if Path(path).parent.exists() and not decoded.parent.exists():
        raise UserError(f"tracking store {uri}: MLflow decodes the % in this path; write %25 for it")
    return decoded


def check_reachable(uri: str, what: str = "tracking store") -> None:
    """Check that a server responds; MLflow itself would wait for minutes.

    Raises:
        UserError: If it does not.
    """
    if not is_reachable(uri):
        raise UserError(
            f"{what} {uri} does not respond{_proxy_note(uri)}; start it, or train with --tracking offline and "
            "deliver later with: python -m freqfilter sync"
        )


def is_reachable(uri: str, *, direct: bool = False) -> bool:
    """Whether an MLflow server responds at this address, through the proxy of the environment unless ``direct``."""
    opener = urllib.request.build_opener(*([urllib.request.ProxyHandler({})] if direct else []))
    try:
        opener.open(_health(uri), timeout=RESPONSE_TIMEOUT_S).close()
    except urllib.error.HTTPError as error:
        return error.code not in GATEWAY_ERRORS or not _proxy_note(uri)
    except (OSError, http.client.HTTPException) as error:
        # A server whose certificate is not trusted is reachable; MLflow may use other certificates.
        return isinstance(getattr(error, "reason", error), ssl.SSLError)
    return True


def _health(uri: str) -> str:
    """Address at which an MLflow server responds OK, without a password."""
    return f"{without_credentials(uri).rstrip('/')}/health"


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
        raise UserError(f"{subject}: {_message(error, known_remedy(error))}{where}") from error


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
        if uri.startswith(SQLITE):
            uri = f"{SQLITE}{Path(uri.removeprefix(SQLITE)).absolute()}"
        restore = (
            f"MLFLOW_TRACKING_URI={shlex.quote(uri)} mlflow experiments restore "
            f"--experiment-id {experiment.experiment_id}"
        )
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
