"""Decide whether a version becomes the champion, with evidence, and carry it out."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

import pandas as pd
from tabulate import tabulate

from freqfilter.errors import UserError
from freqfilter.evaluation.bounds import Bounds
from freqfilter.evaluation.figures.decision import decision as decision_figure
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
from freqfilter.workflows.run_ref import RunRef

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TRIES = 3  # where somebody else moves the champion meanwhile
MARKS = {True: "passed", False: "**failed**", None: "does not apply"}  # of a check in the report


class Outcome(StrEnum):
    """What was decided."""

    PROMOTED = "PROMOTED"
    HELD = "HELD"
    REFUSED = "REFUSED"


@dataclass(frozen=True)
class PromotionResult:
    """The result of a promotion.

    Attributes:
        run: The run that holds it.
        outcome: The decision.
        reason: The reason in words.
        candidate: The version that was examined.
        champion: The champion before; None: there was none.
        evidence: What the decision rests on.
    """

    run: RunRef
    outcome: Outcome
    reason: str
    candidate: Version
    champion: Version | None
    evidence: Evidence

    @property
    def checks(self) -> pd.DataFrame:
        """A row for each check: whether it passed (None: it does not apply) and its figures in words."""
        return pd.DataFrame(self.evidence.rungs).set_index("name")

    def figure(self) -> Figure:
        """Candidate and champion beside the limit, and their difference with its interval.

        Raises:
            UserError: If the candidate was not measured.
        """
        if not self.evidence.errors:
            raise UserError(f"version {self.candidate.number} was not measured: {self.reason}")
        return decision_figure(self.evidence.errors, self.evidence.test)


def promote(
    tracking: TrackingParams,
    *,
    number: int | None,
    bounds: Bounds,
    noise_seed: int | None,
    force: str | None,
    stopping: Stopping,
    console: Console,
) -> PromotionResult:
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
        UserError: If ``force`` is blank, there is no such version, or the champion keeps changing.
    """
    if force is not None and not force.strip():
        raise UserError("force: a reason is needed")
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
            decision = PromotionResult(RunRef.to(run, tracking_uri), outcome, reason, candidate, champion, evidence)
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


def _record(run: Run, decision: PromotionResult) -> dict[str, str]:
    """Keep the report, before anything follows from it; the tags for the version."""
    evidence, candidate, champion = decision.evidence, decision.candidate, decision.champion
    report = decision_report(decision)
    run.log_bytes(report.encode(), f"{DECISION}/report.md")
    if evidence.errors:
        run.log_figure(decision.figure(), f"{DECISION}/errors.png")
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
        "decided_in": decision.run.tracking_uri,
    }


def decision_report(decision: PromotionResult) -> str:
    """A decision as Markdown: what was decided, each rung with its figures, errors side by side."""
    candidate, champion, evidence = decision.candidate, decision.champion, decision.evidence
    title = f"# {decision.outcome}: {candidate.model_name} version {candidate.number}"
    against = f"the champion, version {champion.number}" if champion else "nothing: there is no champion yet"
    lines = [
        title,
        f"{decision.reason[:1].upper()}{decision.reason[1:]}.",
        f"Held against {against}. Evidence: run `{decision.run.run_id}`"
        f"{f', the candidate was trained by run `{candidate.run_id}`' if candidate.run_id else ''}.",
        tabulate(
            [[rung.name, MARKS[rung.passed], rung.words] for rung in evidence.rungs],
            headers=["rung", "", "figures"],
            tablefmt="github",
        ),
    ]
    if evidence.errors:
        means = pd.DataFrame({side: table.mean() for side, table in evidence.errors.items()}).T
        lines.append(
            tabulate(
                [[side, *row] for side, row in zip(means.index, means.to_numpy().tolist(), strict=True)],
                headers=["MSE", *means.columns],
                floatfmt=".4f",
                tablefmt="github",
            )
        )
        lines.append(f"Means over {len(evidence.errors['candidate'])} realizations: {evidence.seeds}.")
    return "\n\n".join(lines) + "\n"
