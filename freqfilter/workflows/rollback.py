"""Take the champion back to a version before it."""

from __future__ import annotations

from dataclasses import dataclass

from freqfilter.errors import UserError
from freqfilter.params import TrackingParams
from freqfilter.stopping import Stopping
from freqfilter.tracking import champions, provenance
from freqfilter.tracking.champions import CHAMPION, PREVIOUS, Version, move_champion, named
from freqfilter.tracking.opening import open_run
from freqfilter.tracking.store import open_store
from freqfilter.workflows.description import link
from freqfilter.workflows.run_ref import RunRef
from freqfilter.workflows.witness import GOLDEN_TOLERANCE
from freqfilter.workflows.witnesses import Witness


@dataclass(frozen=True)
class RollbackResult:
    """The result of a rollback.

    Attributes:
        run: The run that holds it.
        before: The champion before.
        after: The champion now.
    """

    run: RunRef
    before: Version
    after: Version


def rollback(tracking: TrackingParams, *, number: int | None, reason: str, stopping: Stopping) -> RollbackResult:
    """Make a version the champion again, once it has been loaded and has shown that it is what it was.

    Args:
        tracking: Where the registry is, and the name of the model.
        number: The version; None: the champion before the one of now.
        reason: Why, which is kept.
        stopping: Tells when to stop.

    Raises:
        UserError: If there is no champion or no such version, it cannot be loaded, or somebody else moves the champion.
    """
    tracking_uri, name = open_store(), tracking.model_name
    before = named(name, CHAMPION)
    if before is None:
        raise UserError(f"model_name={name}: it has no champion that could be taken back")
    after = champions.candidate(name, number) if number is not None else named(name, PREVIOUS)
    if after is None:
        raise UserError(f"model_name={name}: no champion came before version {before.number}; give one with version=N")
    if after.number == before.number:
        raise UserError(f"version={after.number}: it is the champion")
    with open_run(tracking, name=f"rollback {name} to version {after.number}", stopping=stopping) as run:
        run.log_params({"model_name": name, "version": str(after.number)})
        run.log_source(provenance.source())
        with Witness(after.uri) as witness:
            difference = witness.about["golden_difference"]
        if difference is not None and difference > GOLDEN_TOLERANCE:
            raise UserError(f"{after.uri} no longer gives what it gave when it was registered: off by {difference:.1e}")
        stopping.finish_anyway()
        words = f"Champion taken back from version {before.number} to version {after.number}: {reason}"
        noted = {"decision": "ROLLED BACK", "reason": reason, "champion_before": str(before.number)}
        run.log_tags({"workflow": "rollback", "model_name": name, "version": str(after.number)} | noted)
        run.describe(words)
        run.deliver()
        noted = {"rollback_run": run.run_id}
        move_champion(after, found=before, evidence=noted, description=f"{words} ({link(run.run_id)})")
        run.log_tags({"carried_out": "true"})
    return RollbackResult(RunRef.to(run, tracking_uri), before, after)
