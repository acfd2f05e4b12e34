"""Decide whether a version becomes the champion, with evidence, and carry it out."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import pandas as pd

from freqfilter.errors import UserError, without_credentials
from freqfilter.evaluation.figures.decision import decision as decision_figure
from freqfilter.evaluation.rungs import Bounds
from freqfilter.params import TrackingParams
from freqfilter.stopping import Stopping
from freqfilter.tracking import champions, provenance
from freqfilter.tracking.champions import (
    CHAMPION,
    DECISION,
    ChampionChangedError,
    Version,
    move_champion,
    named,
    tag_version,
)
from freqfilter.tracking.opening import open_run
from freqfilter.tracking.runs import Run
from freqfilter.tracking.store import open_store
from freqfilter.workflows.console import Console
from freqfilter.workflows.description import link
from freqfilter.workflows.examining import Evidence, examine
from freqfilter.workflows.report import decision_report

TRIES = 3  # where somebody else moves the champion meanwhile


class Outcome(StrEnum):
    """What was decided."""

    PROMOTED = "PROMOTED"
    HELD = "HELD"
    REFUSED = "REFUSED"


@dataclass(frozen=True)
class Decision:
    """A decision and where it is kept."""

    outcome: Outcome
    reason: str
    candidate: Version
    champion: Version | None
    evidence: Evidence
    run_id: str
    tracking_uri: str


def promote(
    tracking: TrackingParams,
    *,
    number: int | None,
    bounds: Bounds,
    noise_seed: int | None,
    force: str | None,
    stopping: Stopping,
    console: Console,
) -> Decision:
    """Hold a version against the champion and against what it has to be, decide, and move the alias if it has won.

    Args:
        tracking: Where the registry is, and the name of the model.
        number: The version; None: the newest.
        bounds: What it has to be.
        noise_seed: First of the realizations; None: they follow from what both models are, so that to ask again gives
            the same.
        force: A reason to promote it whatever it is; None: none.
        stopping: Tells when to stop.
        console: Hears how it goes.

    Raises:
        UserError: If there is no such version, or the champion changes all the time.
    """
    tracking_uri, name = open_store(), tracking.model_name
    candidate = champions.candidate(name, number)
    with open_run(tracking, name=f"promote {name} version {candidate.number}", stopping=stopping) as run:
        asked = {"model_name": name, "version": str(candidate.number)} | {k: f"{v:g}" for k, v in vars(bounds).items()}
        run.log_params(asked | ({"noise_seed": str(noise_seed)} if noise_seed is not None else {}))
        run.log_source(provenance.source())
        for _ in range(TRIES):
            stopping.check()
            champion = named(name, CHAMPION)
            evidence = examine(candidate, champion, bounds, noise_seed=noise_seed, stopping=stopping, console=console)
            outcome, reason = _decide(evidence, champion, force=force)
            decision = Decision(outcome, reason, candidate, champion, evidence, run.run_id, tracking_uri)
            with stopping.deferred():
                noted, words = _record(run, decision), f"{outcome}: {reason[:500]} ({link(run.run_id)})"
                if outcome != Outcome.PROMOTED:
                    if champion is None or champion.number != candidate.number:  # a champion keeps its own evidence
                        tag_version(candidate, noted, description=words)
                    return decision
                try:
                    move_champion(candidate, found=champion, evidence=noted, description=words)
                except ChampionChangedError as error:
                    console.say(str(error))
                    continue
            run.log_tags({"carried_out": "true"})
            return decision
    raise UserError(f"model_name={name}: the champion has changed {TRIES} times while it was decided; ask again")


def _decide(evidence: Evidence, champion: Version | None, *, force: str | None) -> tuple[Outcome, str]:
    """The outcome, and the reason in words."""
    failed = [rung for rung in evidence.rungs if rung.passed is False]
    broken = [rung for rung in failed if rung.name in ("loads", "golden predictions", "answers")]
    if force and not broken:
        overruled = f", against: {', '.join(rung.name for rung in failed)}" if failed else ""
        return Outcome.PROMOTED, f"forced: {force}{overruled}"
    comparison = next((rung for rung in evidence.rungs if rung.name.endswith("than the champion")), None)
    refusals = [rung for rung in failed if rung is not comparison]
    if refusals:
        return Outcome.REFUSED, "; ".join(f"{rung.name}: {rung.words}" for rung in refusals)
    if comparison and comparison.passed is False:
        return Outcome.HELD, f"it is not shown to be {comparison.name}: {comparison.words}"
    if champion is None or comparison is None:
        return Outcome.PROMOTED, "it is the first champion"
    return Outcome.PROMOTED, f"it is {comparison.name}: {comparison.words}"


def _record(run: Run, decision: Decision) -> dict[str, str]:
    """Keep the report, before anything follows from it; the tags for the version."""
    evidence, candidate, champion = decision.evidence, decision.candidate, decision.champion
    report = decision_report(decision)
    run.log_bytes(report.encode(), f"{DECISION}/report.md")
    if evidence.errors:
        run.log_figure(decision_figure(evidence.errors, evidence.test), f"{DECISION}/errors.png")
        table = pd.concat(evidence.errors, names=["side", "noise_seed"])
        run.log_bytes(table.to_csv().encode(), f"{DECISION}/errors.csv")
    run.describe(report)
    against = str(champion.number) if champion else "none"
    noted = {"decision": str(decision.outcome), "reason": decision.reason[:4000], "champion_before": against}
    run.log_tags({"workflow": "promote", "model_name": candidate.model_name, "version": str(candidate.number)} | noted)
    run.deliver()
    return {
        "decision": str(decision.outcome),
        "decision_run": run.run_id,
        "decided_against": against,
        "decided_in": without_credentials(decision.tracking_uri),
    }
