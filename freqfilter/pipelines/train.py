"""Training: one tracked, registered, loadable run."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from freqfilter.config import Params
from freqfilter.errors import TrainingError, UserError
from freqfilter.evaluation.limits import ValidationLimit
from freqfilter.evaluation.metrics import Comparison
from freqfilter.evaluation.monitor import Finding, Monitor, check_settings, unusual_power
from freqfilter.evaluation.overlap import WindowOverlap, shared_data
from freqfilter.models.filter import Filter
from freqfilter.pipelines.finalize import finalize
from freqfilter.pipelines.run_metrics import epoch_metrics
from freqfilter.pipelines.setup import ResumePoint, TrainingSetup, log_limit, log_overlaps, log_resume, log_setup, setup
from freqfilter.plots.training import training_loss
from freqfilter.process import Interrupted, shutdown
from freqfilter.progress import show_progress
from freqfilter.tracked_names import CHECKPOINTS
from freqfilter.tracking.lifecycle import Job, open_run
from freqfilter.tracking.loading import load_run
from freqfilter.tracking.outbox import UndeliveredError
from freqfilter.tracking.owner import TakenOverError
from freqfilter.tracking.run import DIAGNOSIS, Run, diagnoses
from freqfilter.tracking.system_metrics import system_metrics
from freqfilter.tracking.ui_views import RunRef, resume_command
from freqfilter.training.checkpoint import Checkpoints, TrainingSpec, write_checkpoint, write_weights
from freqfilter.training.device import wrap_memory_errors
from freqfilter.training.loop import train as training_steps
from freqfilter.training.reports import EpochReport, StepReport
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
        compared: Scores of the model and of the baselines on the test set.
        metrics: Metrics of the best epoch and of the test.
        val_limit_mse: The limit on the validation windows; None where it is not known.
        overlaps: Windows that validation and test share with other splits.
        diagnoses: Problems found in the training: name to one line.
        model_name: Name of the registered model.
        version: Number of the registered version; None where it was not registered.
        folder: The run's folder, which has everything if the run is offline.
    """

    run: RunRef
    params: Params
    progress: Progress
    compared: Comparison
    metrics: dict[str, float]
    val_limit_mse: float | None
    overlaps: list[WindowOverlap]
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
            loss=self.params.loss_name,
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


@wrap_memory_errors()
def train(
    params: Params, *, recipe: str, name: str, parent: Run | None = None, resume_point: ResumePoint | None = None
) -> TrainingResult:
    """Train a filter as one tracked run: set up, fit, finalize.

    Args:
        params: Resolved parameters.
        recipe: Name of the recipe, which the run records.
        name: Default name of the run.
        parent: Open run that this one is a child of.
        resume_point: Interrupted training to resume; None: start a new one.

    Raises:
        UserError: If store, device, precision, data or initial weights cannot be used, memory runs out, or training
            diverges.
        UndeliveredError: If the store became unreachable; the run's folder has everything.
        Interrupted: If a signal was received; the run is then KILLED.
    """
    prepared = setup(params, resume_point)
    params = prepared.params
    job = Job("train", name, {"recipe": recipe} | params.canonical(), params_digest=params.digest(), repeatable=False)
    lock = resume_point.lock if resume_point else None
    with open_run(params.tracking, job, parent=parent, lock=lock) as run:
        prepared = prepared.in_experiment(run.experiment)
        params, splits = prepared.params, prepared.splits
        if resume_point is None:
            log_setup(run, prepared, recipe=recipe)
        checkpoints = CheckpointWriter(run, prepared.state, TrainingSpec(params, recipe, splits.digests))
        checkpoints.start()
        interval_s = params.tracking.system_metrics_interval
        with _with_resume_hint(run.run_id), system_metrics(run, interval_s=interval_s, warn=logger.warning):
            prepared.print_header(run)
            if resume_point:
                log_resume(run, prepared.state, resume_point)
            overlaps = log_overlaps(run, splits)
            for finding in (shared_data(overlaps, params), unusual_power(splits, params)):
                if finding:
                    _log_finding(run, finding)
            val_limit = log_limit(run, params, splits)
            val_limit_mse = val_limit.mse if val_limit else None
            for report in prepared.state.progress.history:  # those that a former owner has not delivered
                run.log_metrics(epoch_metrics(report, val_limit_mse=val_limit_mse), step=report.epoch)
            fit(run, prepared, checkpoints, val_limit=val_limit)
            compared, metrics, version = finalize(run, prepared, val_limit_mse=val_limit_mse)
    return TrainingResult(
        run=RunRef.to(run, prepared.tracking_uri),
        params=params,
        progress=prepared.state.progress,
        compared=compared,
        metrics=metrics,
        val_limit_mse=val_limit_mse,
        overlaps=overlaps,
        diagnoses=diagnoses(run.tags),
        model_name=params.tracking.model_name,
        version=version,
        folder=run.folder,
    )


