"""Training: one tracked, registered, loadable run."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from freqfilter.config import Params
from freqfilter.data.splits import Splits
from freqfilter.data.windows import evenly_spaced
from freqfilter.errors import TrainingError, UserError
from freqfilter.evaluation import limits
from freqfilter.evaluation.limits import ValidationLimit
from freqfilter.evaluation.metrics import Comparison
from freqfilter.evaluation.monitor import Finding, Monitor, SampleOverlap, check_settings, measure_overlap
from freqfilter.models.filter import Filter
from freqfilter.pipelines.finalize import evaluate_best_weights, log_model, log_training_files
from freqfilter.pipelines.run_metrics import epoch_metrics, limit_metrics
from freqfilter.pipelines.setup import CheckpointWriter, TrainingSetup, setup, with_resume_hint
from freqfilter.plots.training import training_loss
from freqfilter.process import shutdown
from freqfilter.progress import show_progress
from freqfilter.tracking import provenance
from freqfilter.tracking.lifecycle import open_run
from freqfilter.tracking.loading import load_run, training_run_id
from freqfilter.tracking.run import DIAGNOSIS, Run, diagnoses
from freqfilter.tracking.system_metrics import system_metrics
from freqfilter.tracking.ui_views import RunRef
from freqfilter.training.checkpoint import Checkpoint, TrainingSpec, write_weights
from freqfilter.training.device import wrap_memory_errors
from freqfilter.training.loop import train as training_steps
from freqfilter.training.reports import EpochReport
from freqfilter.training.state import Progress, TrainingState

if TYPE_CHECKING:
    from matplotlib.figure import Figure

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingResult:
    """The result of a training.

    Attributes:
        run: The run.
        params: The resolved parameters.
        progress: Report of each epoch, and the best epoch.
        compared: Scores on the test set, of the model and of the estimators that it is compared with.
        metrics: Metrics of the best epoch and of the test.
        val_limit_mse: The limit on the validation windows; None where it is not known.
        overlap: Samples that validation shares with training.
        diagnoses: The problems that were found, by name, each in one line.
        model_name: Name of the registered model.
        version: Number of the registered version; None where it was not registered.
        folder: The run's files, where the run is offline.
    """

    run: RunRef
    params: Params
    progress: Progress
    compared: Comparison
    metrics: dict[str, float]
    val_limit_mse: float | None
    overlap: SampleOverlap
    diagnoses: dict[str, str]
    model_name: str
    version: int | None
    folder: Path

    @property
    def scores(self) -> pd.DataFrame:
        """Scores on the test set: a row for each estimator and component, a column for each measure."""
        return self.compared.table

    @property
    def history(self) -> pd.DataFrame:
        """A row for each epoch: losses, mean squared errors, learning rate, gradient norm and seconds."""
        table = pd.DataFrame([asdict(report) for report in self.progress.history]).set_index("epoch")
        return table.drop(columns=["val_blocks", "improved"])

    def loss_figure(self) -> Figure:
        """The losses over the epochs, with the limit as a line: the run's ``07_training_loss.png``."""
        return training_loss(
            self.progress.history,
            loss=self.params.training.loss,
            best_epoch=self.progress.best_epoch,
            val_limit_mse=self.val_limit_mse,
        )

    def load(self) -> Filter:
        """Load the trained model from the tracking store.

        Raises:
            UserError: If the run is offline.
        """
        if not self.run.tracking_uri:
            raise UserError(f"run {self.run.run_id} is offline: `python -m freqfilter sync` delivers it first")
        return load_run(self.run.run_id)


@dataclass(frozen=True)
class ResumePoint:
    """A training that was interrupted.

    Attributes:
        run_id: Its run.
        name: What that is called.
        checkpoint: Where it goes on.
        machine: Tags of the run, among them those of the machine that it began on.
    """

    run_id: str
    name: str
    checkpoint: Checkpoint
    machine: dict[str, str]


