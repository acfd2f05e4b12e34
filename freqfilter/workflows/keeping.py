"""When a training is written down, so that it can go on from there."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from freqfilter.artifact_names import CHECKPOINTS
from freqfilter.errors import TrainingError, UserError
from freqfilter.filters.checkpoints import Checkpoints, Stated, write_checkpoint
from freqfilter.filters.reports import EpochReport, StepReport
from freqfilter.filters.state import TrainingState
from freqfilter.stopping import Stopped
from freqfilter.tracking.outbox import UndeliveredError
from freqfilter.tracking.runs import Run
from freqfilter.workflows.run_ref import way_on


class Keeper:
    """Writes the checkpoints of a training: by epochs, by minutes, at its beginning and end, and when it is stopped.

    Args:
        run: The run, in whose folder they are.
        state: What is kept.
        stated: What goes with it.
    """

    def __init__(self, run: Run, state: TrainingState, stated: Stated) -> None:
        self._run = run
        self._state = state
        self._stated = stated
        self._checkpoints = Checkpoints(run.folder / CHECKPOINTS, kept=stated.params.training.checkpoints_kept)
        self._written_at = time.monotonic()

    def begin(self) -> None:
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

    def after(self, report: StepReport | EpochReport) -> None:
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
    def keeping(self) -> Iterator[None]:
        """A block of training: where it is stopped at a safe point, all that it has done is kept."""
        try:
            yield
        except Stopped:
            self.write()
            raise


@contextmanager
def resumable(run_id: str) -> Iterator[None]:
    """A block after the first checkpoint: whoever ends it hears how to go on."""
    try:
        yield
    except Stopped as stopped:
        stopped.remedy = way_on(run_id)
        raise
    except (TrainingError, UndeliveredError):  # it would end there again; it says how to go on
        raise
    except UserError as error:
        raise UserError(f"{error}; mend that, then go on: {way_on(run_id)}") from error
