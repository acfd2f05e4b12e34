"""Copy a version, with all that is known of it, from one registry to another."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from freqfilter.errors import UserError, without_credentials
from freqfilter.params import TrackingParams
from freqfilter.tracking import champions
from freqfilter.tracking.elsewhere import Elsewhere
from freqfilter.tracking.loading import MODEL_DIGEST, checked_files
from freqfilter.tracking.store import open_store
from freqfilter.tracking.stored import download

# Tags that speak of the registry in which they were made.
OF_HERE = {
    "decision", "decision_run", "decided_against", "decided_in", "rollback_run", "copied_from", "verdict_elsewhere"
}  # fmt: skip


@dataclass(frozen=True)
class Copied:
    """Where a copy is."""

    model_name: str
    number: int
    tracking_uri: str


def copy_version(tracking: TrackingParams, *, number: int | None, to: str, to_name: str | None) -> Copied:
    """Copy a version to another tracking server or store, checked on arrival.

    A verdict is of the registry in which it was made: the copy is nobody's champion, and says where it was judged and
    against whom.

    Args:
        tracking: Where the registry is, and the name of the model.
        number: The version; None: the newest.
        to: Tracking URI of the other one.
        to_name: What the model is called there; None: the same.

    Raises:
        UserError: If there is no such version, its files are not those that were registered, or do not arrive as such.
    """
    here, name = open_store(), to_name or tracking.model_name
    version = champions.candidate(tracking.model_name, number)
    with tempfile.TemporaryDirectory() as folder:
        files = checked_files(version.uri, Path(folder) / "model")
        if decision_run := version.tags.get("decision_run"):
            download(decision_run, champions.DECISION, Path(folder))
        origin = f"{without_credentials(here)}: {version.model_name} version {version.number}"
        tags = {tag: value for tag, value in version.tags.items() if tag not in OF_HERE} | {"copied_from": origin}
        if decision := version.tags.get("decision"):
            against = version.tags.get("decided_against", "none")
            where = version.tags.get("decided_in", here)
            tags["verdict_elsewhere"] = f"{decision} in {where} against version {against}"
        there = Elsewhere(to)
        made = there.register(name, files, Path(folder) / champions.DECISION, tags, experiment=tracking.experiment)
        arrived = there.digest(name, made)
        if arrived != version.tags.get(MODEL_DIGEST, arrived):
            there.remove(name, made)
            raise UserError(
                f"{name} version {made} at {without_credentials(to)}: its files did not arrive as they were"
            )
    return Copied(name, made, without_credentials(to))
