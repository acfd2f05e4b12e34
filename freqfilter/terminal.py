"""The console of a person at a terminal, or of a log file."""

from __future__ import annotations

import sys
import time
from typing import Never

from tqdm import tqdm

from freqfilter.filters.state import EpochReport
from freqfilter.filters.training import StepReport


class Terminal:
    """Lines on standard output, and a live bar below them where that is a terminal."""

    def __init__(self) -> None:
        self._bar: tqdm[Never] | None = None
        self._started: float | None = None
        self._epochs_seen = 0

    def say(self, line: str) -> None:
        """A line that stays."""
        self.close()
        tqdm.write(line, file=sys.stdout)
        sys.stdout.flush()

    def show(self, report: StepReport | EpochReport, *, epochs: int) -> None:
        """Move the bar, or put an epoch's line above it."""
        self._started = self._started or time.monotonic()
        if isinstance(report, EpochReport):
            self._epochs_seen += 1
            left_s = (time.monotonic() - self._started) / self._epochs_seen * (epochs - report.epoch)
            tqdm.write(_epoch_line(report, epochs=epochs, left_s=left_s), file=sys.stdout)
            sys.stdout.flush()
            if report.epoch == epochs:
                self.close()
        elif sys.stdout.isatty():
            total = epochs * report.n_batches
            done = (report.epoch - 1) * report.n_batches + report.batch
            if self._bar is None:
                self._bar = tqdm(total=total, initial=done, unit="step", file=sys.stdout, leave=False)
            self._bar.set_description(f"epoch {report.epoch}/{epochs}", refresh=False)
            self._bar.update(done - self._bar.n)

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def _epoch_line(report: EpochReport, *, epochs: int, left_s: float) -> str:
    parts = [f"epoch {report.epoch:>{len(str(epochs))}}/{epochs}", f"train {report.train_loss:.4f}"]
    if report.val_loss is not None:
        parts.append(f"val {report.val_loss:.4f}{'*' if report.improved else ' '}")
    if report.audit_mse is not None:
        parts.append(f"audit {report.audit_mse:.4f}")
    minutes, seconds = divmod(round(left_s), 60)
    parts += [f"lr {report.learning_rate:.2g}", f"{report.seconds:.1f} s", f"left {minutes}:{seconds:02d}"]
    return "  ".join(parts)
