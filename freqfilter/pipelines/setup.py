"""Setup of a training before its run is opened, and its checkpoint policy."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from freqfilter.config import Params
from freqfilter.data.splits import Splits
from freqfilter.errors import TrainingError, UserError
from freqfilter.models.filter import Filter
from freqfilter.process import Interrupted
from freqfilter.tracked_names import CHECKPOINTS
from freqfilter.tracking.client import open_store
from freqfilter.tracking.lifecycle import check_folders
from freqfilter.tracking.loading import load_origin
from freqfilter.tracking.outbox import UndeliveredError
from freqfilter.tracking.run import Run
from freqfilter.tracking.ui_views import resume_command
from freqfilter.training.checkpoint import Checkpoint, Checkpoints, TrainingSpec, write_checkpoint
from freqfilter.training.device import Accelerator
from freqfilter.training.reports import EpochReport, StepReport
from freqfilter.training.state import TrainingState


@dataclass(frozen=True)
class TrainingSetup:
    """All that a training needs, before there is a run.

    Attributes:
        params: Its parameters, with the origin of the weights named for good.
        tracking_uri: To show; empty where it is offline.
        origin: The filter that the first weights are of, if any.
    """

    params: Params
    accelerator: Accelerator
    splits: Splits
    tracking_uri: str
    origin: Filter | None
    state: TrainingState


def setup(params: Params, checkpoint: Checkpoint | None = None) -> TrainingSetup:
    """See that everything is there, and make the training as it begins, or as a checkpoint has it.

    Raises:
        UserError: If store, folders, device, precision, data or origin cannot be used, or the data is not that of the
            checkpoint.
    """
    tracking_uri = open_store() if params.tracking.tracking == "online" else ""
    accelerator = Accelerator.open(params.training)
    splits = Splits.from_params(params)
    origin = _load_origin(params, splits) if checkpoint is None else None
    if origin:
        params = params.with_start_from(origin.pinned_uri)
    check_folders(params.tracking)  # the last check, since it may make them
    state = TrainingState(
        n_components=splits.validation.n_components,
        model=params.model,
        training=params.training,
        accelerator=accelerator,
    )
    if origin:
        state.start_from(origin.module.state_dict())
    if checkpoint:
        _check_data(splits.digests, checkpoint.spec)
        try:
            state.load_state_dict(checkpoint.state)
        except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise UserError("the checkpoint is not of the network that its parameters state: start anew") from error
    return TrainingSetup(params, accelerator, splits, tracking_uri, origin, state)


def _check_data(found: dict[str, str], stated: TrainingSpec) -> None:
    for purpose, digest in stated.data.items():
        if found.get(purpose) != digest:
            raise UserError(
                f"{stated.params.data.data_file or 'the signal model'}: its data for {purpose} is not what this "
                "training began with; bring that back, or train anew"
            )


def _load_origin(params: Params, splits: Splits) -> Filter | None:
    """The filter whose weights training goes on from, if any; its network has to be the one asked for."""
    start_from = params.training.start_from
    if start_from is None:
        return None
    origin = load_origin(start_from)
    asked = {"n_components": splits.validation.n_components} | params.model.model_dump()
    for name, theirs in origin.facts["network"].items():
        if name != "dropout" and theirs != asked[name]:  # dropout has no weights
            remedy = "frequencies_hz" if name == "n_components" else f"{name}={str(theirs).lower()}"
            raise UserError(
                f"start_from={start_from}: its network has {name}={theirs} and {name}={asked[name]} is asked for: "
                f"add {remedy}"
            )
    return origin


class CheckpointWriter:
    """Writes the checkpoints of a training: by epochs, by minutes, at its beginning and end, and when it is stopped.

    Args:
        run: The run, in whose folder they are.
        state: What is kept.
        spec: What goes with it.
    """

    def __init__(self, run: Run, state: TrainingState, stated: TrainingSpec) -> None:
        self._run = run
        self._state = state
        self._stated = stated
        self._checkpoints = Checkpoints(run.folder / CHECKPOINTS, kept=stated.params.training.checkpoints_kept)
        self._written_at = time.monotonic()

    def start(self) -> None:
        """Write training before its first step, or see that what it goes on from is among the run's artifacts."""
        if self._checkpoints.path(self._state.progress).exists():
            self._log()
        else:
            self.write()

    def write(self) -> None:
        """Write training as it stands, and remove what is too old; some ends of epochs become artifacts too."""
        write_checkpoint(self._checkpoints.path(self._state.progress), self._state, self._stated)
        self._log()
        self._checkpoints.remove_old(needed=self._run.unsent_files())
        self._written_at = time.monotonic()

    def on_report(self, report: StepReport | EpochReport) -> None:
        """Write a checkpoint where one is due."""
        training, progress = self._stated.params.training, self._state.progress
        due = 0 < 60 * training.checkpoint_minutes <= time.monotonic() - self._written_at
        ended = progress.stopped_early or progress.epoch > training.epochs
        if due or (isinstance(report, EpochReport) and (ended or self._is_artifact())):
            self.write()

    def _is_artifact(self) -> bool:
        every, progress = self._stated.params.training.checkpoint_every, self._state.progress
        done = progress.epoch - 1
        return progress.batch == 0 and done > 0 and every > 0 and done % every == 0

    def _log(self) -> None:
        if self._is_artifact():
            self._run.log_file(self._checkpoints.path(self._state.progress))

    @contextmanager
    def write_on_interrupt(self) -> Iterator[None]:
        """A block of training: where it is stopped at a safe point, all that it has done is kept."""
        try:
            yield
        except Interrupted:
            self.write()
            raise


@contextmanager
def with_resume_hint(run_id: str) -> Iterator[None]:
    """A block after the first checkpoint: whoever ends it hears how to go on."""
    try:
        yield
    except Interrupted as stopped:
        stopped.remedy = resume_command(run_id)
        raise
    except (TrainingError, UndeliveredError):  # it would end there again; it says how to go on
        raise
    except UserError as error:
        raise UserError(f"{error}; mend that, then go on: {resume_command(run_id)}") from error
