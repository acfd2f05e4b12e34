"""A model registry in another tracking store."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

import mlflow
from mlflow import MlflowClient
from mlflow.tracking.context.registry import resolve_tags

from freqfilter.tracking.aliases import DECISION, make_registered_model, set_candidate
from freqfilter.tracking.client import check_reachable, temporary_env, wrap_store_errors
from freqfilter.tracking.loading import NO_PICKLE_ENV, files_digest
from freqfilter.tracking.queries import experiment_id

MODEL = "model"  # artifact folder of the model's files, in the run that keeps them


class RemoteRegistry:
    """The model registry of another tracking store.

    Args:
        uri: Tracking URI of the store.

    Raises:
        UserError: If it does not respond.
    """

    def __init__(self, uri: str) -> None:
        if uri.startswith("http"):
            check_reachable(uri)
        self._uri = uri
        with wrap_store_errors(uri):
            self._client = MlflowClient(tracking_uri=uri, registry_uri=uri)

    def register(self, name: str, files: Path, evidence: Path, tags: Mapping[str, str], *, experiment: str) -> int:
        """Register files as a new version, with a run that keeps them and the evidence.

        Args:
            name: Name of the registered model, which is created if it is missing.
            files: Folder of the model's files.
            evidence: Folder of the evidence of its promotion, which may be missing.
            tags: Tags of the version.
            experiment: Name of the run's experiment, which is created if it is missing.

        Returns:
            The version number.

        Raises:
            UserError: If the store refuses it.
        """
        client = self._client
        with wrap_store_errors(f"{self._uri}: {name}"), temporary_env(**NO_PICKLE_ENV):
            target_id = experiment_id(client, experiment)
            run = client.create_run(target_id, tags=resolve_tags({"workflow": "copy"}), run_name=f"copy of {name}")
            run_id = run.info.run_id
            client.log_artifacts(run_id, str(files), MODEL)
            if evidence.exists():
                client.log_artifacts(run_id, str(evidence), DECISION)
            client.set_terminated(run_id)
            make_registered_model(client, name)
            source = f"{run.info.artifact_uri}/{MODEL}"
            version = client.create_model_version(name, source, run_id=run_id, tags=dict(tags))
            set_candidate(client, name, int(version.version))
        return int(version.version)

    def digest(self, name: str, version: int) -> str:
        """SHA-256 of a version's files, downloaded again."""
        with (
            wrap_store_errors(f"{self._uri}: {name}"),
            temporary_env(**NO_PICKLE_ENV),
            tempfile.TemporaryDirectory() as folder,
        ):
            run_id = self._client.get_model_version(name, str(version)).run_id
            files = mlflow.artifacts.download_artifacts(
                run_id=run_id, artifact_path=MODEL, dst_path=folder, tracking_uri=self._uri
            )
            return files_digest(Path(files))

    def remove(self, name: str, version: int) -> None:
        """Delete a version, and the run that keeps its files."""
        with wrap_store_errors(f"{self._uri}: {name}"):
            run_id = self._client.get_model_version(name, str(version)).run_id
            self._client.delete_model_version(name, str(version))
            self._client.delete_run(run_id)
