"""Deployment of a version: ONNX export, and a copy in another registry."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
from contextlib import nullcontext
from pathlib import Path

import numpy as np

from freqfilter.atomic_io import atomic_write, check_writable, temporary_folder
from freqfilter.config import TrackingParams
from freqfilter.config.load import check_model_name_syntax
from freqfilter.data.windows import noise_inputs
from freqfilter.errors import UserError, install_hint
from freqfilter.process import launched_by_mlflow
from freqfilter.tracking import aliases, resolve_sqlite_uri
from freqfilter.tracking.client import experiment_name, open_store
from freqfilter.tracking.lifecycle import Job, open_run
from freqfilter.tracking.loading import MODEL_DIGEST, MODEL_SPACE, checked_files, load_uri
from freqfilter.tracking.queries import download, upload
from freqfilter.tracking.registry import register_copy

logger = logging.getLogger(__name__)

TOLERANCE = 1e-5  # of the estimates of an ONNX file
# Numbers of windows or recordings and samples that are checked in addition to the golden inputs.
SHAPES = ((1, 1), (3, 7), (2, 200))
FOLDER = "onnx"  # artifact folder in the run that trained the version
# Tags that refer to their own registry.
REGISTRY_LOCAL_TAGS = {
    "decision", "decision_run", "decided_against", "decided_in", "rollback_run", "copied_from", "verdict_elsewhere"
}  # fmt: skip


def export(tracking: TrackingParams, *, version: int | None, output: Path) -> tuple[aliases.RegisteredVersion, float]:
    """Export a version as an ONNX file and check its estimates against the version's.

    The file is also logged as an artifact of the run that trained the version, and the version is tagged with its
    location and digest, if the store allows it.

    Args:
        tracking: Tracking parameters with the name of the model.
        version: Version number; None for the newest.
        output: The file to write.

    Returns:
        The version, and the largest absolute difference between its estimates and the file's.

    Raises:
        UserError: If ONNX is not installed, there is no such version, or the file cannot be written.
        RuntimeError: If the file's estimates differ from the version's by more than ``TOLERANCE``.
    """
    if missing := [package for package in ("onnx", "onnxruntime") if importlib.util.find_spec(package) is None]:
        raise UserError(f"{' and '.join(missing)} not installed; {install_hint('onnx')}")
    check_writable("output", output)
    open_store()
    chosen = aliases.candidate_version(tracking.model_name, version)
    name = f"{chosen.model_name}_{chosen.version}.onnx"
    job = Job("export", f"export {chosen.uri}", {"model_name": chosen.model_name, "version": str(chosen.version)})
    with open_run(tracking, job) if launched_by_mlflow() else nullcontext() as run:
        if run:
            run.log_tags({"model_uri": chosen.uri})
        content, difference = _convert(chosen)
        with atomic_write(output) as file:
            file.write(content)
        with temporary_folder() as folder:
            path = folder / name
            path.write_bytes(content)
            _log_with_training(chosen, path)
        if run:
            run.log_bytes(content, f"{FOLDER}/{name}")
            run.describe(
                f"`{chosen.uri}` as an ONNX file; its estimates differ from the version's by {difference:.0e} at most."
            )
    return chosen, difference


def _log_with_training(version: aliases.RegisteredVersion, file: Path) -> None:
    """Log a file as an artifact of a version's training run and tag the version, unless the store refuses it."""
    try:
        artifact_uri = upload(version.run_id, file, FOLDER)
    except UserError as error:
        logger.info(f"the file is not logged as an artifact of the training: {error}")
        return
    aliases.tag_version(version, {"onnx": artifact_uri, "onnx_sha256": hashlib.sha256(file.read_bytes()).hexdigest()})


def _convert(version: aliases.RegisteredVersion) -> tuple[bytes, float]:
    """Return the content of the ONNX file, and the largest difference of its estimates from the version's."""
    from onnxruntime import InferenceSession

    from freqfilter.models.export import onnx_model

    model = load_uri(version.uri)
    facts = {name: json.dumps(value) for name, value in model.facts.items() if name != "params"}
    metadata = facts | {"version": version.uri, MODEL_DIGEST: version.tags.get(MODEL_DIGEST, "")}
    content = onnx_model(model.module, metadata).SerializeToString()
    random = np.random.default_rng(1)
    n_components = None if model.of_recordings else len(model.facts["frequencies_hz"])
    examples = [noise_inputs(random, *shape, n_components=n_components) for shape in SHAPES]
    if model.golden is not None:
        examples.append(model.golden[0])
    session, difference = InferenceSession(content), 0.0
    for inputs in examples:
        (estimates,) = session.run(None, {"inputs": inputs})
        difference = max(difference, float(np.abs(estimates - model.predict(inputs)).max()))
    if difference > TOLERANCE:
        raise RuntimeError(f"{version.uri}: estimates of the ONNX file differ by {difference:.1e}")
    return content, difference


def copy_version(tracking: TrackingParams, *, version: int | None, to: str, to_name: str | None) -> int:
    """Copy a version to another tracking server or store, and check its digest there.

    A decision holds only in its own registry: the copy is a candidate, and its tag ``verdict_elsewhere`` has the
    decision, its registry and the champion at that time.

    Args:
        tracking: Tracking parameters with the name of the model.
        version: Version number; None for the newest.
        to: Tracking URI of the other server or store.
        to_name: Name of the model there; None for the same name.

    Returns:
        The version number there.

    Raises:
        UserError: If there is no such version, or its checksum is wrong in this registry or in the other one.
    """
    name = to_name or tracking.model_name
    check_model_name_syntax("to_name", name)  # before a run exists there
    source_uri = open_store()
    chosen = aliases.candidate_version(tracking.model_name, version)
    tags = {tag: value for tag, value in chosen.tags.items() if tag not in REGISTRY_LOCAL_TAGS}
    tags["copied_from"] = f"{source_uri}: {chosen.model_name} version {chosen.version}"
    if decision := chosen.tags.get("decision"):
        against = chosen.tags.get("decided_against", "none")
        registry = chosen.tags.get("decided_in", source_uri)
        tags["verdict_elsewhere"] = f"{decision} in {registry} against version {against}"
    with temporary_folder(space=MODEL_SPACE) as folder:
        files, evidence = checked_files(chosen.uri, folder / "model"), folder / aliases.DECISION
        if decision_run := chosen.tags.get("decision_run"):
            download(decision_run, aliases.DECISION, folder)
        experiment = experiment_name(tracking.experiment)  # an id is of this store alone
        return register_copy(resolve_sqlite_uri(to), name, files, evidence, tags=tags, experiment=experiment)