@wrap_memory_errors()
def train(
    params: Params, *, recipe: str, name: str, parent: Run | None = None, resume_point: ResumePoint | None = None
) -> TrainingResult:
    """Train as the parameters say, and track it.

    Args:
        params: Resolved parameters.
        recipe: The recipe's name, which the run keeps.
        name: What the run is called where nobody has named it.
        parent: The open run that this one is a part of, if any.
        resume_point: What it goes on with, if anything.

    Raises:
        UserError: If store, device, precision, data or origin cannot be used, memory runs out, or training diverges.
        UndeliveredError: If the store has gone away in the meantime; the run's folder has everything.
        Interrupted: If a signal was received; the run is then KILLED.
    """
    ready = setup(params, resume_point.checkpoint if resume_point else None)
    params, splits, state = ready.params, ready.splits, ready.state
    run_id = resume_point.run_id if resume_point else None
    with open_run(params.tracking, name=name, parent=parent, resumed=run_id) as run:
        params = params.with_tracking(experiment=run.experiment)
        if resume_point is None:
            _log_setup(run, ready, params, recipe=recipe)
        keeper = CheckpointWriter(run, state, TrainingSpec(params, recipe, splits.digests))
        keeper.start()
        interval_s = params.tracking.system_metrics_interval
        with with_resume_hint(run.run_id), system_metrics(run, interval_s=interval_s, warn=logger.warning):
            _print_header(run, state, splits)
            if resume_point:
                _log_resume(run, state, resume_point)
            overlap = _log_overlap(run, splits)
            val_limit = _log_limit(run, params, splits)
            _fit(run, state, splits, params, keeper=keeper, val_limit=val_limit)
            val_limit_mse = val_limit.mse if val_limit else None
            log_training_files(run, state, params, val_limit_mse=val_limit_mse)
            compared, metrics = evaluate_best_weights(run, state, splits, params, val_limit_mse=val_limit_mse)
            version = None
            if run.online:
                shutdown.ignore_signals()  # what a stop could save is seconds
                version = log_model(run, state, splits, params, compared, metrics)
    return TrainingResult(
        run=RunRef.to(run, ready.tracking_uri),
        params=params,
        progress=state.progress,
        compared=compared,
        metrics=metrics,
        val_limit_mse=val_limit_mse,
        overlap=overlap,
        diagnoses=diagnoses(run.tags),
        model_name=params.tracking.model_name,
        version=version,
        folder=run.folder,
    )


def _log_setup(run: Run, ready: TrainingSetup, params: Params, *, recipe: str) -> None:
    """Parameters, code, machine, data and first weights: all that the run's numbers follow from."""
    run.log_params({"recipe": recipe} | params.canonical())
    run.log_bytes(params.to_yaml().encode(), "params.yaml")
    run.log_source(provenance.source())
    tags = {"workflow": "train", "recipe": recipe, "params_digest": params.digest()}
    run.log_tags(tags | provenance.machine_tags(ready.accelerator))
    if ready.origin:
        run.log_tags({"start_from_model": ready.origin.pinned_uri, "start_from_run": training_run_id(ready.origin)})
    splits = ready.splits
    log_training_data(run, splits)
    run.log_data(splits.validation, name="validation", context="validation")
    run.log_data(splits.test, name="test", context="test")
    if splits.holdout:
        run.log_data(splits.holdout, name="holdout", context="holdout")


def log_training_data(run: Run, splits: Splits) -> None:
    """Note what training takes its windows from, under a name that says whether the noise is a part of it."""
    name = "train_without_noise" if splits.fresh_noise else "train"
    run.log_data(splits.train, name=name, context="training")


def _print_header(run: Run, state: TrainingState, splits: Splits) -> None:
    validation = splits.validation
    logger.info(f"run {run.run_id} in experiment {run.experiment}")
    logger.info(f"device: {state.accelerator.describe()}")
    logger.info(
        f"windows: {splits.n_epoch:,} training, {len(validation):,} validation, {len(splits.test):,} test, "
        f"each {validation.n_samples} samples of {1 + validation.n_components} features"
    )
    logger.info(f"network: {state.n_parameters:,} parameters\n{state.network}")


