"""The model registry: a filter goes in only after it has come out again and agrees with the one trained."""

from __future__ import annotations

import json
import pickle
import re
import tempfile
from collections.abc import Mapping
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import torch
from mlflow import MlflowClient
from mlflow.entities import LoggedModelStatus
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.types import Schema, TensorSpec
from numpy.typing import ArrayLike, NDArray

from freqfilter.errors import UserError
from freqfilter.filters import network as network_source
from freqfilter.filters.checkpoints import write_weights
from freqfilter.filters.network import FrequencyFilterLSTM, estimate
from freqfilter.params import Params, restore
from freqfilter.signals.randomness import stream
from freqfilter.tracking.environment import environment, scratch
from freqfilter.tracking.store import patiently, translated

SCHEMA = 1  # of facts.json; a change that old readers cannot follow raises it
CODE = Path(__file__).with_name("model_from_code.py")  # for MLflow to run; imported here, it would register itself
SAFE = {"MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false", "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false"}
DAMAGED = (AttributeError, EOFError, KeyError, OSError, RuntimeError, TypeError, ValueError, pickle.UnpicklingError)
RUN_ID = re.compile(r"[0-9a-f]{32}")
TOLERANCE = 1e-6
PROOF_SHAPES = ((1, 50), (3, 1), (2, 173))  # (windows, samples) on which a version must agree with its module


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


def keep_model(
    run_id: str, module: FrequencyFilterLSTM, params: Params, *, example: NDArray[np.float32], step: int, folder: Path
) -> str:
    """Log a trained network as the model of the active run, unless the run has logged it before it was interrupted.

    Args:
        run_id: The active run.
        module: The network, in evaluation mode.
        params: The parameters of the run.
        example: Inputs (n_windows, n_samples, 1 + n_components) that show what the model takes.
        step: The epoch that the weights are of.
        folder: For temporary files.

    Returns:
        The logged model's id.

    Raises:
        RuntimeError: If the model does not give the module's estimates when loaded again.
    """

    def ask() -> str:
        if (model_id := _logged_model(run_id)) is not None:
            _prove(f"models:/{model_id}", module, example.shape[2])
            return model_id
        return log_model(module, params, example=example, step=step)

    with scratch(folder):
        return patiently(ask)


def log_model(module: FrequencyFilterLSTM, params: Params, *, example: NDArray[np.float32], step: int) -> str:
    """Log a trained network as a model of the active run, and prove that it loads and agrees; see ``keep_model``."""
    n_features = example.shape[2]
    signature = ModelSignature(
        inputs=Schema([TensorSpec(np.dtype(np.float32), (-1, -1, n_features))]),
        outputs=Schema([TensorSpec(np.dtype(np.float32), (-1, -1, 1))]),
    )
    with tempfile.TemporaryDirectory() as folder, environment(**SAFE):
        weights, facts = Path(folder) / "weights.pt", Path(folder) / "facts.json"
        write_weights(weights, module.state_dict())
        facts.write_text(json.dumps(_facts(params, n_components=n_features - 1), indent=2), encoding="utf-8")
        artifacts = {"weights": weights, "facts": facts, "network": Path(str(network_source.__file__))}
        info = mlflow.pyfunc.log_model(
            name="model",
            python_model=str(CODE),
            artifacts={name: str(path) for name, path in artifacts.items()},
            signature=signature,
            input_example=example,
            pip_requirements=[f"{name}=={_public(installed_version(name))}" for name in ("mlflow", "torch")],
            metadata={"schema": SCHEMA},
            params=params.canonical(),
            step=step,
        )
    _prove(info.model_uri, module, n_features)
    return str(info.model_id)


def _logged_model(run_id: str) -> str | None:
    """Id of the model that a run has logged whole, if any. What it was interrupted in is deleted."""
    client = MlflowClient()
    experiment_id = client.get_run(run_id).info.experiment_id
    found = None
    for model in client.search_logged_models([experiment_id], filter_string=f"source_run_id = '{run_id}'"):
        if found is None and model.status == LoggedModelStatus.READY:
            found = str(model.model_id)
        else:
            client.delete_logged_model(model.model_id)
    return found


def register(model_id: str, name: str, *, tags: Mapping[str, str], description: str) -> int:
    """Make a logged model a new version of the registered model ``name``, unless it is one already.

    Returns:
        The version's number.

    Raises:
        UserError: If the registry refuses it.
    """
    client, uri = MlflowClient(), f"models:/{model_id}"
    run_id = client.get_logged_model(model_id).source_run_id

    def ask() -> int:
        # Not mlflow.register_model: it takes no description, and prints.
        try:
            client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        for version in client.search_model_versions(f"run_id = '{run_id}'"):
            if (version.name, version.source) == (name, uri):
                return int(version.version)
        made = client.create_model_version(name, uri, tags=dict(tags), description=description, model_id=model_id)
        return int(made.version)

    with translated(f"model_name={name}"):
        return patiently(ask)


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
        UserError: If there is nothing to load, or what there is is not a filter of ours.
    """
    with translated(uri), environment(**SAFE):
        # Before its code runs, which may need what this environment has not.
        schema = (mlflow.models.Model.load(uri).metadata or {}).get("schema")
        if not isinstance(schema, int):
            raise UserError(f"{uri}: not a filter of freqfilter")
        if schema > SCHEMA:
            raise UserError(f"{uri}: model schema {schema} is newer than {SCHEMA}; use a newer freqfilter")
        try:
            loaded = mlflow.pyfunc.load_model(uri)
            model = loaded.unwrap_python_model()
        except DAMAGED as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"{uri}: its files are damaged or incomplete ({type(error).__name__}: {reason})") from error
    return Filter(uri, loaded.metadata.model_id, model)


def _facts(params: Params, *, n_components: int) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "network": {"n_components": n_components, **params.model.model_dump()},
        "frequencies_hz": list(params.signals.frequencies_hz),
        # The signal model does not speak of a user's own data.
        "sample_rate_hz": params.signals.sample_rate_hz if params.data.data_file is None else None,
        "window_length": params.data.window_length,
        "params": params.model_dump(mode="json"),
    }


def _prove(uri: str, module: FrequencyFilterLSTM, n_features: int) -> None:
    """Load the model as its users will, and compare on inputs that it has not seen."""
    with environment(**SAFE):
        loaded = mlflow.pyfunc.load_model(uri)
    random = stream(0, "proof")
    for n_windows, n_samples in PROOF_SHAPES:
        inputs = random.standard_normal((n_windows, n_samples, n_features), dtype=np.float32)
        expected = estimate(module, torch.from_numpy(inputs)).numpy()
        found = loaded.predict(inputs)
        if found.shape != expected.shape or not np.allclose(found, expected, rtol=0, atol=TOLERANCE):
            raise RuntimeError(f"{uri} does not give its module's estimates for inputs {inputs.shape}")


def _public(version: str) -> str:
    """A version without the label of a local build, which no index has."""
    return version.partition("+")[0]
