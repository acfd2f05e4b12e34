"""Where a workflow's run is kept."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Kept:
    """A run, its experiment and its store."""

    run_id: str
    experiment: str
    tracking_uri: str
