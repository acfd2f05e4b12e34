"""Rollback of a model's champion to an earlier version."""

from __future__ import annotations

from dataclasses import dataclass

from freqfilter.config import TrackingParams
from freqfilter.errors import UserError
from freqfilter.pipelines.model_card import escape_markdown, run_link
from freqfilter.pipelines.sandbox import GOLDEN_TOLERANCE, ModelServer, ModelWorker
from freqfilter.process import shutdown
from freqfilter.tracking import aliases
from freqfilter.tracking.aliases import CHAMPION, PREVIOUS, RegisteredVersion
from freqfilter.tracking.client import open_store
from freqfilter.tracking.history import version_tags
from freqfilter.tracking.lifecycle import Job, open_run
from freqfilter.tracking.ui_views import RunRef


@dataclass(frozen=True)
class RollbackResult:
    """Result of a rollback.

    Attributes:
        run: The run of the rollback.
        before: The champion before; None if there was none.
        after: The champion now.
    """

    run: RunRef
    before: RegisteredVersion | None
    after: RegisteredVersion


def rollback(tracking: TrackingParams, *, version: int | None, reason: str) -> RollbackResult:
    """Load an earlier version, check its golden predictions and make it the champion.

    Args:
        tracking: Tracking parameters with the name of the model.
        version: Version number; None for the previous champion.
        reason: Reason of the rollback, stored with it.

    Raises:
        UserError: If there is no such version, its model fails, or another process moves the champion.
    """
    tracking_uri, name = open_store(), tracking.model_name
    before = aliases.version_at_alias(name, CHAMPION)
    after = aliases.version_at_alias(name, PREVIOUS) if version is None else aliases.candidate_version(name, version)
    if after is None:
        raise UserError(f"model_name={name}: no version has the alias {PREVIOUS}; choose one with --version N")
    if before and after.version == before.version:
        raise UserError(f"version={after.version}: it is the champion already; give another version")
    options, number = {"model_name": name, "version": str(after.version)}, str(before.version) if before else "none"
    job = Job("rollback", f"rollback {name} to version {after.version}", options, repeatable=False)
    aliases.check_champion_lock()
    with open_run(tracking, job) as run:
        with ModelServer() as server, ModelWorker(server, after.uri) as worker:
            difference = worker.description["golden_difference"]
        if difference is not None and difference > GOLDEN_TOLERANCE:
            raise UserError(f"{after.uri}: golden predictions changed by {difference:.1e}; choose another version")
        shutdown.ignore_signals()
        description = f"Champion rolled back from version {number} to version {after.version}: {reason}"
        tags = {"decision": "ROLLED BACK", "reason": reason, "champion_before": number}
        run.log_tags(version_tags(after) | tags)
        run.describe(description)
        run.deliver()
        description = f"{escape_markdown(description[:500])} ({run_link(run.run_id)})"
        aliases.move_champion(after, found=before, evidence={"rollback_run": run.run_id}, description=description)
        run.log_tags({"carried_out": "true"})
    return RollbackResult(RunRef.to(run, tracking_uri), before, after)
