"""Promotion of a model's champion: checks, decision, report."""

from __future__ import annotations

import hashlib
import logging
from collections import defaultdict
from contextlib import ExitStack
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from tabulate import tabulate
from torch import Tensor

from freqfilter.config import Params, TrackingParams
from freqfilter.config.schema import Bounds, task_differences
from freqfilter.data.signal_model import random_stream
from freqfilter.errors import UserError
from freqfilter.evaluation import gate
from freqfilter.evaluation.gate import Check
from freqfilter.evaluation.heldout import (
    N_FILE_PARTS,
    REPEATED_SAMPLES,
    Repetition,
    baselines,
    repeat_estimates,
    score_realizations,
)
from freqfilter.evaluation.limits import LIMIT
from freqfilter.evaluation.metrics import OVERALL
from freqfilter.evaluation.significance import FALSE_PROMOTION_RATE, INTERIM_ANALYSES, PairedTest, Verdict, paired_test
from freqfilter.pipelines.model_card import escape_markdown, run_link
from freqfilter.pipelines.sandbox import GOLDEN_TOLERANCE, ModelServer, ModelWorker, ModelWorkerError
from freqfilter.pipelines.trials import Trial, identity_errors, next_trial, too_few_windows, trials
from freqfilter.plots.limit import decision as decision_figure
from freqfilter.process import shutdown
from freqfilter.tracking import aliases
from freqfilter.tracking.aliases import CHAMPION, DECISION, RegisteredVersion
from freqfilter.tracking.client import is_missing, open_store
from freqfilter.tracking.history import last_champion, version_tags
from freqfilter.tracking.lifecycle import Job, open_run
from freqfilter.tracking.loading import MODEL_DIGEST
from freqfilter.tracking.queries import training_run
from freqfilter.tracking.run import Run, diagnoses
from freqfilter.tracking.ui_views import RunRef

if TYPE_CHECKING:
    from matplotlib.figure import Figure

logger = logging.getLogger(__name__)

FIRST_SEED, END_OF_SEEDS = 10_000_000, 2**32  # noise seeds of the gate, not used elsewhere
IMPROVEMENT, NO_CHAMPION = "better than the champion", "no champion yet"  # a check and why it was not made
MAX_ATTEMPTS = 3  # if other processes move the champion during a decision
LABELS = {True: "passed", False: "**failed**", None: "not checked"}  # of a check in the report


@dataclass(frozen=True)
class GateReport:
    """Evidence of a decision.

    Attributes:
        checks: Results of the acceptance criteria.
        errors: Mean squared errors of ``candidate``, ``champion`` and ``limit``, if known: a row for each realization,
            a column for each component.
        test: Paired comparison with the champion; None if there is none.
        trial: The candidate among those that were compared with the champion; None if it was not compared.
        seeds: Description of the realizations.
    """

    checks: list[Check]
    errors: dict[str, pd.DataFrame] = field(default_factory=dict)
    test: PairedTest | None = None
    trial: Trial | None = None
    seeds: str = ""


