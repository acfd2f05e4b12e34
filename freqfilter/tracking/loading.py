"""Loading of registered models, with checksums and without unpickling."""

from __future__ import annotations

import hashlib
import pickle
import re
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import mlflow
import numpy as np
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.models_artifact_repo import REGISTERED_MODEL_META_FILE_NAME, ModelsArtifactRepository
from mlflow.store.artifact.utils.models import get_model_name_and_version
from mlflow.utils.file_utils import local_file_uri_to_path
from mlflow.utils.uri import is_local_uri

from freqfilter.atomic_io import temporary_folder
from freqfilter.errors import UserError, one_line
from freqfilter.tracking.aliases import RegisteredVersion, all_versions
from freqfilter.tracking.client import temporary_env, wrap_store_errors
from freqfilter.tracking.locations import check_not_moved

if TYPE_CHECKING:
    from freqfilter.models.filter import Filter

SCHEMA = 2  # version of facts.json; incompatible changes increase it
MODEL_SPACE = 8_000_000  # bytes for a copy of a model's files; one of the default recipe takes a million
GOLDEN = "artifacts/golden.npz"  # path in a version's files
MODEL_DIGEST = "model_sha256"  # tag of a logged model and of a version
NO_PICKLE_ENV = {
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_RECORD_ENV_VARS_IN_MODEL_LOGGING": "false",
}
LOAD_ERRORS = (AttributeError, EOFError, KeyError, OSError, RuntimeError, TypeError, ValueError, pickle.UnpicklingError)
RUN_ID = re.compile(r"[0-9a-f]{32}")
VERSION_URI = re.compile(r"models:/(?P<name>[^/@]+)[/@].+")
MAX_LISTED = 3  # versions in a message


class ChecksumError(UserError):
    """A model whose files differ from the registered ones."""


def load_run(run_id: str) -> Filter:
    """Load the model that a run has logged.

    Raises:
        UserError: If there is no such run, or it has logged no model.
    """
    with wrap_store_errors(f"run_id={run_id}"):
        run = MlflowClient().get_run(run_id)
    if not (models := run.outputs.model_outputs if run.outputs else []):
        raise UserError(f"run_id={run_id}: the run has logged no model; its status is {run.info.status}")
    return load_uri(f"models:/{models[-1].model_id}")


def load_origin(start_from: str) -> Filter:
    """Load the filter that training starts from, by the id of a run or the URI of a model.

    Raises:
        UserError: If it is neither, or there is no such filter.
    """
    if RUN_ID.fullmatch(start_from):
        return load_run(start_from)
    if not start_from.startswith("models:/"):
        raise UserError(f"start_from={start_from}: give the id of a run, or models:/NAME/VERSION")
    return load_uri(start_from)


def load_uri(uri: str) -> Filter:
    """Load a filter from any model URI of MLflow, with unpickling forbidden.

    Raises:
        UserError: If there is no such model, it is not a filter of this package, or its checksum differs.
    """
    with temporary_folder(space=MODEL_SPACE) as folder:
        loaded = load_files(uri, checked_files(uri, folder))
    if not _is_stored(loaded.model_id):  # the files of a version that was copied from another store
        return replace(loaded, model_id=None)
    return loaded


def _is_stored(model_id: str | None) -> bool:
    """Whether this store has a logged model."""
    try:
        return model_id is not None and MlflowClient().get_logged_model(model_id) is not None
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return False


def load_files(uri: str, files: Path, *, suppress_warnings: bool = False) -> Filter:
    """Load a filter from its files, which are not needed afterwards, with unpickling forbidden.

    Args:
        uri: The model's URI, for messages.
        files: Folder of the files; see ``checked_files``.
        suppress_warnings: Do not compare the installed packages with the model's, which takes longer than loading.

    Raises:
        UserError: If they are not a filter of this package, corrupt, or of a newer schema.
    """
    from freqfilter.models.filter import Filter

    with wrap_store_errors(uri), temporary_env(**NO_PICKLE_ENV):
        # Before its code runs, which may need packages that are not installed.
        schema = (mlflow.models.Model.load(str(files)).metadata or {}).get("schema")
        if not isinstance(schema, int):
            raise UserError(f"{uri}: not a filter of freqfilter")
        if schema > SCHEMA:
            raise UserError(f"{uri}: model schema {schema} is newer than {SCHEMA}; install a newer freqfilter")
        try:
            loaded = mlflow.pyfunc.load_model(str(files), suppress_warnings=suppress_warnings)
            model = loaded.unwrap_python_model()
        except LOAD_ERRORS as error:
            reason = f"{type(error).__name__}: {one_line(error)}"
            raise UserError(f"{uri}: its files are corrupt or incomplete ({reason})") from error
        golden = None  # of versions registered before these were stored
        if (path := files / GOLDEN).exists():
            with np.load(path, allow_pickle=False) as stored:
                golden = stored["inputs"], stored["estimates"]
    return Filter(
        uri,
        loaded.metadata.model_id,
        model.module,
        model.facts,
        estimate=lambda inputs: np.asarray(model.predict(None, inputs)),
        golden=golden,
    )


