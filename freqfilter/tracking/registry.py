"""Logging and registration of models, in this registry and in another one."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import torch
from mlflow import MlflowClient
from mlflow.entities import LoggedModelStatus
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.tracking.context.registry import resolve_tags
from mlflow.types import Schema, TensorSpec
from numpy.typing import NDArray
from torch.export import ExportedProgram

from freqfilter.atomic_io import temporary_folder
from freqfilter.config import Params
from freqfilter.data.signal_model import random_stream
from freqfilter.data.windows import noise_inputs
from freqfilter.errors import UserError, without_credentials
from freqfilter.models import network as network_source
from freqfilter.models.export import exported_program
from freqfilter.models.network import FrequencyFilterLSTM, KalmanFilter, estimate
from freqfilter.tracking.aliases import DECISION, MAX_DESCRIPTION, make_registered_model, set_candidate
from freqfilter.tracking.client import (
    check_responses,
    equality_filter,
    experiment_id,
    open_uri,
    retry,
    temporary_dir,
    temporary_env,
    wrap_store_errors,
)
from freqfilter.tracking.loading import GOLDEN, MODEL_DIGEST, MODEL_SPACE, NO_PICKLE_ENV, SCHEMA, files_digest
from freqfilter.tracking.run import pad_table_columns
from freqfilter.training.checkpoint import write_weights

CODE = Path(__file__).with_name("pyfunc_model.py")  # MLflow runs it; an import would call set_model()
MODEL = "model"  # artifact folder of a copied version's files in its run
PROGRAM = "data"  # folder of the exported program in a version's files
TOLERANCE = 1e-6
CHECKED_SHAPES = ((1, 50), (3, 1), (2, 173))  # numbers of windows or recordings and samples that check a logged model


@dataclass(frozen=True)
class ModelPackage:
    """A trained network, and the data that is registered with it.

    Attributes:
        module: The network, in evaluation mode.
        params: Parameters of its run.
        golden: Inputs of the golden predictions, (n_windows, n_samples, 1 + n_components) or (n_recordings, n_samples),
            which are stored with the version to check it once loaded.
        step: Epoch of the weights.
        limit_mse: Least mean squared error that a filter can expect; None if it is unknown.
        card: Model card, Markdown.
    """

    module: FrequencyFilterLSTM | KalmanFilter
    params: Params
    golden: NDArray[np.float32]
    step: int
    limit_mse: float | None = None
    card: str = ""


def log_and_check_model(run_id: str, trained: ModelPackage, *, folder: Path) -> str:
    """Log a trained network as the model of the active run, unless it was logged before an interruption.

    Args:
        run_id: The active run.
        trained: The trained network.
        folder: Folder for temporary files.

    Returns:
        The logged model's id.

    Raises:
        RuntimeError: If the loaded model does not compute the module's estimates.
    """
    client, program = MlflowClient(), None
    if isinstance(trained.module, FrequencyFilterLSTM):
        # Outside the run's folder: PyTorch keeps the path of temporary files.
        program = exported_program(trained.module)

    def find_or_log() -> str:
        model_id = _logged_model(run_id) or log_model(run_id, trained, program)
        with tempfile.TemporaryDirectory() as download:
            files = Path(mlflow.artifacts.download_artifacts(f"models:/{model_id}", dst_path=download))
            if files_digest(files) != client.get_logged_model(model_id).tags[MODEL_DIGEST]:
                client.delete_logged_model(model_id)
                raise MlflowException(f"the files of model {model_id} in the store differ from those that were sent")
            _check_logged_model(files, trained)
        return model_id

    # MLflow logs the run's metrics for the model too, and would not wait for that if it is set to.
    with temporary_dir(folder), temporary_env(**NO_PICKLE_ENV, MLFLOW_ENABLE_ASYNC_LOGGING="false"):
        return retry(find_or_log)


class _Flavors:
    """The flavors of a version: ``python_function``, from source code, and ``pytorch``, a network's exported program.

    It replaces MLflow's flavor modules in ``mlflow.models.Model.log``.
    """

    @staticmethod
    def save_model(path: str, mlflow_model: Model, *, program: ExportedProgram | None, **settings: Any) -> None:
        """Write the files of the flavors."""
        mlflow.pyfunc.save_model(path=path, mlflow_model=mlflow_model, **settings)
        if program is not None:
            (Path(path) / PROGRAM).mkdir()
            torch.export.save(program, Path(path) / PROGRAM / "model.pt2")
            mlflow_model.add_flavor("pytorch", model_data=PROGRAM, pytorch_version=str(torch.__version__))
            mlflow_model.save(str(Path(path) / "MLmodel"))
        # The checksum of what is about to be sent, not of what a store returns.
        MlflowClient().set_logged_model_tags(mlflow_model.model_id, {MODEL_DIGEST: files_digest(Path(path))})


def _signature(params: Params) -> ModelSignature:
    """Signature of windows, (-1, -1, 1 + n_components) to (-1, -1, 1), or of recordings, (-1, -1) to (-1, -1, n)."""
    n_components = len(params.signals.frequencies_hz)
    shapes = ((-1, -1), (-1, -1, n_components)) if params.of_recordings else ((-1, -1, 1 + n_components), (-1, -1, 1))
    inputs, outputs = (Schema([TensorSpec(np.dtype(np.float32), shape)]) for shape in shapes)
    signature = ModelSignature(inputs=inputs, outputs=outputs)
    # MLflow would refuse float64, integers and lists before it calls the model. With this attribute, which it sets on
    # signatures from type hints, it passes the input unchanged, and the model checks and converts it.
    signature._is_signature_from_type_hint = True
    return signature


def log_model(run_id: str, trained: ModelPackage, program: ExportedProgram | None) -> str:
    """Log a trained network and its exported program as a model of a run."""
    client = MlflowClient()
    stored = client.get_run(run_id)
    params = trained.params.canonical() | stored.data.params
    # Model.log() would create it in the process's active experiment.
    logged = client.create_logged_model(stored.info.experiment_id, name="model", source_run_id=run_id, params=params)
    with tempfile.TemporaryDirectory() as folder:
        weights, facts, card = (Path(folder) / name for name in ("weights.pt", "facts.json", "model_card.md"))
        golden = Path(folder) / Path(GOLDEN).name
        write_weights(weights, trained.module.state_dict())
        facts.write_text(json.dumps(_facts(trained), indent=2), encoding="utf-8")
        card.write_text(trained.card, encoding="utf-8")
        estimates = estimate(trained.module, torch.from_numpy(trained.golden)).numpy()
        np.savez(golden, allow_pickle=False, inputs=trained.golden, estimates=estimates)
        network = Path(str(network_source.__file__))
        artifacts = {"weights": weights, "facts": facts, "network": network, "golden": golden, "card": card}
        Model.log(
            artifact_path=None,
            name="model",
            flavor=_Flavors,
            program=program,
            python_model=str(CODE),
            artifacts={name: str(path) for name, path in artifacts.items()},
            signature=_signature(trained.params),
            input_example=trained.golden[:2],
            # Package indexes do not have the label of a local build.
            pip_requirements=[f"{name}=={version(name).partition('+')[0]}" for name in ("mlflow", "torch")],
            metadata={"schema": SCHEMA},
            run_id=run_id,
            model_id=logged.model_id,
            step=trained.step,
        )
    return str(logged.model_id)


def _logged_model(run_id: str) -> str | None:
    """Return the id of the complete model that a run has logged, if any; incomplete ones are deleted."""
    client, model_id = MlflowClient(), None
    experiment = client.get_run(run_id).info.experiment_id
    for model in client.search_logged_models([experiment], filter_string=f"source_run_id = '{run_id}'"):
        if model_id is None and model.status == LoggedModelStatus.READY and MODEL_DIGEST in model.tags:
            model_id = str(model.model_id)
        else:
            client.delete_logged_model(model.model_id)
    return model_id


def check_model_name(name: str) -> None:
    """Create a registered model if it does not exist.

    Raises:
        UserError: If the registry refuses the name.
    """
    with wrap_store_errors(f"model_name={name}"):
        make_registered_model(MlflowClient(), name)


def register(model_id: str, name: str, *, tags: Mapping[str, str], description: str) -> int:
    """Register a logged model as a new version of the registered model ``name``, unless it is a version already.

    Returns:
        The version number.

    Raises:
        UserError: If the registry refuses it.
    """
    client, uri = MlflowClient(), f"models:/{model_id}"
    logged = client.get_logged_model(model_id)
    version_tags = dict(tags) | {MODEL_DIGEST: logged.tags[MODEL_DIGEST]}

    def find_or_create() -> int:
        # mlflow.register_model takes no description, and prints.
        make_registered_model(client, name)
        for existing in client.search_model_versions(f"run_id = '{logged.source_run_id}'"):
            if (existing.name, existing.source) == (name, uri):
                return int(existing.version)
        text = pad_table_columns(description)[:MAX_DESCRIPTION]
        created = client.create_model_version(name, uri, tags=version_tags, description=text, model_id=model_id)
        return int(created.version)

    with wrap_store_errors(f"model_name={name}"):
        number = retry(find_or_create)
        retry(lambda: set_candidate(client, name))
    return number


def _facts(trained: ModelPackage) -> dict[str, Any]:
    params = trained.params
    return {
        "schema": SCHEMA,
        "network": trained.module.arguments,
        "frequencies_hz": list(params.signals.frequencies_hz),
        # The signal model does not describe a user's data file.
        "sample_rate_hz": params.signals.sample_rate_hz if params.data.data_file is None else None,
        "window_length": params.data.window_length,
        "limit_mse": trained.limit_mse,
        "params": params.model_dump(mode="json"),
    }


def _check_logged_model(files: Path, trained: ModelPackage) -> None:
    """Load the flavors of a model, and compare their estimates with the module's on new inputs."""
    loaded = mlflow.pyfunc.load_model(str(files))
    program = mlflow.pytorch.load_model(str(files)) if isinstance(trained.module, FrequencyFilterLSTM) else None
    random, n_components = random_stream(0, "proof"), trained.golden.shape[2] - 1 if trained.golden.ndim == 3 else None
    for n_windows, n_samples in CHECKED_SHAPES:
        inputs = noise_inputs(random, n_windows, n_samples, n_components=n_components)
        expected = estimate(trained.module, torch.from_numpy(inputs)).numpy()
        estimates = {"pyfunc": loaded.predict(inputs.astype(np.float64).tolist())}
        if program:
            with torch.inference_mode():
                estimates["pytorch"] = program(torch.from_numpy(inputs)).numpy()
        for flavor, estimated in estimates.items():
            if estimated.shape != expected.shape or not np.allclose(estimated, expected, rtol=0, atol=TOLERANCE):
                raise RuntimeError(f"{files}: estimates of {flavor} differ from the module's for inputs {inputs.shape}")