def run_checks(
    candidate: RegisteredVersion,
    champion: RegisteredVersion | None,
    bounds: Bounds,
    *,
    noise_seed: int | None,
    server: ModelServer,
) -> GateReport:
    """Run all checks of a candidate, or those before the first failure of its process.

    Args:
        candidate: The version to check.
        champion: The version to compare it with; None if there is no champion.
        bounds: Bounds on the candidate.
        noise_seed: Noise seed of the first realization; None to derive it from both models.
        server: Server that starts the models' processes.

    Raises:
        UserError: If the champion loads and then fails, or one of the two processes is killed; the candidate is not
            rejected then.
    """
    if champion and champion.version == candidate.version:
        return GateReport([Check(IMPROVEMENT, False, "it is the champion already")])
    with ExitStack() as opened:
        champion_worker, uncompared = None, Check(IMPROVEMENT, None, NO_CHAMPION)
        if champion is None and (lost := last_champion(candidate.model_name)):
            uncompared = Check(IMPROVEMENT, None, f"version {lost}, the last champion, was deleted or lost its alias")
        if champion:  # loaded before the candidate's process starts, which could disturb it
            champion_worker, reason = _load_champion(opened, server, champion.uri)
            uncompared = Check(IMPROVEMENT, None, f"the champion could not be loaded: {reason}")
        worker = opened.enter_context(ModelWorker(server, candidate.uri))
        try:
            description, params = worker.description, worker.params
        except ModelWorkerError as error:
            return GateReport([Check("loads", False, str(error))])
        checks = [Check("loads", True, "in a separate process, without unpickling"), _check_golden(description)]
        if champion_worker and (differences := task_differences(params, champion_worker.params)):
            summary = f"its task differs from the champion's: {differences[0]}; use another model_name"
            checks.append(Check("comparable", False, summary))
            champion_worker, uncompared = None, Check(IMPROVEMENT, None, "not of the champion's task")
        if champion_worker and champion_worker.description["weights_sha256"] == description["weights_sha256"]:
            champion_worker, uncompared = None, Check(IMPROVEMENT, False, "identical weights")
        trial, seeds_summary = None, ""
        try:
            if champion and champion_worker:
                trial = next_trial(trials(champion), candidate, identity_errors(worker.estimate, params), noise_seed)
            seeds, seeds_summary = _noise_seeds(params, candidate, champion, noise_seed, trial)
            rate = trial.rate if trial else FALSE_PROMOTION_RATE
            errors, test, repetition = _measure(worker, champion_worker, params, seeds, bounds, rate)
        except ModelWorkerError as error:
            if error.uri != candidate.uri:
                raise UserError(
                    f"the champion failed, no decision was made: {error}; run it again, or make another version the "
                    "champion with `freqfilter rollback --version N`"
                ) from error
            return GateReport([*checks, Check("predicts", False, str(error))], seeds=seeds_summary)
    candidate_errors = errors["candidate"]
    references = {name: table for name, table in errors.items() if name not in ("candidate", "champion")}
    checks += [Check("predicts", True, "all estimates are finite"), gate.check_repetition(repetition)]
    checks += gate.check_baselines(candidate_errors, references)
    checks += gate.check_limit(candidate_errors, references.get(LIMIT), bounds)
    checks.append(gate.check_not_below_limit(candidate_errors, references.get(LIMIT)))
    checks.append(gate.check_leak(_training_diagnoses(candidate), bounds))
    extent = f"{REPEATED_SAMPLES} samples" if params.of_recordings else "a window"
    checks += gate.check_cost(repetition.milliseconds, extent, description["megabytes"], bounds)
    if trial and (few := too_few_windows(len(candidate_errors), params, trial.rate)):
        test, trial, uncompared = None, None, Check(IMPROVEMENT, False, few)  # it spends no part of the error rate
    checks.append(gate.check_improvement(test, trial.number) if test and trial else uncompared)
    shown = {name: errors[name] for name in ("candidate", "champion", LIMIT) if name in errors}
    return GateReport(checks, shown, test, trial, seeds_summary)


def _load_champion(opened: ExitStack, server: ModelServer, uri: str) -> tuple[ModelWorker | None, str]:
    """Load the champion in a process; None and the reason if its files are missing or its code fails.

    Raises:
        UserError: If its files cannot be read at present, or its process was killed from outside.
    """
    try:
        worker = opened.enter_context(ModelWorker(server, uri))
    except UserError as error:
        if not is_missing(error):
            raise UserError(f"the champion cannot be read, no decision was made: {error}; run it again") from error
        return None, str(error)
    try:
        worker.description, worker.params  # noqa: B018 (they load it)
    except ModelWorkerError as error:
        return None, str(error)
    return worker, ""


def _training_diagnoses(candidate: RegisteredVersion) -> str | None:
    """Problems of the training that a version records, or else its training run; None if it is unknown."""
    if "diagnoses" in candidate.tags:
        return candidate.tags["diagnoses"]
    run = training_run(candidate)
    return " ".join(diagnoses(run.tags)) if run else None


def _check_golden(description: dict[str, float | None]) -> Check:
    difference = description["golden_difference"]
    if difference is None:
        return Check("golden predictions", None, "not stored with versions of this schema")
    summary = f"largest difference since registration {difference:.1e}"
    return Check("golden predictions", difference <= GOLDEN_TOLERANCE, summary)


def _noise_seeds(
    params: Params,
    candidate: RegisteredVersion,
    champion: RegisteredVersion | None,
    noise_seed: int | None,
    trial: Trial | None,
) -> tuple[list[int] | None, str]:
    """Return noise seeds that neither model was trained on, None for a data file, and their description."""
    if params.data.data_file is not None:
        return None, f"the test windows of {params.data.data_file}, in at most {N_FILE_PARTS} parts"
    if noise_seed is not None:
        seeds = list(range(noise_seed, noise_seed + INTERIM_ANALYSES[-1]))
        return seeds, f"noise seeds from {noise_seed} on (user-specified)"
    digests = [version.tags.get(MODEL_DIGEST, version.uri) for version in (candidate, champion) if version]
    if trial:
        digests[0] = trial.noise.removeprefix("digest ")
    key = int.from_bytes(hashlib.sha256(" ".join(digests).encode()).digest()[:8], "big")
    drawn = random_stream(key, "promotion").choice(END_OF_SEEDS - FIRST_SEED, INTERIM_ANALYSES[-1], replace=False)
    return (FIRST_SEED + drawn).tolist(), "noise seeds derived from the digests of both models, not used in training"


