"""Promotion and rollback of a model's champion: checks, decision, report."""

from __future__ import annotations

import hashlib
import logging
from contextlib import ExitStack
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

import pandas as pd
import torch
from tabulate import tabulate

from freqfilter.config import Params, TrackingParams
from freqfilter.config.schema import Bounds, task_differences
from freqfilter.data.signal_model import random_stream
from freqfilter.data.splits import Splits
from freqfilter.errors import UserError
from freqfilter.evaluation.baselines import baseline_estimators
from freqfilter.evaluation.gate import (
    BASELINES_TO_BEAT,
    Check,
    check_baselines,
    check_cost,
    check_finite,
    check_improvement,
    check_leak,
    check_limit,
)
from freqfilter.evaluation.heldout import N_FILE_PARTS, score_realizations
from freqfilter.evaluation.limits import LIMIT
from freqfilter.evaluation.metrics import OVERALL, Estimator
from freqfilter.evaluation.significance import INTERIM_ANALYSES, PairedTest, Verdict, paired_test
from freqfilter.pipelines.model_card import run_link
from freqfilter.pipelines.sandbox import GOLDEN_TOLERANCE, ModelServer, ModelWorker, ModelWorkerError
from freqfilter.plots.limit import decision as decision_figure
from freqfilter.process import shutdown
from freqfilter.tracking import aliases, provenance
from freqfilter.tracking.aliases import (
    CHAMPION,
    DECISION,
    PREVIOUS,
    ChampionChangedError,
    RegisteredVersion,
    move_champion,
    tag_version,
    version_at_alias,
)
from freqfilter.tracking.client import open_store
from freqfilter.tracking.lifecycle import open_run
from freqfilter.tracking.loading import MODEL_DIGEST
from freqfilter.tracking.run import Run
from freqfilter.tracking.ui_views import RunRef

if TYPE_CHECKING:
    from matplotlib.figure import Figure

logger = logging.getLogger(__name__)


FIRST_SEED, END_OF_SEEDS = 10_000_000, 2**32  # realizations that nothing else uses


@dataclass(frozen=True)
class GateReport:
    """What a decision rests on.

    Attributes:
        checks: What the candidate had to pass.
        errors: Mean squared errors of ``candidate``, ``champion`` and ``limit``, as far as they are known: a row for
            each realization, a column for each component.
        test: The paired comparison with the champion; None where there is none.
        seeds: Words on where the realizations come from.
    """

    checks: list[Check]
    errors: dict[str, pd.DataFrame]
    test: PairedTest | None
    seeds: str


def run_checks(
    candidate: RegisteredVersion,
    champion: RegisteredVersion | None,
    bounds: Bounds,
    *,
    noise_seed: int | None,
    server: ModelServer,
) -> GateReport:
    """Every rung, as far as the candidate can be asked at all.

    Args:
        candidate: The version in question.
        champion: The one that it is held against; None: there is none.
        bounds: What the candidate has to be.
        noise_seed: First of the realizations; None: they follow from what both models are.
        server: Starts the models' processes.

    Raises:
        UserError: If the champion cannot be asked, or somebody ends the process of one of them: no reason to refuse.
    """
    if champion and champion.version == candidate.version:
        return GateReport([Check("better than the champion", False, "it is the champion")], {}, None, "")
    with ExitStack() as opened:
        ours = opened.enter_context(ModelWorker(server, candidate.uri))
        theirs = opened.enter_context(ModelWorker(server, champion.uri)) if champion else None
        try:
            about, params = ours.description, ours.params
        except ModelWorkerError as error:
            return GateReport([Check("loads", False, str(error))], {}, None, "")
        rungs = [Check("loads", True, "in a process of its own, with unpickling forbidden"), _check_golden(about)]
        if theirs and (other := task_differences(params, theirs.params)):
            words = f"trained for {other[0]}, as the champion was: give it a model_name of its own"
            rungs.append(Check("comparable", False, words))
            theirs = None
        same = bool(theirs and theirs.description["weights_sha256"] == about["weights_sha256"])
        seeds, words = _noise_seeds(params, candidate, champion, noise_seed)
        try:
            errors, test = _measure(ours, None if same else theirs, params, seeds, bounds)
        except ModelWorkerError as error:
            if error.uri != candidate.uri:
                raise UserError(f"the champion cannot be asked, so nothing is decided: {error}") from error
            return GateReport([*rungs, Check("answers", False, str(error))], {}, None, words)
    of_candidate = errors["candidate"]
    held_against = {side: table for side, table in errors.items() if side not in ("candidate", "champion")}
    rungs += [check_finite(of_candidate), *check_baselines(of_candidate, held_against)]
    rungs += check_limit(of_candidate, held_against.get(LIMIT), bounds)
    rungs.append(check_leak(candidate.tags.get("diagnoses", "")))
    rungs += check_cost(about["milliseconds"], about["megabytes"], bounds)
    rungs.append(check_improvement(test, same_weights=same))
    shown = {side: errors[side] for side in ("candidate", "champion", LIMIT) if side in errors}
    return GateReport(rungs, shown, test, words)