def register_copy(uri: str, name: str, files: Path, evidence: Path, *, tags: Mapping[str, str], experiment: str) -> int:
    """Register files as a version in another tracking store, with a run that keeps them and the evidence.

    A copy with the same tags that the store has already, as after an interruption, is not made again.

    Args:
        uri: Tracking URI of the store.
        name: Name of the registered model, which is created if it is missing.
        files: Folder of the model's files.
        evidence: Folder of the evidence of its promotion, which may be missing.
        tags: Tags of the version, among them ``copied_from``.
        experiment: Name of the run's experiment, which is created if it is missing.

    Returns:
        The version number.

    Raises:
        UserError: If the store does not respond or refuses it, or the stored files differ; their run is then deleted.
    """
    client, place = MlflowClient(tracking_uri=uri, registry_uri=uri), f"{without_credentials(uri)}: {name}"
    open_uri("registry", uri, lambda: check_responses(client))
    with wrap_store_errors(place), temporary_env(**NO_PICKLE_ENV):
        target_id = experiment_id(client, experiment)
        versions = client.search_model_versions(equality_filter("name", name) or None)
        copies = (each for each in versions if each.name == name and tags.items() <= each.tags.items())
        copy = next(copies, None)
        if copy is None:
            _delete_unfinished_copies(client, target_id, tags["copied_from"])
            copy = _create_copy(client, name, files, evidence, tags=tags, experiment_id=target_id)
        client.set_terminated(copy.run_id)  # last, so that an interrupted copy is RUNNING
        set_candidate(client, name)
    return int(copy.version)


