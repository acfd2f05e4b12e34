"""Setup of a training: what it needs before its run is opened, and what the run records of it."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass, replace
from typing import Self

from freqfilter.config import Params
from freqfilter.data.splits import Splits
from freqfilter.errors import UserError
from freqfilter.evaluation import limits
from freqfilter.evaluation.limits import ValidationLimit
from freqfilter.evaluation.metrics import ZERO_MSE
from freqfilter.evaluation.overlap import MIN_RUN, WindowOverlap, measure_overlaps
from freqfilter.evaluation.recordings import close_components
from freqfilter.models.filter import Filter
from freqfilter.models.network import CELLS
from freqfilter.pipelines.run_metrics import limit_metrics
from freqfilter.tracking import provenance, registry
from freqfilter.tracking.client import open_store
from freqfilter.tracking.lifecycle import check_folders
from freqfilter.tracking.loading import load_origin, training_run_id
from freqfilter.tracking.owner import RunLock
from freqfilter.tracking.run import Run
from freqfilter.training.checkpoint import Checkpoint
from freqfilter.training.device import Accelerator
from freqfilter.training.state import TrainingState

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ResumePoint:
    """An interrupted training and its newest checkpoint.

    Attributes:
        run_id: Id of its run.
        name: Name of its run.
        checkpoint: The checkpoint.
        tags: Tags of its run, among them those of the machine that it started on.
        lock: Lock of its run.
    """

    run_id: str
    name: str
    checkpoint: Checkpoint
    tags: dict[str, str]
    lock: RunLock


@dataclass(frozen=True)
class TrainingSetup:
    """A training that is ready to run.

    Attributes:
        params: Its parameters; ``start_from`` is resolved to an immutable URI.
        accelerator: Device and precision.
        splits: The data.
        tracking_uri: The tracking store, without a password; empty if the run is offline.
        origin: The filter that training starts from, if any.
        state: Network, optimizers and progress.
    """

    params: Params
    accelerator: Accelerator
    splits: Splits
    tracking_uri: str
    origin: Filter | None
    state: TrainingState

    def in_experiment(self, experiment: str) -> Self:
        """The same setup with the experiment that the run belongs to, which `mlflow run` may have chosen."""
        return replace(self, params=self.params.with_tracking(experiment=experiment))

    def print_header(self, run: Run) -> None:
        """Print the run, the device, the data and the network."""
        splits, state = self.splits, self.state
        logger.info(f"run {run.run_id} in experiment {run.experiment}")
        logger.info(f"device: {state.accelerator.describe()}")
        counts = f"{splits.n_epoch:,} training, {len(splits.validation):,} validation, {len(splits.test):,} test"
        n_samples = splits.validation.n_samples
        if self.params.of_recordings:
            training = self.params.recordings
            logger.info(
                f"recordings: {counts}, each {n_samples:,} samples, in training {training.recording_length:,} in "
                f"chunks of {training.chunk_length:,}"
            )
        else:
            n_features = 1 + splits.validation.n_components
            logger.info(f"windows: {counts}, each {n_samples} samples of {n_features} features")
        logger.info(f"network: {state.n_parameters:,} parameters\n{state.network}")


def setup(params: Params, resume_point: ResumePoint | None = None) -> TrainingSetup:
    """Check everything that a training needs, and create its state, or load it from a checkpoint.

    Args:
        params: Resolved parameters.
        resume_point: Interrupted training to resume; None: start a new one.

    Raises:
        UserError: If store, folders, device, precision, data or initial weights cannot be used, or the data or the
            network differ from the checkpoint's.
    """
    tracking_uri = open_store() if params.tracking.tracking == "online" else ""
    if tracking_uri and params.tracking.register:
        registry.check_model_name(params.tracking.model_name)  # it would be refused after the last epoch
    accelerator = Accelerator.open(params.training)
    splits = Splits.from_params(params)
    origin = _load_origin(params, splits) if resume_point is None else None
    if origin:
        params = params.with_start_from(origin.pinned_uri)
    check_folders(params.tracking)  # last, since it creates them
    state = TrainingState(
        n_components=splits.validation.n_components,
        model=params.model,
        training=params.training,
        accelerator=accelerator,
        selector=not params.of_recordings,
    )
    if origin:
        state.start_from(origin.module.state_dict())
    if resume_point:
        _load_checkpoint(state, splits, resume_point.checkpoint)
    return TrainingSetup(params, accelerator, splits, tracking_uri, origin, state)


def log_setup(run: Run, prepared: TrainingSetup, *, recipe: str) -> None:
    """Log parameters as a file, machine, data and initial weights, which determine the results of the run."""
    params, splits = prepared.params, prepared.splits
    run.log_bytes(params.to_yaml().encode(), "params.yaml")
    run.log_tags({"recipe": recipe} | provenance.machine_tags(prepared.accelerator))
    if origin := prepared.origin:
        run.log_tags({"start_from_model": origin.pinned_uri, "start_from_run": training_run_id(origin)})
    log_training_data(run, splits)
    run.log_data(splits.validation, name="validation", context="validation")
    run.log_data(splits.test, name="test", context="test")
    if splits.holdout:
        run.log_data(splits.holdout, name="holdout", context="holdout")


def log_training_data(run: Run, splits: Splits) -> None:
    """Log the training windows as a dataset, named by whether the noise is a part of them."""
    name = "train_without_noise" if splits.fresh_noise else "train"
    run.log_data(splits.train, name=name, context="training")


def log_overlaps(run: Run, splits: Splits) -> list[WindowOverlap]:
    """Measure, print and log how many windows the splits share."""
    overlaps = measure_overlaps(splits)
    run.log_bytes(json.dumps([asdict(overlap) for overlap in overlaps], indent=2).encode(), "evaluation/overlap.json")
    for overlap in overlaps:
        logger.info(overlap.summary())
    if not overlaps:
        logger.info(f"overlap: not measured, windows of fewer than {MIN_RUN} samples coincide by chance")
    return overlaps


def log_limit(run: Run, params: Params, splits: Splits) -> ValidationLimit | None:
    """Print and log the limit before training; the limit on the validation windows, None if it is unknown."""
    expected_mse = limits.expected_limit_mse(params)
    val_limit = limits.validation_limit(params, splits.validation)
    if expected_mse is not None:
        run.log_metrics(limit_metrics(expected_mse), step=0)
    if expected_mse is None or val_limit is None:
        logger.info(f"limit: unknown for these validation {splits.validation.items}; no ratio to it and no leak alarm")
    elif val_limit.mse < ZERO_MSE:
        logger.info(f"limit: zero on the validation {splits.validation.items}; no ratio to it")
    else:
        measured = f"{val_limit.mse:.4f} on the validation {splits.validation.items}"
        logger.info(f"limit: MSE {measured}, {expected_mse:.4f} in expectation")
    if params.of_recordings:
        for line in close_components(params):
            logger.info(line)
    return val_limit


def log_resume(run: Run, state: TrainingState, resume_point: ResumePoint) -> None:
    """Print where training continues, and each property of the machine by which its results may differ."""
    progress = state.progress
    batch = f", batch {progress.batch}" if progress.batch else ""
    logger.info(f"resuming after epoch {progress.epoch - 1}{batch}")
    tags = provenance.machine_tags(state.accelerator)
    for name, before in resume_point.tags.items():
        if name in tags and before != tags[name]:
            logger.info(f"{name} was {before!r} and is {tags[name]!r}: results may differ in their last digits")
    run.log_tags({"resumed_after_epoch": str(progress.epoch - 1)} | tags)


def _load_checkpoint(state: TrainingState, splits: Splits, checkpoint: Checkpoint) -> None:
    spec = checkpoint.spec
    for purpose, digest in spec.data.items():
        if splits.digests.get(purpose) != digest:
            source = spec.params.data.data_file or "the signal model"
            raise UserError(
                f"{source}: its {purpose} data differs from that of the checkpoint; restore the original data or start "
                "a new run"
            )
    try:
        state.load_state_dict(checkpoint.state)
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise UserError("the checkpoint does not match its parameters; start a new run") from error


def _load_origin(params: Params, splits: Splits) -> Filter | None:
    """The filter whose weights training starts from, if any; its network needs to be the requested one."""
    start_from = params.training.start_from
    if start_from is None:
        return None
    origin = load_origin(start_from)
    if origin.facts["network"]["cell"] not in CELLS:
        raise UserError(f"start_from={start_from}: a classical filter has no weights to start from; name a network")
    requested = {"n_components": splits.validation.n_components, "selector": not params.of_recordings}
    requested |= params.model.model_dump()
    for name, value in origin.facts["network"].items():
        if name != "dropout" and value != requested[name]:  # dropout has no weights
            remedies = {
                "n_components": "frequencies_hz",
                "selector": f"phase_distribution={'fixed' if value else 'uniform'}",
            }
            remedy = remedies.get(name, f"{name}={str(value).lower()}")
            raise UserError(
                f"start_from={start_from}: its network has {name}={value}, but {name}={requested[name]} is requested; "
                f"add {remedy}"
            )
    return origin
