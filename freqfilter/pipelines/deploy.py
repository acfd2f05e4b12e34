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
from freqfilter.tracking import aliases, provenance
from freqfilter.tracking.client import open_store
from freqfilter.tracking.lifecycle import open_run
from freqfilter.tracking.loading import MODEL_DIGEST, checked_files, load_uri
from freqfilter.tracking.queries import download, upload
from freqfilter.tracking.remote_registry import RemoteRegistry

if TYPE_CHECKING:
    from onnxruntime import InferenceSession


TOLERANCE = 1e-5
SHAPES = ((1, 1), (3, 7), (2, 200))  # windows and samples that are tried beside the golden inputs
FOLDER = "onnx"  # among the artifacts of the run that trained the version
PACKAGES = ("onnx", "onnxruntime")


@dataclass(frozen=True)
class ExportResult:
    """What was written.

    Attributes:
        version: Of which version.
        path: The file.
        largest_difference: Of its estimates from the version's own.
    """

    version: aliases.RegisteredVersion
    path: Path
    largest_difference: float


def export(tracking: TrackingParams, *, version: int | None, output: Path) -> ExportResult:
    """Write a version as an ONNX file, whose answers have been seen to be the version's own.

    The file is also kept among the artifacts of the run that trained the version, and the version is tagged with where
    it is and its digest.

    Args:
        tracking: Where the registry is, and the name of the model.
        version: The version; None: the newest.
        output: The file to write.

    Raises:
        UserError: If ONNX is not installed, there is no such version, or the file cannot be written.
        RuntimeError: If the file does not give the version's estimates.
    """
    if missing := [package for package in PACKAGES if importlib.util.find_spec(package) is None]:
        raise UserError(f"{' and '.join(missing)} not installed; {install_hint('onnx')}")
    open_store()
    chosen = aliases.candidate_version(tracking.model_name, version)
    if not launched_by_mlflow():
        content, difference = _exported(chosen, output)
        return ExportResult(chosen, output, difference)
    with open_run(tracking, name=f"export {chosen.uri}") as run:
        run.log_params({"model_name": chosen.model_name, "version": str(chosen.version)})
        run.log_source(provenance.source())
        run.log_tags({"workflow": "export", "model_uri": chosen.uri})
        content, difference = _exported(chosen, output)
        run.log_bytes(content, f"{FOLDER}/{_file_name(chosen)}")
        run.describe(
            f"`{chosen.uri}` as an ONNX file; its estimates differ from the version's by {difference:.0e} at most."
        )
    return ExportResult(chosen, output, difference)


def _exported(version: aliases.RegisteredVersion, output: Path) -> tuple[bytes, float]:
    """Write the file, add it to the training run and tag the version; its content and the largest difference."""
    from onnxruntime import InferenceSession

    from freqfilter.models.export import onnx_model

    found = load_uri(version.uri)
    content = onnx_model(found.module, _about(version, found)).SerializeToString()
    difference = _largest_difference(InferenceSession(content), found)
    if difference > TOLERANCE:
        raise RuntimeError(f"{version.uri}: the ONNX file's estimates are off by {difference:.1e}")
    with atomic_write(output) as file:
        file.write(content)
    with tempfile.TemporaryDirectory() as folder:
        kept = Path(folder) / _file_name(version)
        kept.write_bytes(content)
        where = upload(version.run_id, kept, FOLDER)
    aliases.tag_version(version, {"onnx": where, "onnx_sha256": hashlib.sha256(content).hexdigest()})
    return content, difference


def _file_name(version: aliases.RegisteredVersion) -> str:
    return f"{version.model_name}_{version.version}.onnx"


def _about(version: aliases.RegisteredVersion, found: Filter) -> dict[str, str]:
    facts = {name: json.dumps(value) for name, value in found.facts.items() if name != "params"}
    return facts | {"version": version.uri, MODEL_DIGEST: version.tags.get(MODEL_DIGEST, "")}


def _largest_difference(session: InferenceSession, found: Filter) -> float:
    """Over golden inputs and random ones of other shapes."""
    random = np.random.default_rng(1)
    n_features = 1 + len(found.facts["frequencies_hz"])
    tried = [random.normal(size=(*shape, n_features)).astype(np.float32) for shape in SHAPES]
    if found.golden is not None:
        tried.append(found.golden[0])
    largest = 0.0
    for inputs in tried:
        (estimates,) = session.run(None, {"inputs": inputs})
        largest = max(largest, float(np.abs(estimates - found.predict(inputs)).max()))
    return largest


# Tags that speak of the registry in which they were made.
REGISTRY_LOCAL_TAGS = {
    "decision", "decision_run", "decided_against", "decided_in", "rollback_run", "copied_from", "verdict_elsewhere"
}  # fmt: skip


@dataclass(frozen=True)
class CopyResult:
    """Where a copy is."""

    model_name: str
    version: int
    tracking_uri: str


def copy_version(tracking: TrackingParams, *, version: int | None, to: str, to_name: str | None) -> CopyResult:
    """Copy a version to another tracking server or store, checked on arrival.

    A verdict is of the registry in which it was made: the copy is nobody's champion, and says where it was judged and
    against whom.

    Args:
        tracking: Where the registry is, and the name of the model.
        version: The version; None: the newest.
        to: Tracking URI of the other one.
        to_name: What the model is called there; None: the same.

    Raises:
        UserError: If there is no such version, its files are not those that were registered, or do not arrive as such.
    """
    here, name = open_store(), to_name or tracking.model_name
    chosen = aliases.candidate_version(tracking.model_name, version)
    with tempfile.TemporaryDirectory() as folder:
        files = checked_files(chosen.uri, Path(folder) / "model")
        if decision_run := chosen.tags.get("decision_run"):
            download(decision_run, aliases.DECISION, Path(folder))
        origin = f"{without_credentials(here)}: {chosen.model_name} version {chosen.version}"
        tags = {tag: value for tag, value in chosen.tags.items() if tag not in REGISTRY_LOCAL_TAGS} | {
            "copied_from": origin
        }
        if decision := chosen.tags.get("decision"):
            against = chosen.tags.get("decided_against", "none")
            where = chosen.tags.get("decided_in", here)
            tags["verdict_elsewhere"] = f"{decision} in {where} against version {against}"
        there = RemoteRegistry(to)
        made = there.register(name, files, Path(folder) / aliases.DECISION, tags, experiment=tracking.experiment)
        arrived = there.digest(name, made)
        if arrived != chosen.tags.get(MODEL_DIGEST, arrived):
            there.remove(name, made)
            raise UserError(
                f"{name} version {made} at {without_credentials(to)}: its files did not arrive as they were"
            )
    return CopyResult(name, made, without_credentials(to))
