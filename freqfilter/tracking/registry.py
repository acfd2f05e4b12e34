"""Logging and registration of models."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import torch
from mlflow import MlflowClient
from mlflow.entities import LoggedModelStatus
from mlflow.models import Model, ModelSignature
from mlflow.types import Schema, TensorSpec
from numpy.typing import NDArray
from torch.export import ExportedProgram

from freqfilter.config import Params
from freqfilter.data.signal_model import random_stream
from freqfilter.models import network as network_source
from freqfilter.models.export import exported_program
from freqfilter.models.network import FrequencyFilterLSTM, estimate
from freqfilter.tracking.aliases import make_registered_model, set_candidate
from freqfilter.tracking.client import retry, temporary_dir, temporary_env, wrap_store_errors
from freqfilter.tracking.loading import GOLDEN, MODEL_DIGEST, NO_PICKLE_ENV, SCHEMA, files_digest
from freqfilter.tracking.run import pad_table_columns
from freqfilter.training.checkpoint import write_weights

CODE = Path(__file__).with_name("pyfunc_model.py")  # for MLflow to run; imported here, it would register itself
PROGRAM = "data"  # the folder of the exported program among a version's files
TOLERANCE = 1e-6
CHECKED_SHAPES = ((1, 50), (3, 1), (2, 173))  # (windows, samples) on which a version must agree with its module


@dataclass(frozen=True)
class ModelPackage:
    """A trained network, and what goes with it into the registry.

    Attributes:
        module: The network, in evaluation mode.
        params: The parameters of its run.
        golden: Inputs (n_windows, n_samples, 1 + n_components) whose estimates are kept, so that a loaded version can
            show that it is the same.
        step: The epoch that the weights are of.
        limit_mse: The least error that a filter of its kind can expect; None where nobody knows it.
        card: Its card, Markdown.
    """

    module: FrequencyFilterLSTM
    params: Params
    golden: NDArray[np.float32]
    step: int
    limit_mse: float | None = None
    card: str = ""


def log_and_check_model(run_id: str, trained: ModelPackage, *, folder: Path) -> str:
    """Log a trained network as the model of the active run, unless the run has logged it before it was interrupted.

    Args:
        run_id: The active run.
        trained: What is logged.
        folder: For temporary files.

    Returns:
        The logged model's id.

    Raises:
        RuntimeError: If the model does not give the module's estimates when loaded again.
    """
    program = exported_program(trained.module)  # outside the run's folder: PyTorch notes where temporary files are

    def ask() -> str:
        if (model_id := _logged_model(run_id)) is not None:
            _record_digest(model_id)
            _check_logged_model(f"models:/{model_id}", trained)
            return model_id
        return log_model(trained, program)

    with temporary_dir(folder):
        return retry(ask)


class _Flavors:
    """The two flavors of a version: ``python_function``, from source code, and ``pytorch``, an exported program.

    ``mlflow.models.Model.log`` takes it in place of one of MLflow's own modules.
    """

    @staticmethod
    def save_model(path: str, mlflow_model: Model, *, program: ExportedProgram, **settings: Any) -> None:
        """Write the files of both flavors."""
        mlflow.pyfunc.save_model(path=path, mlflow_model=mlflow_model, **settings)
        (Path(path) / PROGRAM).mkdir()
        torch.export.save(program, Path(path) / PROGRAM / "model.pt2")
        mlflow_model.add_flavor("pytorch", model_data=PROGRAM, pytorch_version=str(torch.__version__))
        mlflow_model.save(str(Path(path) / "MLmodel"))


def _signature(n_features: int) -> ModelSignature:
    """Inputs (-1, -1, n_features) and estimates (-1, -1, 1) of float32."""
    signature = ModelSignature(
        inputs=Schema([TensorSpec(np.dtype(np.float32), (-1, -1, n_features))]),
        outputs=Schema([TensorSpec(np.dtype(np.float32), (-1, -1, 1))]),
    )
    # MLflow would refuse float64, integers and lists before the model is called. With this mark, which MLflow itself
    # sets on signatures from type hints, it hands over the input as it is, and the model checks and converts it.
    signature._is_signature_from_type_hint = True
    return signature


def log_model(trained: ModelPackage, program: ExportedProgram) -> str:
    """Log a trained network and its exported program as a model of the active run, and prove that they load and agree.

    See ``log_and_check_model``.
    """
    with tempfile.TemporaryDirectory() as folder, temporary_env(**NO_PICKLE_ENV):
        weights, facts, card = (Path(folder) / name for name in ("weights.pt", "facts.json", "model_card.md"))
        golden = Path(folder) / Path(GOLDEN).name
        write_weights(weights, trained.module.state_dict())
        facts.write_text(json.dumps(_facts(trained), indent=2), encoding="utf-8")
        card.write_text(trained.card, encoding="utf-8")
        estimates = estimate(trained.module, torch.from_numpy(trained.golden)).numpy()
        np.savez(golden, allow_pickle=False, inputs=trained.golden, estimates=estimates)
        network = Path(str(network_source.__file__))
        artifacts = {"weights": weights, "facts": facts, "network": network, "golden": golden, "card": card}
        info = Model.log(
            artifact_path=None,
            name="model",
            flavor=_Flavors,
            program=program,
            python_model=str(CODE),
            artifacts={name: str(path) for name, path in artifacts.items()},
            signature=_signature(trained.golden.shape[2]),
            input_example=trained.golden[:2],
            pip_requirements=[f"{name}=={_public_version(installed_version(name))}" for name in ("mlflow", "torch")],
            metadata={"schema": SCHEMA},
            params=trained.params.canonical(),
            step=trained.step,
        )
    model_id = str(info.model_id)
    _record_digest(model_id)
    _check_logged_model(info.model_uri, trained)
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
        make_registered_model(client, name)
        for version in client.search_model_versions(f"run_id = '{logged.source_run_id}'"):
            if (version.name, version.source) == (name, uri):
                return int(version.version)
        made = client.create_model_version(
            name, uri, tags=noted, description=pad_table_columns(description), model_id=model_id
        )
        return int(made.version)

    with wrap_store_errors(f"model_name={name}"):
        version = retry(ask)
        retry(lambda: set_candidate(client, name, version))
    return version


def _record_digest(model_id: str) -> None:
    """Note in the store what the model's files are, as they have arrived."""
    with tempfile.TemporaryDirectory() as folder, temporary_env(**NO_PICKLE_ENV):
        files = mlflow.artifacts.download_artifacts(f"models:/{model_id}", dst_path=folder)
        MlflowClient().set_logged_model_tags(model_id, {MODEL_DIGEST: files_digest(Path(files))})


