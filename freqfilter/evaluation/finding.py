"""Something to know about a run."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """Something to know about a run, said once.

    Attributes:
        name: Of the tag ``diagnosis.<name>``.
        line: What is wrong and which parameter to change.
    """

    name: str
    line: str