def import_loader() -> None:
    """Import what ``load_files`` would import on its first call."""
    mlflow.pyfunc.load_model  # noqa: B018 (a lazy module is imported by the first access)


def checked_files(uri: str, folder: Path) -> Path:
    """Copy a model's files to ``folder`` and check the copy, so that the checked files cannot change.

    Raises:
        ChecksumError: If its checksum is not the registered one.
        UserError: If there is no such model, or it cannot be copied.
    """
    try:
        with wrap_store_errors(uri), temporary_env(**NO_PICKLE_ENV):
            digest = _recorded_digest(uri)
            files = Path(mlflow.artifacts.download_artifacts(uri, dst_path=str(folder)))
        if digest not in (None, files_digest(files)):
            raise ChecksumError(
                f"{uri}: checksum mismatch, files changed since registration; restore them, or use another version"
            )
    except UserError:
        _check_files_exist(uri)
        raise
    if digest is None:  # MLflow downloads nothing from a folder that is missing
        _check_files_exist(uri)
    return files


def _check_files_exist(uri: str) -> None:
    """Check that the files of a model are in their folder, if it is a local one.

    Raises:
        UserError: If they are missing.
    """
    with suppress(MlflowException):  # there is no such model
        location = ModelsArtifactRepository.get_underlying_uri(uri) if uri.startswith("models:/") else uri
        check_not_moved(location)
        if is_local_uri(location) and not (path := Path(local_file_uri_to_path(location))).exists():
            raise UserError(
                f"{uri}: its files are missing; restore {path}{_others_with_files(uri)}"
            ) from FileNotFoundError("no such files")


def _others_with_files(uri: str) -> str:
    """Part of an error message with the versions of a model whose files exist; empty for no registered version."""
    if not (of_version := VERSION_URI.fullmatch(uri)):
        return ""
    name = of_version["name"]
    newest_first = reversed(all_versions(name))
    found = [str(version.version) for version in islice(filter(_has_files, newest_first), MAX_LISTED)]
    if not found:
        return f"; no version of {name} has its files, train one with `freqfilter train`"
    return f", or use a version that has its files, the newest: {', '.join(found)}"


def _has_files(version: RegisteredVersion) -> bool:
    location = ModelsArtifactRepository.get_underlying_uri(version.uri)
    return not is_local_uri(location) or Path(local_file_uri_to_path(location)).exists()


def files_digest(folder: Path) -> str:
    """SHA-256 of names and contents of a model's files, without the metadata file that MLflow adds on download."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != REGISTERED_MODEL_META_FILE_NAME:
            digest.update(f"{path.relative_to(folder).as_posix()}\0".encode())
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _recorded_digest(uri: str) -> str | None:
    """Checksum of a model's files, from the tracking store, which is separate from the files; None if missing."""
    if not uri.startswith("models:/"):
        return None
    client, rest = MlflowClient(), uri.removeprefix("models:/").strip("/")
    tags: dict[str, str] = {}
    if "/" in rest or "@" in rest:
        name, number = get_model_name_and_version(client, uri)
        version = client.get_model_version(name, str(number))
        tags, rest = version.tags, version.source.removeprefix("models:/")
    if MODEL_DIGEST not in tags and rest.startswith("m-"):
        tags = client.get_logged_model(rest).tags
    return tags.get(MODEL_DIGEST)


def training_run_id(trained: Filter) -> str:
    """Id of the run that trained a filter; empty if the filter has no logged model."""
    if trained.model_id is None:
        return ""
    return str(MlflowClient().get_logged_model(trained.model_id).source_run_id)
