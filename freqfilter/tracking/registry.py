"""The model registry: a filter goes in only after it has come out again and agrees with the one trained."""

from __future__ import annotations

import json
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
from numpy.typing import NDArray

from freqfilter.filters import network as network_source
from freqfilter.filters.checkpoints import write_weights
from freqfilter.filters.network import FrequencyFilterLSTM, estimate
from freqfilter.params import Params
from freqfilter.signals.randomness import stream
from freqfilter.tracking.environment import environment, scratch
from freqfilter.tracking.loading import MODEL_DIGEST, SAFE, SCHEMA, files_digest
from freqfilter.tracking.store import patiently, translated

CODE = Path(__file__).with_name("model_from_code.py")  # for MLflow to run; imported here, it would register itself
TOLERANCE = 1e-6
PROOF_SHAPES = ((1, 50), (3, 1), (2, 173))  # (windows, samples) on which a version must agree with its module


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
            _note_digest(model_id)
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
    model_id = str(info.model_id)
    _note_digest(model_id)
    _prove(info.model_uri, module, n_features)
    return model_id


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
    logged = client.get_logged_model(model_id)
    noted = dict(tags) | {MODEL_DIGEST: logged.tags[MODEL_DIGEST]}

    def ask() -> int:
        # Not mlflow.register_model: it takes no description, and prints.
        try:
            client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        for version in client.search_model_versions(f"run_id = '{logged.source_run_id}'"):
            if (version.name, version.source) == (name, uri):
                return int(version.version)
        made = client.create_model_version(name, uri, tags=noted, description=description, model_id=model_id)
        return int(made.version)

    with translated(f"model_name={name}"):
        return patiently(ask)


def registered_models() -> list[str]:
    """The names of all registered models.

    Raises:
        UserError: If the registry does not say.
    """
    with translated("model registry"):
        return [str(model.name) for model in MlflowClient().search_registered_models(max_results=1000)]


def _note_digest(model_id: str) -> None:
    """Note in the store what the model's files are, as they have arrived."""
    with tempfile.TemporaryDirectory() as folder, environment(**SAFE):
        files = mlflow.artifacts.download_artifacts(f"models:/{model_id}", dst_path=folder)
        MlflowClient().set_logged_model_tags(model_id, {MODEL_DIGEST: files_digest(Path(files))})


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