def fit(run: Run, prepared: TrainingSetup, checkpoints: CheckpointWriter, *, val_limit: ValidationLimit | None) -> None:
    """Run the training loop: log each epoch, write checkpoints, and log the problems that are found.

    Args:
        run: The open run.
        prepared: The training, which continues from its state.
        checkpoints: Writes the checkpoints.
        val_limit: The limit on the validation windows; None if it is unknown.

    Raises:
        TrainingError: If the loss is no longer finite.
        Interrupted: If a signal was received, after a checkpoint has been written.
    """
    params, splits, state = prepared.params, prepared.splits, prepared.state
    training, evaluation = params.training, params.evaluation
    steps = training_steps(
        state,
        training_windows=splits.epoch,
        validation=splits.validation,
        holdout=splits.epoch_holdout(evaluation.holdout_windows),
        holdout_every=evaluation.holdout_every,
        params=training,
    )
    monitor = Monitor(state, splits, params, val_limit=val_limit)
    val_limit_mse = val_limit.mse if val_limit else None
    for finding in check_settings(params):
        _log_finding(run, finding)
    with (
        _good_weights_on_divergence(run, state),
        wrap_memory_errors(),
        closing(steps),
        checkpoints.write_on_interrupt(),
        shutdown.deferred(),
    ):
        for report in steps:
            shutdown.check()
            show_progress(report, epochs=training.epochs)
            if isinstance(report, EpochReport):
                run.log_metrics(epoch_metrics(report, val_limit_mse=val_limit_mse), step=report.epoch)
                for finding in monitor.check(report):
                    _log_finding(run, finding)
            checkpoints.on_report(report)
    if state.progress.stopped_early:
        logger.info(
            f"stopped early: {training.early_stopping_patience} validations without improvement "
            f"since epoch {state.progress.best_epoch}"
        )


class CheckpointWriter:
    """Checkpoint policy of a training: at its start and end, by epochs, by minutes, and on an interrupt.

    Args:
        run: The run, whose folder has the checkpoints.
        state: State of the training.
        spec: Parameters, recipe and data digests, which each checkpoint states.
    """

    def __init__(self, run: Run, state: TrainingState, spec: TrainingSpec) -> None:
        self._run = run
        self._state = state
        self._spec = spec
        self._checkpoints = Checkpoints(run.folder / CHECKPOINTS, kept=spec.params.training.checkpoints_kept)
        self._written_at = time.monotonic()

    def start(self) -> None:
        """Write a checkpoint before the first step; of a resumed training, log the one that it resumes from."""
        if self._checkpoints.path(self._state.progress).exists():
            self._log_if_artifact()
        else:
            self.write()

    def write(self) -> None:
        """Write a checkpoint, and remove the oldest ones."""
        write_checkpoint(self._checkpoints.path(self._state.progress), self._state, self._spec)
        self._log_if_artifact()
        self._checkpoints.remove_old(needed=self._run.unsent_files())
        self._written_at = time.monotonic()

    def on_report(self, report: StepReport | EpochReport) -> None:
        """Write a checkpoint if one is due."""
        training, progress = self._spec.params.training, self._state.progress
        due = 0 < 60 * training.checkpoint_minutes <= time.monotonic() - self._written_at
        ended = progress.stopped_early or progress.epoch > training.epochs
        if due or (isinstance(report, EpochReport) and (ended or self._is_artifact())):
            self.write()

    @contextmanager
    def write_on_interrupt(self) -> Iterator[None]:
        """A block that writes a checkpoint if it is interrupted."""
        try:
            yield
        except Interrupted:
            self.write()
            raise

    def _is_artifact(self) -> bool:
        every, progress = self._spec.params.training.checkpoint_every, self._state.progress
        n_epochs = progress.epoch - 1
        return progress.batch == 0 and n_epochs > 0 and every > 0 and n_epochs % every == 0

    def _log_if_artifact(self) -> None:
        if self._is_artifact():
            self._run.log_file(self._checkpoints.path(self._state.progress))


@contextmanager
def _with_resume_hint(run_id: str) -> Iterator[None]:
    """A block whose interrupts and errors name the command that resumes the run."""
    try:
        yield
    except Interrupted as interrupted:
        interrupted.remedy = resume_command(run_id)
        raise
    # Resumed, a training would diverge again; an undelivered run is synced; a run that was taken over is resumed.
    except (TrainingError, UndeliveredError, TakenOverError):
        raise
    except UserError as error:
        raise UserError(f"{error}; fix this, then resume with: {resume_command(run_id)}") from error


@contextmanager
def _good_weights_on_divergence(run: Run, state: TrainingState) -> Iterator[None]:
    """A block that logs the last good weights if training diverges."""
    try:
        yield
    except TrainingError:
        try:
            write_weights(run.folder / "models/last_good_model.pth", state.good_weights)
            run.log_file(run.folder / "models/last_good_model.pth")
            logger.info("saved the last good weights as the artifact models/last_good_model.pth")
        except UserError as error:  # it must not replace the error that ended the training
            logger.info(f"the last good weights could not be saved: {error}")
        raise


def _log_finding(run: Run, finding: Finding) -> None:
    run.log_tags({f"{DIAGNOSIS}.{finding.name}": finding.line})
    logger.info(f"{DIAGNOSIS}: {finding.line}")
