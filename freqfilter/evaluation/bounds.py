"""The acceptance criteria of a promotion, with their defaults.

A module of its own, since the command line reads the defaults and imports nothing that computes.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Bounds:
    """The acceptance criteria that a user can set.

    Attributes:
        most_over_limit: Largest ratio of the candidate's mean squared error to the limit, all components together.
        most_over_limit_per_frequency: The same for each component.
        margin: Share of the champion's mean squared error by which the candidate may be worse; 0: it has to be better.
        most_milliseconds: Largest latency for one window of the training length on one thread, milliseconds.
        most_megabytes: Largest size of the version's files, MB.
    """

    most_over_limit: float = 1.05
    most_over_limit_per_frequency: float = 1.10
    margin: float = 0.0
    most_milliseconds: float = 50.0
    most_megabytes: float = 20.0