def _measure(
    candidate: ModelWorker,
    champion: ModelWorker | None,
    params: Params,
    seeds: list[int] | None,
    bounds: Bounds,
    rate: float,
) -> tuple[dict[str, pd.DataFrame], PairedTest | None, Repetition]:
    """Measure errors until the paired test decides; return a table of each estimator, the test, and repetitions."""
    rows: defaultdict[str, dict[int, dict[Any, float]]] = defaultdict(dict)
    references, test = baselines(params), None
    estimators = {name: each for name, each in references.items() if name in (*gate.BASELINES_TO_BEAT, LIMIT)}
    workers = {"candidate": candidate} | ({"champion": champion} if champion else {})
    scored: list[tuple[Tensor, Tensor]] = []  # inputs and estimates of the candidate's first request

    def request(inputs: Tensor) -> Tensor:
        shutdown.check()
        for worker in workers.values():
            worker.request(inputs)
        return references["zero"](inputs)

    def read_candidate(inputs: Tensor) -> Tensor:
        estimates = candidate.read(inputs)
        if not scored:
            scored.append((inputs, estimates))
        return estimates

    # The processes compute while this one evaluates the baselines: in the order of this dict.
    estimators = {"zero": request} | {name: each for name, each in estimators.items() if name != "zero"}
    estimators |= {name: worker.read for name, worker in workers.items()} | {"candidate": read_candidate}
    for first, last in zip((0, *INTERIM_ANALYSES), INTERIM_ANALYSES, strict=False):
        shutdown.check()
        part = seeds[first:last] if seeds is not None else None
        tables = dict(score_realizations(estimators, params, part, device=torch.device("cpu")))
        for name in estimators:
            rows[name] |= {n: table.loc[name].to_dict() for n, table in tables.items()}
        if champion and len(rows["candidate"]) > 1:
            candidate_mse, champion_mse = (pd.DataFrame(rows[name]).T[OVERALL].to_numpy() for name in workers)
            looks = INTERIM_ANALYSES if seeds is not None else (len(tables),)
            test = paired_test(candidate_mse, champion_mse, margin=bounds.margin, rate=rate, looks=looks)
        logger.info(f"{len(rows['candidate'])} realizations{f': {test.summary}' if test else ''}")
        if seeds is None or test is None or test.verdict != Verdict.OPEN:
            break
    repetition = repeat_estimates(candidate.estimate, *scored[0])
    return {name: pd.DataFrame(errors).T for name, errors in rows.items()}, test, repetition


class Outcome(StrEnum):
    """Outcome of a promotion."""

    PROMOTED = "PROMOTED"
    NOT_BETTER = "NOT_BETTER"
    REJECTED = "REJECTED"


@dataclass(frozen=True)
class PromotionResult:
    """Result of a promotion.

    Attributes:
        run: The run of the promotion.
        outcome: The decision.
        reason: Reason of the decision, as text.
        candidate: The version that was checked.
        champion: The champion before; None if there was none.
        report: Evidence of the decision.
    """

    run: RunRef
    outcome: Outcome
    reason: str
    candidate: RegisteredVersion
    champion: RegisteredVersion | None
    report: GateReport

    @property
    def checks(self) -> pd.DataFrame:
        """A row for each check: whether it passed (None if it was not checked) and its figures as text."""
        return pd.DataFrame(self.report.checks).set_index("name")

    def figure(self) -> Figure:
        """Draw the errors of candidate, champion and limit, and the difference with its interval.

        Raises:
            UserError: If the candidate was not scored.
        """
        if not self.report.errors:
            raise UserError(f"version {self.candidate.version} was not scored: {self.reason}")
        return decision_figure(self.report.errors, self.report.test)