def _log_resume(run: Run, state: TrainingState, resume_point: ResumePoint) -> None:
    """Say where it goes on, and whether this machine can give the numbers that the other would have given."""
    progress = state.progress
    logger.info(f"going on after epoch {progress.epoch - 1}" + (f", batch {progress.batch}" if progress.batch else ""))
    here = provenance.machine_tags(state.accelerator)
    for name, before in resume_point.machine.items():
        if name in here and before != here[name]:
            logger.info(
                f"{name} was {before!r} and is {here[name]!r}: from here on numbers may differ in their last digits"
            )
    run.log_tags({"resumed_after_epoch": str(progress.epoch - 1)} | here)


def _log_overlap(run: Run, splits: Splits) -> SampleOverlap:
    """Print and log how many samples validation shares with training."""
    overlap = measure_overlap(splits.train, splits.validation, fresh_noise=splits.fresh_noise)
    run.log_bytes(json.dumps(asdict(overlap), indent=2).encode(), "evaluation/overlap.json")
    logger.info(overlap.summary())
    return overlap


def _log_limit(run: Run, params: Params, splits: Splits) -> ValidationLimit | None:
    """Print and log the limit before anything is trained; its value on the validation windows, if it is known."""
    expected_mse = limits.expected_limit_mse(params)
    val_limit = limits.validation_limit(params, splits.validation)
    if expected_mse is not None:
        run.log_metrics(limit_metrics(expected_mse), step=0)
    if expected_mse is None or val_limit is None:
        logger.info("limit: not known of these validation windows, hence no ratio to it and no leak alarm")
    else:
        logger.info(f"limit: MSE {val_limit.mse:.4f} on the validation windows, {expected_mse:.4f} in expectation")
    return val_limit


def _fit(
    run: Run,
    state: TrainingState,
    splits: Splits,
    params: Params,
    *,
    keeper: CheckpointWriter,
    val_limit: ValidationLimit | None,
) -> None:
    training = params.training
    steps = training_steps(
        state,
        training_windows=splits.epoch,
        validation=splits.validation,
        holdout=evenly_spaced(splits.holdout, params.evaluation.holdout_windows) if splits.holdout else None,
        holdout_every=params.evaluation.holdout_every,
        params=training,
    )
    diagnosis = Monitor.of(state, splits, params, val_limit=val_limit)
    val_limit_mse = val_limit.mse if val_limit else None
    for finding in check_settings(params):
        _log_finding(run, finding)
    with (
        _last_good_weights(run, state),
        wrap_memory_errors(),
        closing(steps),
        keeper.write_on_interrupt(),
        shutdown.deferred(),
    ):
        for report in steps:
            shutdown.check()
            show_progress(report, epochs=training.epochs)
            if isinstance(report, EpochReport):
                run.log_metrics(epoch_metrics(report, val_limit_mse=val_limit_mse), step=report.epoch)
                for finding in diagnosis.check(report):
                    _log_finding(run, finding)
            keeper.on_report(report)
    if state.progress.stopped_early:
        logger.info(
            f"stopped early: {training.early_stopping_patience} validations without improvement "
            f"since epoch {state.progress.best_epoch}"
        )


@contextmanager
def _last_good_weights(run: Run, state: TrainingState) -> Iterator[None]:
    """A block whose diagnosed end leaves the weights of shortly before among the run's files."""
    try:
        yield
    except TrainingError:
        try:
            write_weights(run.folder / "models/last_good_model.pth", state.good_weights)
            run.log_file(run.folder / "models/last_good_model.pth")
            logger.info("kept: the last good weights, models/last_good_model.pth among the run's artifacts")
        except UserError as error:  # that must not hide what ended the training
            logger.info(f"the last good weights are lost: {error}")
        raise


def _log_finding(run: Run, finding: Finding) -> None:
    run.log_tags({f"{DIAGNOSIS}.{finding.name}": finding.line})
    logger.info(f"{DIAGNOSIS}: {finding.line}")
