"""Deployment of a version: ONNX export, and a copy in another registry."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from freqfilter.atomic_io import atomic_write
from freqfilter.config import TrackingParams
from freqfilter.errors import UserError, install_hint, without_credentials
from freqfilter.models.filter import Filter
from freqfilter.process import launched_by_mlflow
from freqfilter.tracking import aliases
from freqfilter.tracking.client import open_store
from freqfilter.tracking.lifecycle import Job, open_run
from freqfilter.tracking.loading import MODEL_DIGEST, checked_files, load_uri
from freqfilter.tracking.queries import download, upload
from freqfilter.tracking.registry import RemoteRegistry

if TYPE_CHECKING:
    from onnxruntime import InferenceSession


TOLERANCE = 1e-5
SHAPES = ((1, 1), (3, 7), (2, 200))  # (n_windows, n_samples) checked in addition to the golden inputs
FOLDER = "onnx"  # artifact folder in the run that trained the version
PACKAGES = ("onnx", "onnxruntime")


@dataclass(frozen=True)
class ExportResult:
    """Result of an export.

    Attributes:
        version: The exported version.
        path: The ONNX file.
        largest_difference: Largest absolute difference between its estimates and the version's.
    """

    version: aliases.RegisteredVersion
    path: Path
    largest_difference: float


def export(tracking: TrackingParams, *, version: int | None, output: Path) -> ExportResult:
    """Export a version as an ONNX file and check its estimates against the version's.

    The file is also logged as an artifact of the run that trained the version, and the version is tagged with its
    location and digest.

    Args:
        tracking: Tracking parameters with the name of the model.
        version: Version number; None for the newest.
        output: The file to write.

    Raises:
        UserError: If ONNX is not installed, there is no such version, or the file cannot be written.
        RuntimeError: If the file's estimates differ from the version's by more than ``TOLERANCE``.
    """
    if missing := [package for package in PACKAGES if importlib.util.find_spec(package) is None]:
        raise UserError(f"{' and '.join(missing)} not installed; {install_hint('onnx')}")
    open_store()
    chosen = aliases.candidate_version(tracking.model_name, version)
    if not launched_by_mlflow():
        content, difference = _exported(chosen, output)
        return ExportResult(chosen, output, difference)
    options = {"model_name": chosen.model_name, "version": str(chosen.version)}
    with open_run(tracking, Job("export", f"export {chosen.uri}", options)) as run:
        run.log_tags({"model_uri": chosen.uri})
        content, difference = _exported(chosen, output)
        run.log_bytes(content, f"{FOLDER}/{_file_name(chosen)}")
        run.describe(
            f"`{chosen.uri}` as an ONNX file; its estimates differ from the version's by {difference:.0e} at most."
        )
    return ExportResult(chosen, output, difference)


def _exported(version: aliases.RegisteredVersion, output: Path) -> tuple[bytes, float]:
    """Write the file, log it to the training run and tag the version; return content and largest difference."""
    from onnxruntime import InferenceSession

    from freqfilter.models.export import onnx_model

    model = load_uri(version.uri)
    content = onnx_model(model.module, _metadata(version, model)).SerializeToString()
    difference = _largest_difference(InferenceSession(content), model)
    if difference > TOLERANCE:
        raise RuntimeError(f"{version.uri}: estimates of the ONNX file differ by {difference:.1e}")
    with atomic_write(output) as file:
        file.write(content)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / _file_name(version)
        path.write_bytes(content)
        artifact_uri = upload(version.run_id, path, FOLDER)
    aliases.tag_version(version, {"onnx": artifact_uri, "onnx_sha256": hashlib.sha256(content).hexdigest()})
    return content, difference


def _file_name(version: aliases.RegisteredVersion) -> str:
    return f"{version.model_name}_{version.version}.onnx"


def _metadata(version: aliases.RegisteredVersion, model: Filter) -> dict[str, str]:
    facts = {name: json.dumps(value) for name, value in model.facts.items() if name != "params"}
    return facts | {"version": version.uri, MODEL_DIGEST: version.tags.get(MODEL_DIGEST, "")}


def _largest_difference(session: InferenceSession, model: Filter) -> float:
    """Return the largest difference on the golden inputs and on random ones of other shapes."""
    random = np.random.default_rng(1)
    n_features = 1 + len(model.facts["frequencies_hz"])
    examples = [random.normal(size=(*shape, n_features)).astype(np.float32) for shape in SHAPES]
    if model.golden is not None:
        examples.append(model.golden[0])
    largest = 0.0
    for inputs in examples:
        (estimates,) = session.run(None, {"inputs": inputs})
        largest = max(largest, float(np.abs(estimates - model.predict(inputs)).max()))
    return largest


# Tags that refer to their own registry.
REGISTRY_LOCAL_TAGS = {
    "decision", "decision_run", "decided_against", "decided_in", "rollback_run", "copied_from", "verdict_elsewhere"
}  # fmt: skip


@dataclass(frozen=True)
class CopyResult:
    """Location of a copy."""

    model_name: str
    version: int
    tracking_uri: str


def copy_version(tracking: TrackingParams, *, version: int | None, to: str, to_name: str | None) -> CopyResult:
    """Copy a version to another tracking server or store, and check its digest there.

    A decision holds only in its own registry: the copy is a candidate, and its tag ``verdict_elsewhere`` has the
    decision, its registry and the champion at that time.

    Args:
        tracking: Tracking parameters with the name of the model.
        version: Version number; None for the newest.
        to: Tracking URI of the other server or store.
        to_name: Name of the model there; None for the same name.

    Raises:
        UserError: If there is no such version, or its checksum is wrong in this registry or in the other one.
    """
    source_uri, name = open_store(), to_name or tracking.model_name
    chosen = aliases.candidate_version(tracking.model_name, version)
    with tempfile.TemporaryDirectory() as folder:
        files = checked_files(chosen.uri, Path(folder) / "model")
        if decision_run := chosen.tags.get("decision_run"):
            download(decision_run, aliases.DECISION, Path(folder))
        origin = f"{without_credentials(source_uri)}: {chosen.model_name} version {chosen.version}"
        tags = {tag: value for tag, value in chosen.tags.items() if tag not in REGISTRY_LOCAL_TAGS} | {
            "copied_from": origin
        }
        if decision := chosen.tags.get("decision"):
            against = chosen.tags.get("decided_against", "none")
            registry = chosen.tags.get("decided_in", source_uri)
            tags["verdict_elsewhere"] = f"{decision} in {registry} against version {against}"
        target = RemoteRegistry(to)
        copy = target.register(name, files, Path(folder) / aliases.DECISION, tags, experiment=tracking.experiment)
        digest = target.digest(name, copy)
        if digest != chosen.tags.get(MODEL_DIGEST, digest):
            target.remove(name, copy)
            raise UserError(
                f"{name} version {copy} at {without_credentials(to)}: checksum mismatch after the copy; copy it again"
            )
    return CopyResult(name, copy, without_credentials(to))
