"""The tracking store: address, connection and environment variables of MLflow."""

from __future__ import annotations

import http.client
import logging
import os
import random
import ssl
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TypeVar

import mlflow
from filelock import FileLock
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from freqfilter.errors import UserError, one_line, without_credentials

SQLITE = "sqlite:///"
STORE_ERRORS = (MlflowException, OSError)  # requests' are OSErrors
# What asking again does not change.
FINAL_ERRORS = {"INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "PERMISSION_DENIED", "UNAUTHENTICATED"}
PATIENCE_S = 60.0
ANSWER_TIMEOUT_S = 10.0

Answer = TypeVar("Answer")


def open_store() -> str:
    """Make the store where it is missing, and see that it answers.

    A new SQLite store is made under a lock: processes that make the same one at once destroy it in MLflow's
    migrations.

    Returns:
        The tracking URI to show, without a password: ``MLFLOW_TRACKING_URI``, else ``mlflow.db`` in the working
        directory.

    Raises:
        UserError: If the store cannot be used.
    """
    for noisy in ("alembic", "mlflow"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # tracebacks of what is said in a line
    uri: str = mlflow.get_tracking_uri()
    if not os.environ.get("MLFLOW_TRACKING_URI") and not uri.startswith(SQLITE):
        raise UserError(
            "the folder mlruns here is an old file store, which MLflow no longer takes: move it away, or run "
            "`mlflow migrate-filestore --source mlruns --target sqlite:///mlflow.db`"
        )
    if uri.startswith("http"):
        check_reachable(uri)
    path = Path(uri.removeprefix(SQLITE)) if uri.startswith(SQLITE) else None
    try:
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(f"{path}.lock") if path else nullcontext()
        with lock:
            MlflowClient().search_experiments(max_results=1)
    except OSError as error:
        raise UserError(f"tracking store {without_credentials(uri)}: {error.strerror or error}") from None
    except Exception as error:  # MLflow lets its database's and network's own exceptions through
        raise UserError(f"tracking store {without_credentials(uri)} cannot be used: {one_line(error)}") from error
    return without_credentials(uri)


def check_reachable(uri: str) -> None:
    """Ask a server for anything at all; MLflow itself would wait for minutes.

    Raises:
        UserError: If it does not answer.
    """
    if not is_reachable(uri):
        raise UserError(
            f"tracking store {uri} does not answer: start it, or train with --tracking offline and deliver later with "
            "`python -m freqfilter sync`"
        )


def is_reachable(uri: str) -> bool:
    """Whether an MLflow server answers at this address."""
    try:
        urllib.request.urlopen(f"{without_credentials(uri).rstrip('/')}/health", timeout=ANSWER_TIMEOUT_S).close()  # noqa: S310
    except urllib.error.HTTPError:
        return True
    except (OSError, http.client.HTTPException) as error:
        # A server with a certificate that this process does not trust is there; MLflow may have other certificates.
        return isinstance(getattr(error, "reason", error), ssl.SSLError)
    return True


@contextmanager
def wrap_store_errors(subject: str) -> Iterator[None]:
    """A block in which what MLflow refuses becomes a user's error about ``subject``.

    What is missing may stand in another store: without ``MLFLOW_TRACKING_URI`` each folder has its own.
    """
    try:
        yield
    except STORE_ERRORS as error:
        missing = getattr(error, "error_code", None) == "RESOURCE_DOES_NOT_EXIST"
        where = f" (looked in {without_credentials(mlflow.get_tracking_uri())})" if missing else ""
        raise UserError(f"{subject}: {one_line(error, max_length=300)}{where}") from error


def retry(ask: Callable[[], Answer]) -> Answer:
    """The store's answer, also where it is busy, locked or away for a while.

    Args:
        ask: Asks the store; to ask twice does no harm.

    Raises:
        Exception: As ``ask`` does, if it still does so after a minute or will for ever.
    """
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            return ask()
        except STORE_ERRORS as error:
            if getattr(error, "error_code", None) in FINAL_ERRORS or time.monotonic() > deadline:
                raise
        time.sleep(random.uniform(0.2, 2.0))  # others may be asking too


@contextmanager
def temporary_env(**values: str) -> Iterator[None]:
    """A block in which environment variables have these values; afterwards they are as before."""
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
    """A block whose temporary files are in a folder of ours, which is cleared also after a process that was killed."""
    before, tempfile.tempdir = tempfile.tempdir, str(folder)
    try:
        yield
    finally:
        tempfile.tempdir = before