def _facts(trained: ModelPackage) -> dict[str, Any]:
    params = trained.params
    return {
        "schema": SCHEMA,
        "network": {"n_components": trained.golden.shape[2] - 1, **params.model.model_dump()},
        "frequencies_hz": list(params.signals.frequencies_hz),
        # The signal model does not speak of a user's own data.
        "sample_rate_hz": params.signals.sample_rate_hz if params.data.data_file is None else None,
        "window_length": params.data.window_length,
        "limit_mse": trained.limit_mse,
        "params": params.model_dump(mode="json"),
    }


def _check_logged_model(uri: str, trained: ModelPackage) -> None:
    """Load both flavors of the model as its users will, and compare on inputs that it has not seen."""
    with temporary_env(**NO_PICKLE_ENV):
        loaded, program = mlflow.pyfunc.load_model(uri), mlflow.pytorch.load_model(uri)
    random = random_stream(0, "proof")
    for n_windows, n_samples in CHECKED_SHAPES:
        inputs = random.standard_normal((n_windows, n_samples, trained.golden.shape[2]), dtype=np.float32)
        expected = estimate(trained.module, torch.from_numpy(inputs)).numpy()
        with torch.inference_mode():
            of_flavors = {
                "pyfunc": loaded.predict(inputs.astype(np.float64).tolist()),
                "pytorch": program(torch.from_numpy(inputs)).numpy(),
            }
        for flavor, found in of_flavors.items():
            if found.shape != expected.shape or not np.allclose(found, expected, rtol=0, atol=TOLERANCE):
                raise RuntimeError(f"{uri}, {flavor}, does not give its module's estimates for inputs {inputs.shape}")


def _public_version(version: str) -> str:
    """A version without the label of a local build, which no index has."""
    return version.partition("+")[0]