def _create_copy(
    client: MlflowClient, name: str, files: Path, evidence: Path, *, tags: Mapping[str, str], experiment_id: str
) -> ModelVersion:
    run_tags = resolve_tags({"workflow": "copy", "copied_from": tags["copied_from"]})
    run = client.create_run(experiment_id, tags=run_tags, run_name=f"copy of {name}")
    run_id = run.info.run_id
    client.log_artifacts(run_id, str(files), MODEL)
    if evidence.exists():
        client.log_artifacts(run_id, str(evidence), DECISION)
    with temporary_folder(space=MODEL_SPACE) as folder:
        stored = mlflow.artifacts.download_artifacts(
            run_id=run_id, artifact_path=MODEL, dst_path=str(folder), tracking_uri=client.tracking_uri
        )
        if files_digest(Path(stored)) != files_digest(files):
            client.delete_run(run_id)
            raise UserError(f"{name}: checksum mismatch after the copy; copy it again")
    make_registered_model(client, name)
    return client.create_model_version(name, f"{run.info.artifact_uri}/{MODEL}", run_id=run_id, tags=dict(tags))


def _delete_unfinished_copies(client: MlflowClient, experiment_id: str, copied_from: str) -> None:
    """Delete the runs of interrupted copies of a version that have registered nothing."""
    unfinished = client.search_runs([experiment_id], "tags.workflow = 'copy' and attributes.status = 'RUNNING'")
    for run in unfinished:
        versions = client.search_model_versions(f"run_id = '{run.info.run_id}'")
        if run.data.tags.get("copied_from") == copied_from and not versions:
            client.delete_run(run.info.run_id)