def _check_golden(about: dict[str, float | None]) -> Check:
    difference = about["golden_difference"]
    if difference is None:
        return Check("golden predictions", None, "an old version, which has none")
    words = f"at most {difference:.1e} from those of its registration"
    return Check("golden predictions", difference <= GOLDEN_TOLERANCE, words)


def _noise_seeds(
    params: Params, candidate: RegisteredVersion, champion: RegisteredVersion | None, noise_seed: int | None
) -> tuple[list[int] | None, str]:
    """Noise seeds of realizations that neither has seen, and words on them; None for a user's data."""
    if params.data.data_file is not None:
        return None, f"the test windows of {params.data.data_file}, in {N_FILE_PARTS} parts"
    if noise_seed is not None:
        return [
            noise_seed + n for n in range(INTERIM_ANALYSES[-1])
        ], f"noise seeds from {noise_seed} on, which somebody chose"
    both = [version.tags.get(MODEL_DIGEST, version.uri) for version in (candidate, champion) if version]
    key = int.from_bytes(hashlib.sha256(" ".join(both).encode()).digest()[:8], "big")
    drawn = (
        random_stream(key, "promotion").choice(END_OF_SEEDS - FIRST_SEED, size=INTERIM_ANALYSES[-1], replace=False)
        + FIRST_SEED
    )
    return [int(seed) for seed in drawn], "noise seeds that follow from what both models are, never used in training"


def _measure(
    ours: ModelWorker, theirs: ModelWorker | None, params: Params, seeds: list[int] | None, bounds: Bounds
) -> tuple[dict[str, pd.DataFrame], PairedTest | None]:
    """Errors on as many realizations as it takes, by side."""
    rows: dict[str, dict[int, dict[str, float]]] = {}
    held_against, test = _reference_estimators(params), None
    for first, last in zip((0, *INTERIM_ANALYSES), INTERIM_ANALYSES, strict=False):
        shutdown.check()
        part = seeds[first:last] if seeds is not None else None
        asked = {"candidate": ours} | ({"champion": theirs} if theirs else {})
        for witness in asked.values():
            witness.request_scores(part)
        scored = dict(score_realizations(held_against, params, part, device=torch.device("cpu")))
        found = {
            side: {n: {str(name): float(errors[name][side]) for name in errors} for n, errors in scored.items()}
            for side in held_against
        }
        found |= {side: witness.read_scores(len(scored)) for side, witness in asked.items()}
        for side, errors in found.items():
            rows.setdefault(side, {}).update(errors)
        if theirs:
            candidate, champion = (pd.DataFrame(rows[side]).T[OVERALL].to_numpy() for side in asked)
            looks = INTERIM_ANALYSES if seeds is not None else (len(scored),)
            test = paired_test(candidate, champion, margin=bounds.margin, looks=looks)
        logger.info(f"{len(rows['candidate'])} realizations{f': {test.summary}' if test else ''}")
        if seeds is None or test is None or test.verdict != Verdict.OPEN:
            break
    return {side: pd.DataFrame(errors).T for side, errors in rows.items()}, test


def _reference_estimators(params: Params) -> dict[str, Estimator]:
    """What the candidate has to beat, and the limit where it is known."""
    every = baseline_estimators(params, Splits.from_params(params))
    return {name: extractor for name, extractor in every.items() if name in (*BASELINES_TO_BEAT, LIMIT)}


