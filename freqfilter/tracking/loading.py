"""Filters out of the registry: checked, and loaded with unpickling forbidden."""

from __future__ import annotations

import hashlib
import pickle
import re
import tempfile
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
from mlflow import MlflowClient
from mlflow.store.artifact.models_artifact_repo import REGISTERED_MODEL_META_FILE_NAME
from mlflow.store.artifact.utils.models import get_model_name_and_version
from numpy.typing import ArrayLike, NDArray

from freqfilter.errors import UserError
from freqfilter.filters.network import FrequencyFilterLSTM
from freqfilter.params import Params, restore
from freqfilter.tracking.environment import environment
from freqfilter.tracking.store import translated

SCHEMA = 1  # of facts.json; a change that old readers cannot follow raises it
MODEL_DIGEST = "model_sha256"  # the tag of a logged model, and of a version
SAFE = {
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_RECORD_ENV_VARS_IN_MODEL_LOGGING": "false",
}
DAMAGED = (AttributeError, EOFError, KeyError, OSError, RuntimeError, TypeError, ValueError, pickle.UnpicklingError)
RUN_ID = re.compile(r"[0-9a-f]{32}")


class Filter:
    """A registered filter.

    Attributes:
        uri: Where it was loaded from.
        model_id: MLflow's id of the logged model.
        module: The network, in evaluation mode.
        facts: What is known of it: ``frequencies_hz``, ``sample_rate_hz``, ``window_length``, ``params``, ….
    """

    def __init__(self, uri: str, model_id: str | None, model: Any) -> None:
        self.uri = uri
        self.model_id = model_id
        self.module: FrequencyFilterLSTM = model.module
        self.facts: dict[str, Any] = model.facts
        self._model = model

    @property
    def params(self) -> Params:
        """The parameters of its training run."""
        return restore(self.facts["params"])

    @property
    def pinned_uri(self) -> str:
        """Where the very same model will be found, also when an alias or the newest version is another."""
        return f"models:/{self.model_id}" if self.model_id else self.uri

    @property
    def run_id(self) -> str:
        """The run that trained it; empty where the store does not know."""
        if self.model_id is None:
            return ""
        return str(MlflowClient().get_logged_model(self.model_id).source_run_id)

    def predict(self, x: ArrayLike) -> NDArray[np.float32]:
        """Estimate the selected component.

        Args:
            x: (n_windows, n_samples, 1 + n_components): the mixture, then the one-hot selector. Any number of
                windows and samples; computed in float32.

        Returns:
            (n_windows, n_samples, 1), float32.

        Raises:
            UserError: If the shape is another, or a value is NaN or Inf.
        """
        inputs = np.asarray(x, dtype=np.float32)
        n_features = 1 + len(self.facts["frequencies_hz"])
        if inputs.ndim != 3 or inputs.shape[2] != n_features or inputs.shape[1] == 0:
            raise UserError(
                f"x has shape {inputs.shape}; this filter takes (windows, samples, {n_features}): the mixture, then "
                f"a one-hot selector among {self.facts['frequencies_hz']} Hz"
            )
        if not np.isfinite(inputs).all():
            raise UserError("x has NaN or Inf; remove or repair those samples")
        return np.asarray(self._model.predict(None, inputs))


def load_version(model_name: str, version: int | str) -> Filter:
    """Load a registered version; see ``freqfilter.load``."""
    return load_uri(f"models:/{model_name}/{version}")


def load_run(run_id: str) -> Filter:
    """Load the model that a run has logged.

    Raises:
        UserError: If there is no such run, or it has logged no model.
    """
    with translated(f"run_id={run_id}"):
        run = MlflowClient().get_run(run_id)
    if not (models := run.outputs.model_outputs if run.outputs else []):
        raise UserError(f"run_id={run_id}: the run has logged no model; its status is {run.info.status}")
    return load_uri(f"models:/{models[-1].model_id}")


def load_origin(start_from: str) -> Filter:
    """Load the filter whose weights training goes on from.

    Args:
        start_from: A run's id, or a model's URI.

    Raises:
        UserError: If it is neither, or there is no such filter.
    """
    if RUN_ID.fullmatch(start_from):
        return load_run(start_from)
    if not start_from.startswith("models:/"):
        raise UserError(f"start_from={start_from}: neither a run's id nor models:/NAME/VERSION")
    return load_uri(start_from)


def load_uri(uri: str) -> Filter:
    """Load a filter from any URI of MLflow's, with unpickling forbidden.

    Raises:
        UserError: If there is nothing to load, what there is is not a filter of ours, or its files are not those that
            were logged.
    """
    with translated(uri), environment(**SAFE), tempfile.TemporaryDirectory() as folder:
        digest = _recorded_digest(uri)
        # A copy, so that nobody can change what has been checked. Nothing of it is opened before.
        files = mlflow.artifacts.download_artifacts(uri, dst_path=folder)
        if digest not in (None, files_digest(Path(files))):
            raise UserError(f"{uri}: its files are not those that were registered: somebody or something changed them")
        # Before its code runs, which may need what this environment has not.
        schema = (mlflow.models.Model.load(files).metadata or {}).get("schema")
        if not isinstance(schema, int):
            raise UserError(f"{uri}: not a filter of freqfilter")
        if schema > SCHEMA:
            raise UserError(f"{uri}: model schema {schema} is newer than {SCHEMA}; use a newer freqfilter")
        try:
            loaded = mlflow.pyfunc.load_model(files)
            model = loaded.unwrap_python_model()
        except DAMAGED as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"{uri}: its files are damaged or incomplete ({type(error).__name__}: {reason})") from error
    return Filter(uri, loaded.metadata.model_id, model)


def files_digest(folder: Path) -> str:
    """SHA-256 of all files of a model, names and contents, but for a note that MLflow adds when it hands them out."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != REGISTERED_MODEL_META_FILE_NAME:
            digest.update(f"{path.relative_to(folder).as_posix()}\0".encode())
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _recorded_digest(uri: str) -> str | None:
    """What the store, which is not where the files are, has noted of a model's files; None where it has nothing."""
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
