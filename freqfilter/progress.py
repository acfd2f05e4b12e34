"""Progress of a job on a terminal or in a log file."""

from __future__ import annotations

import logging
import math
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Never

from tqdm import tqdm

from freqfilter.streams import safe_streams
from freqfilter.training.reports import EpochReport, StepReport

logger = logging.getLogger(__name__)

MAX_SILENCE_S = 60  # seconds without output after which a log file gets a line within an epoch


class ProgressHandler(logging.Handler):
    """Log handler that prints messages to standard output, with a progress bar below them on a terminal.

    In a log file each epoch is one line.
    """

    def __init__(self) -> None:
        super().__init__()
        self._bar: tqdm[Never] | None = None
        self._written = time.monotonic()  # time of the last line
        self._forget()

    def _forget(self) -> None:
        self._epoch_seconds: list[float] = []
        self._figures = ""  # of the last epoch
        self._position = (0, 0.0)  # epoch and batch of the last report

    def emit(self, record: logging.LogRecord) -> None:
        """Print a message, or display a report of ``show_progress``; an error of a stream does not end the job."""
        try:
            if (report := getattr(record, "report", None)) is not None:
                self.show(report, epochs=record.__dict__["epochs"])
            elif record.levelno >= logging.INFO:
                self._close_bar()
                self._write(record.getMessage())
        except (OSError, ValueError):  # of a stream that the user's program has put in place of standard output
            self.handleError(record)

    def show(self, report: StepReport | EpochReport, *, epochs: int) -> None:
        """Advance the progress bar after a step, or print a line after an epoch."""
        position = (report.epoch, report.batch if isinstance(report, StepReport) else math.inf)
        if position <= self._position:
            self._forget()
        self._position = position
        if isinstance(report, EpochReport):
            self._show_epoch(report, epochs)
        elif sys.stdout.isatty():
            self._show_step(report, epochs)
        elif time.monotonic() - self._written >= MAX_SILENCE_S:
            self._write(_line(report, epochs))

    def _show_epoch(self, report: EpochReport, epochs: int) -> None:
        self._epoch_seconds.append(report.seconds)
        minutes, seconds = divmod(round(statistics.mean(self._epoch_seconds) * (epochs - report.epoch)), 60)
        line = _line(report, epochs)
        self._figures = line[line.index("train") :]
        self._write(f"{line}  {report.seconds:.1f} s  left {minutes}:{seconds:02d}")
        if report.epoch == epochs:
            self._close_bar()

    def _show_step(self, report: StepReport, epochs: int) -> None:
        done = (report.epoch - 1) * report.n_batches + report.batch
        if self._bar is None:
            total = epochs * report.n_batches
            self._bar = tqdm(total=total, initial=done - 1, unit="step", file=sys.stdout, leave=False)
        self._bar.set_description(f"epoch {report.epoch}/{epochs}", refresh=False)
        self._bar.set_postfix_str(self._figures, refresh=False)
        self._bar.update(done - self._bar.n)

    def _write(self, line: str) -> None:
        self._written = time.monotonic()
        tqdm.write(line, file=sys.stdout)
        sys.stdout.flush()

    def close(self) -> None:
        """Remove the progress bar."""
        with self.lock or nullcontext():
            self._close_bar()
        super().close()

    def _close_bar(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


@contextmanager
def progress_output(enabled: bool = True) -> Iterator[None]:
    """Print this package's messages and progress to standard output inside the block, if ``enabled``."""
    if not enabled:
        yield
        return
    package, handler = logging.getLogger("freqfilter"), ProgressHandler()
    level, propagate = package.level, package.propagate
    package.addHandler(handler)
    package.setLevel(logging.DEBUG)
    package.propagate = False  # the root logger's handlers would print each message again
    try:
        with safe_streams():
            yield
    finally:
        package.removeHandler(handler)
        package.setLevel(level)
        package.propagate = propagate
        handler.close()


def quiet() -> None:
    """Print only warnings until the block of ``progress_output`` ends."""
    logging.getLogger("freqfilter").setLevel(logging.WARNING)


def show_progress(report: StepReport | EpochReport, *, epochs: int) -> None:
    """Log a report of the training loop for ``ProgressHandler``: epochs as INFO, steps as DEBUG."""
    level = logging.INFO if isinstance(report, EpochReport) else logging.DEBUG
    logger.log(level, "%s", _line(report, epochs), extra={"report": report, "epochs": epochs})


def _line(report: StepReport | EpochReport, epochs: int) -> str:
    line = f"epoch {report.epoch:>{len(str(epochs))}}/{epochs}"
    if isinstance(report, StepReport):
        return f"{line}  batch {report.batch}/{report.n_batches}"
    line += f"  train {report.train_loss:.4f}"
    if report.val_loss is not None:
        line += f"  val {report.val_loss:.4f}{'*' if report.improved else ' '}"
    if report.holdout_mse is not None:
        line += f"  holdout {report.holdout_mse:.4f}"
    return f"{line}  lr {report.learning_rate:.2g}"
