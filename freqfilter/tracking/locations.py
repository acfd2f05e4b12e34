"""Locations of artifacts: they can be written, and their files are where the store has them."""

from __future__ import annotations

import shlex
import uuid
from contextlib import suppress
from pathlib import Path
from urllib.parse import unquote, urlsplit

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Experiment
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.utils.file_utils import local_file_uri_to_path
from mlflow.utils.uri import is_local_uri

from freqfilter.atomic_io import temporary_folder
from freqfilter.errors import UserError, one_line, without_credentials
from freqfilter.tracking.client import LOOPBACK, SQLITE, is_reachable, known_remedy, sqlite_file


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
    for now in (sqlite_file(uri).parent.absolute(), Path.cwd()) if uri.startswith(SQLITE) else ():
        for before in list(folder.parents)[:0:-1]:  # the longest path below it first
            if (now / folder.relative_to(before)).exists():
                missing = next(path for path in [*reversed(folder.parents), folder] if not path.exists())
                link = max(before, missing)  # the one that is below the other
                target = now / link.relative_to(before)
                create = "" if link.parent.exists() else f"mkdir -p {shlex.quote(str(link.parent))} && "
                command = f"{create}ln -s {shlex.quote(str(target))} {shlex.quote(str(link))}"
                raise UserError(
                    f"{link} was moved to {target}, but the store has its former path; move it back, or run `{command}`"
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


def moved_files() -> list[str]:
    """Messages about the experiments whose files were moved."""
    messages = []
    for experiment in MlflowClient().search_experiments():
        try:
            check_location(MlflowClient(), experiment)
        except UserError as error:
            messages.append(str(error))
    return messages


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
        with temporary_folder() as folder:
            (file := folder / "write_test").write_bytes(b"")
            repository = get_artifact_repository(location)
            repository.log_artifact(str(file), artifact_path=(name := f".{uuid.uuid4().hex}"))
        with suppress(Exception):  # not all stores can delete
            repository.delete_artifacts(name)
    except UserError:  # of the temporary folder
        raise
    except Exception as error:  # each kind of store has its own errors
        if uri.startswith("http") and not is_reachable(uri):
            return
        raise UserError(
            f"artifact location {without_credentials(location)} of the experiment cannot be written: "
            f"{one_line(error, max_length=300)}; {known_remedy(error) or remedy}"
        ) from error
