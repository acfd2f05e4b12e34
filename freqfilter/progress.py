"""Progress of a job on a terminal or in a log file."""

from __future__ import annotations

import math
import os
import sys
import threading
import time
from pathlib import Path
from typing import Never, Protocol

from tqdm import tqdm

from freqfilter.training.reports import EpochReport, StepReport

SILENCE_S = 60  # after which a log file gets a line within an epoch, too


class Terminal:
    """Lines on standard output, and a live bar below them where that is a terminal; any thread may call it."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._bar: tqdm[Never] | None = None
        self._written = time.monotonic()  # when the last line was
        self._forget()

    def _forget(self) -> None:
        """Begin a new training."""
        self._started: float | None = None
        self._epochs_seen = 0
        self._figures = ""  # of the last epoch
        self._position = (0, 0.0)  # epoch and batch of the last report

    def say(self, line: str) -> None:
        """A line that stays."""
        with self._lock:
            self.close()
            self._write(line)

    def show(self, report: StepReport | EpochReport, *, epochs: int) -> None:
        """Move the bar, or put an epoch's line above it."""
        with self._lock:
            self._show(report, epochs)

    def _show(self, report: StepReport | EpochReport, epochs: int) -> None:
        position = (report.epoch, report.batch if isinstance(report, StepReport) else math.inf)
        if position <= self._position:
            self._forget()
        self._position = position
        self._started = self._started or time.monotonic()
        if isinstance(report, EpochReport):
            self._show_epoch(report, epochs)
        elif sys.stdout.isatty():
            self._show_step(report, epochs)
        elif time.monotonic() - self._written >= SILENCE_S:
            self._write(f"{_epoch(report, epochs)}  batch {report.batch}/{report.n_batches}")

    def _show_epoch(self, report: EpochReport, epochs: int) -> None:
        now = time.monotonic()
        if not self._epochs_seen:
            # Of an epoch that was resumed only the rest has been seen here.
            self._started = min(self._started or now, now - report.seconds)
        self._epochs_seen += 1
        left_s = (now - (self._started or 0)) / self._epochs_seen * (epochs - report.epoch)
        minutes, seconds = divmod(round(left_s), 60)
        self._figures = "  ".join(_figures(report))
        self._write(f"{_epoch(report, epochs)}  {self._figures}  {report.seconds:.1f} s  left {minutes}:{seconds:02d}")
        if report.epoch == epochs:
            self.close()

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
        try:
            tqdm.write(line, file=sys.stdout)
            sys.stdout.flush()
        except BrokenPipeError:  # the reader has closed the pipe: continue without output
            sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115 (open until the process ends)

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


class Quiet:
    """A console that prints nothing."""

    def say(self, line: str) -> None:
        """Say nothing."""

    def show(self, report: StepReport | EpochReport, *, epochs: int) -> None:
        """Show nothing."""


def _epoch(report: StepReport | EpochReport, epochs: int) -> str:
    return f"epoch {report.epoch:>{len(str(epochs))}}/{epochs}"


def _figures(report: EpochReport) -> list[str]:
    figures = [f"train {report.train_loss:.4f}"]
    if report.val_loss is not None:
        figures.append(f"val {report.val_loss:.4f}{'*' if report.improved else ' '}")
    if report.audit_mse is not None:
        figures.append(f"audit {report.audit_mse:.4f}")
    return [*figures, f"lr {report.learning_rate:.2g}"]


class Console(Protocol):
    """Where a workflow's words go; the command line prints them."""

    def say(self, line: str) -> None:
        """A line that stays."""
        ...

    def show(self, report: StepReport | EpochReport, *, epochs: int) -> None:
        """How far training has come."""
        ...
