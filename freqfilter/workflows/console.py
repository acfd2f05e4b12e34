"""What a workflow tells the person who waits for it."""

from __future__ import annotations

from typing import Protocol

from freqfilter.filters.reports import EpochReport, StepReport


class Console(Protocol):
    """Where a workflow's words go; the command line prints them."""

    def say(self, line: str) -> None:
        """A line that stays."""
        ...

    def show(self, report: StepReport | EpochReport, *, epochs: int) -> None:
        """How far training has come."""
        ...
