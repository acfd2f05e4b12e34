"""A reference to a run: where it is in the tracking store, and its page in MLflow's UI."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from freqfilter.tracking.views import run_address, view_address

if TYPE_CHECKING:
    from freqfilter.tracking.runs import Run


@dataclass(frozen=True)
class RunRef:
    """A run in a tracking store.

    Attributes:
        run_id: Its id.
        experiment: Name of its experiment.
        experiment_id: Id of its experiment; empty where the run is offline.
        tracking_uri: The store, without a password; empty where the run is offline.
    """

    run_id: str
    experiment: str
    experiment_id: str
    tracking_uri: str

    @classmethod
    def to(cls, run: Run, tracking_uri: str) -> Self:
        """The reference to an open run."""
        return cls(run.run_id, run.experiment, run.experiment_id, tracking_uri)

    def page(self, server: str) -> str:
        """Address of the run's page.

        Args:
            server: Address of MLflow's UI, such as ``http://127.0.0.1:5000``.
        """
        return f"{server.rstrip('/')}/{run_address(self.experiment_id, self.run_id)}"

    def view(self, server: str, key: str) -> str:
        """Address of a saved view of the run's experiment; see ``tracking.views``."""
        return f"{server.rstrip('/')}/{view_address(self.experiment_id, key)}"


def way_on(run_id: str) -> str:
    """The command that resumes a run."""
    return f"python -m freqfilter resume {run_id}"