MAX_ATTEMPTS = 3  # where somebody else moves the champion meanwhile
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
        report: What the decision rests on.
    """

    run: RunRef
    outcome: Outcome
    reason: str
    candidate: RegisteredVersion
    champion: RegisteredVersion | None
    report: GateReport

    @property
    def checks(self) -> pd.DataFrame:
        """A row for each check: whether it passed (None: it does not apply) and its figures in words."""
        return pd.DataFrame(self.report.checks).set_index("name")

    def figure(self) -> Figure:
        """Candidate and champion beside the limit, and their difference with its interval.

        Raises:
            UserError: If the candidate was not measured.
        """
        if not self.report.errors:
            raise UserError(f"version {self.candidate.version} was not measured: {self.reason}")
        return decision_figure(self.report.errors, self.report.test)


def promote(
    tracking: TrackingParams, *, version: int | None, bounds: Bounds, noise_seed: int | None, force: str | None
) -> PromotionResult:
    """Hold a version against the champion and against what it has to be, decide, and move the alias if it has won.

    Args:
        tracking: Where the registry is, and the name of the model.
        version: The version; None: the newest.
        bounds: What it has to be.
        noise_seed: First of the realizations; None: they follow from what both models are, so that to ask again gives
            the same.
        force: A reason to promote it whatever it is; None: none.

    Raises:
        UserError: If ``force`` is blank, there is no such version, or the champion keeps changing.
    """
    if force is not None and not force.strip():
        raise UserError("force: a reason is needed")
    tracking_uri, name = open_store(), tracking.model_name
    candidate = aliases.candidate_version(name, version)
    with ModelServer() as server, open_run(tracking, name=f"promote {name} version {candidate.version}") as run:
        asked = {"model_name": name, "version": str(candidate.version)} | {k: f"{v:g}" for k, v in vars(bounds).items()}
        run.log_params(asked | ({"noise_seed": str(noise_seed)} if noise_seed is not None else {}))
        run.log_source(provenance.source())
        for _ in range(MAX_ATTEMPTS):
            shutdown.check()
            champion = version_at_alias(name, CHAMPION)
            evidence = run_checks(candidate, champion, bounds, noise_seed=noise_seed, server=server)
            outcome, reason = _decide(evidence, champion, force=force)
            decision = PromotionResult(RunRef.to(run, tracking_uri), outcome, reason, candidate, champion, evidence)
            with shutdown.deferred():
                noted, words = _record(run, decision), f"{outcome}: {reason[:500]} ({run_link(run.run_id)})"
                if outcome != Outcome.PROMOTED:
                    if champion is None or champion.version != candidate.version:  # a champion keeps its own evidence
                        tag_version(candidate, noted, description=words)
                    return decision
                try:
                    move_champion(candidate, found=champion, evidence=noted, description=words)
                except ChampionChangedError as error:
                    logger.info(str(error))
                    continue
            run.log_tags({"carried_out": "true"})
            return decision
    raise UserError(f"model_name={name}: the champion has changed {MAX_ATTEMPTS} times while it was decided; ask again")


def _decide(evidence: GateReport, champion: RegisteredVersion | None, *, force: str | None) -> tuple[Outcome, str]:
    """The outcome, and the reason in words."""
    failed = [rung for rung in evidence.checks if rung.passed is False]
    broken = [rung for rung in failed if rung.name in ("loads", "golden predictions", "answers")]
    if force and not broken:
        overruled = f", against: {', '.join(rung.name for rung in failed)}" if failed else ""
        return Outcome.PROMOTED, f"forced: {force}{overruled}"
    comparison = next((rung for rung in evidence.checks if rung.name.endswith("than the champion")), None)
    refusals = [rung for rung in failed if rung is not comparison]
    if refusals:
        return Outcome.REFUSED, "; ".join(f"{rung.name}: {rung.summary}" for rung in refusals)
    if comparison and comparison.passed is False:
        return Outcome.HELD, f"it is not shown to be {comparison.name}: {comparison.summary}"
    if champion is None or comparison is None:
        return Outcome.PROMOTED, "it is the first champion"
    return Outcome.PROMOTED, f"it is {comparison.name}: {comparison.summary}"


def _record(run: Run, decision: PromotionResult) -> dict[str, str]:
    """Keep the report, before anything follows from it; the tags for the version."""
    evidence, candidate, champion = decision.report, decision.candidate, decision.champion
    report = decision_report(decision)
    run.log_bytes(report.encode(), f"{DECISION}/report.md")
    if evidence.errors:
        run.log_figure(decision.figure(), f"{DECISION}/errors.png")
        table = pd.concat(evidence.errors, names=["side", "noise_seed"])
        run.log_bytes(table.to_csv().encode(), f"{DECISION}/errors.csv")
    run.describe(report)
    against = str(champion.version) if champion else "none"
    noted = {"decision": str(decision.outcome), "reason": decision.reason[:4000], "champion_before": against}
    run.log_tags({"workflow": "promote", "model_name": candidate.model_name, "version": str(candidate.version)} | noted)
    run.deliver()
    return {
        "decision": str(decision.outcome),
        "decision_run": run.run_id,
        "decided_against": against,
        "decided_in": decision.run.tracking_uri,
    }


def decision_report(decision: PromotionResult) -> str:
    """A decision as Markdown: what was decided, each rung with its figures, errors side by side."""
    candidate, champion, evidence = decision.candidate, decision.champion, decision.report
    title = f"# {decision.outcome}: {candidate.model_name} version {candidate.version}"
    against = f"the champion, version {champion.version}" if champion else "nothing: there is no champion yet"
    lines = [
        title,
        f"{decision.reason[:1].upper()}{decision.reason[1:]}.",
        f"Held against {against}. Evidence: run `{decision.run.run_id}`"
        f"{f', the candidate was trained by run `{candidate.run_id}`' if candidate.run_id else ''}.",
        tabulate(
            [[rung.name, MARKS[rung.passed], rung.summary] for rung in evidence.checks],
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


@dataclass(frozen=True)
class RollbackResult:
    """The result of a rollback.

    Attributes:
        run: The run that holds it.
        before: The champion before.
        after: The champion now.
    """

    run: RunRef
    before: RegisteredVersion
    after: RegisteredVersion


def rollback(tracking: TrackingParams, *, version: int | None, reason: str) -> RollbackResult:
    """Make a version the champion again, once it has been loaded and has shown that it is what it was.

    Args:
        tracking: Where the registry is, and the name of the model.
        version: The version; None: the champion before the one of now.
        reason: Why, which is kept.

    Raises:
        UserError: If there is no champion or no such version, it cannot be loaded, or somebody else moves the champion.
    """
    tracking_uri, name = open_store(), tracking.model_name
    before = version_at_alias(name, CHAMPION)
    if before is None:
        raise UserError(f"model_name={name}: it has no champion that could be taken back")
    after = aliases.candidate_version(name, version) if version is not None else version_at_alias(name, PREVIOUS)
    if after is None:
        raise UserError(f"model_name={name}: no champion came before version {before.version}; give one with version=N")
    if after.version == before.version:
        raise UserError(f"version={after.version}: it is the champion")
    with open_run(tracking, name=f"rollback {name} to version {after.version}") as run:
        run.log_params({"model_name": name, "version": str(after.version)})
        run.log_source(provenance.source())
        with ModelServer() as server, ModelWorker(server, after.uri) as witness:
            difference = witness.description["golden_difference"]
        if difference is not None and difference > GOLDEN_TOLERANCE:
            raise UserError(f"{after.uri} no longer gives what it gave when it was registered: off by {difference:.1e}")
        shutdown.ignore_signals()
        words = f"Champion taken back from version {before.version} to version {after.version}: {reason}"
        noted = {"decision": "ROLLED BACK", "reason": reason, "champion_before": str(before.version)}
        run.log_tags({"workflow": "rollback", "model_name": name, "version": str(after.version)} | noted)
        run.describe(words)
        run.deliver()
        noted = {"rollback_run": run.run_id}
        move_champion(after, found=before, evidence=noted, description=f"{words} ({run_link(run.run_id)})")
        run.log_tags({"carried_out": "true"})
    return RollbackResult(RunRef.to(run, tracking_uri), before, after)