def promote(
    tracking: TrackingParams, *, version: int | None, bounds: Bounds, noise_seed: int | None, force: str | None
) -> PromotionResult:
    """Check a version and compare it with the champion; if it passes, move the alias.

    Args:
        tracking: Tracking parameters with the name of the model.
        version: Version number; None for the newest.
        bounds: Bounds on the version.
        noise_seed: Noise seed of the first realization; None to derive it from both models, hence reproducibly.
        force: Reason to promote the version in spite of failed checks; None to require them.

    Raises:
        UserError: If ``force`` is blank, there is no such version, or the champion keeps changing.
    """
    if force is not None and not force.strip():
        raise UserError("force: the reason is blank; give one")
    tracking_uri, name = open_store(), tracking.model_name
    candidate = aliases.candidate_version(name, version)
    options = {"model_name": name, "version": str(candidate.version)}
    options |= {k: str(v).lower() if isinstance(v, bool) else f"{v:g}" for k, v in vars(bounds).items()}
    options |= {"noise_seed": str(noise_seed)} if noise_seed is not None else {}
    job = Job("promote", f"promote {name} version {candidate.version}", options, repeatable=False)
    aliases.check_champion_lock()
    with ModelServer() as server, open_run(tracking, job) as run:
        for _ in range(MAX_ATTEMPTS):
            shutdown.check()
            champion = aliases.version_at_alias(name, CHAMPION)
            report = run_checks(candidate, champion, bounds, noise_seed=noise_seed, server=server)
            outcome, reason = _decide(report, force=force)
            decision = PromotionResult(RunRef.to(run, tracking_uri), outcome, reason, candidate, champion, report)
            with shutdown.deferred():
                tags, description = (
                    _record(run, decision),
                    f"{outcome}: {escape_markdown(reason[:500])} ({run_link(run.run_id)})",
                )
                if outcome != Outcome.PROMOTED:
                    if champion is None or champion.version != candidate.version:  # a champion keeps its own evidence
                        aliases.tag_version(candidate, tags, description=description)
                    return decision
                try:
                    aliases.move_champion(candidate, found=champion, evidence=tags, description=description)
                except aliases.ChampionChangedError as error:
                    logger.info(str(error))
                    continue
            run.log_tags({"carried_out": "true"})
            return decision
    raise UserError(f"model_name={name}: the champion changed {MAX_ATTEMPTS} times meanwhile; run promote again")


def _decide(report: GateReport, *, force: str | None) -> tuple[Outcome, str]:
    """Return the outcome and its reason."""
    failed = [check for check in report.checks if check.passed is False]
    broken = any(check.name in ("loads", "golden predictions", "predicts") for check in failed)
    if force and not broken:
        overruled = f"; failed checks: {', '.join(check.name for check in failed)}" if failed else ""
        return Outcome.PROMOTED, f"forced: {force}{overruled}"
    comparison = next((check for check in report.checks if check.name.endswith("than the champion")), None)
    if rejections := [check for check in failed if check is not comparison]:
        return Outcome.REJECTED, "; ".join(f"{check.name}: {check.summary}" for check in rejections)
    if comparison and comparison.passed is False:
        return Outcome.NOT_BETTER, f"not shown to be {comparison.name}: {comparison.summary}"
    if comparison is None or comparison.passed is None:
        absence = comparison.summary if comparison else NO_CHAMPION
        return Outcome.PROMOTED, "first champion" if absence == NO_CHAMPION else f"not compared: {absence}"
    return Outcome.PROMOTED, f"{comparison.name}: {comparison.summary}"


def _record(run: Run, decision: PromotionResult) -> dict[str, str]:
    """Log the report before the alias moves; return the tags for the version."""
    errors, candidate, champion = decision.report.errors, decision.candidate, decision.champion
    text = decision_report(decision)
    run.log_bytes(text.encode(), f"{DECISION}/report.md")
    if errors:
        run.log_figure(decision.figure, f"{DECISION}/errors.png")
        table = pd.concat(errors, names=["side", "noise_seed"])
        run.log_bytes(table.to_csv().encode(), f"{DECISION}/errors.csv")
    run.describe(text)
    outcome, against = str(decision.outcome), str(champion.version) if champion else "none"
    tags = {"decision": outcome, "reason": decision.reason[:4000], "champion_before": against}
    if decision.report.trial and champion:
        tags |= decision.report.trial.tags(champion)
    run.log_tags(version_tags(candidate) | tags)
    run.deliver()
    registry = decision.run.tracking_uri
    return {"decision": outcome, "decision_run": run.run_id, "decided_against": against, "decided_in": registry}


def decision_report(decision: PromotionResult) -> str:
    """Return a decision as Markdown: outcome, checks with their figures, and errors."""
    candidate, champion, report = decision.candidate, decision.champion, decision.report
    against = f"the champion, version {champion.version}" if champion else "no champion, since there is none"
    origin = f", candidate trained by run `{candidate.run_id}`" if candidate.run_id else ""
    checks = [[check.name, LABELS[check.passed], escape_markdown(check.summary)] for check in report.checks]
    reason = escape_markdown(f"{decision.reason[:1].upper()}{decision.reason[1:]}").rstrip(".")
    lines = [
        f"# {decision.outcome}: {candidate.model_name} version {candidate.version}",
        f"{reason}.",
        f"Compared with {against}. Evidence: run `{decision.run.run_id}`{origin}.",
        tabulate(checks, headers=["check", "", "figures"], tablefmt="github"),
    ]
    if report.trial:
        lines.append(report.trial.summary(candidate))
    if report.errors:
        means = pd.DataFrame({name: table.mean() for name, table in report.errors.items()}).T
        lines.append(means.rename_axis("MSE").to_markdown(tablefmt="github", floatfmt=".4f"))
        lines.append(f"Means over {len(report.errors['candidate'])} realizations: {report.seeds}.")
    return "\n\n".join(lines) + "\n"
