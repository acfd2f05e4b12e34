"""Hold a candidate against what it has to be: each model in a process of its own, on realizations none has seen."""

from __future__ import annotations

import hashlib
from contextlib import ExitStack
from dataclasses import dataclass

import pandas as pd
import torch

from freqfilter.errors import UserError
from freqfilter.evaluation.bounds import Bounds
from freqfilter.evaluation.fresh import PARTS_OF_A_FILE, score_realizations
from freqfilter.evaluation.paired import LOOKS, PairedTest, Verdict, paired_test
from freqfilter.evaluation.references import LIMIT, references
from freqfilter.evaluation.rungs import BEATEN, Rung, beats, better, fast_and_small, finite, near_limit, no_leak
from freqfilter.evaluation.scores import OVERALL, Extractor
from freqfilter.params import Params
from freqfilter.params.task import other_task
from freqfilter.signals.randomness import stream
from freqfilter.signals.splits import Splits
from freqfilter.stopping import Stopping
from freqfilter.tracking.champions import Version
from freqfilter.tracking.loading import MODEL_DIGEST
from freqfilter.workflows.console import Console
from freqfilter.workflows.witness import GOLDEN_TOLERANCE
from freqfilter.workflows.witnesses import Witness, WitnessError

SEEDS_FROM, SEEDS_TO = 10_000_000, 2**32  # realizations that nothing else uses


@dataclass(frozen=True)
class Evidence:
    """What a decision rests on.

    Attributes:
        rungs: What the candidate had to pass.
        errors: Mean squared errors of ``candidate``, ``champion`` and ``limit``, as far as they are known: a row for
            each realization, a column for each component.
        test: The paired comparison with the champion; None where there is none.
        seeds: Words on where the realizations come from.
    """

    rungs: list[Rung]
    errors: dict[str, pd.DataFrame]
    test: PairedTest | None
    seeds: str


def examine(
    candidate: Version,
    champion: Version | None,
    bounds: Bounds,
    *,
    noise_seed: int | None,
    stopping: Stopping,
    console: Console,
) -> Evidence:
    """Every rung, as far as the candidate can be asked at all.

    Args:
        candidate: The version in question.
        champion: The one that it is held against; None: there is none.
        bounds: What the candidate has to be.
        noise_seed: First of the realizations; None: they follow from what both models are.
        stopping: Tells when to stop.
        console: Hears how it goes.

    Raises:
        UserError: If the champion cannot be asked, or somebody ends the process of one of them: no reason to refuse.
    """
    if champion and champion.number == candidate.number:
        return Evidence([Rung("better than the champion", False, "it is the champion")], {}, None, "")
    with ExitStack() as opened:
        ours = opened.enter_context(Witness(candidate.uri))
        theirs = opened.enter_context(Witness(champion.uri)) if champion else None
        try:
            about, params = ours.about, ours.params
        except WitnessError as error:
            return Evidence([Rung("loads", False, str(error))], {}, None, "")
        rungs = [Rung("loads", True, "in a process of its own, with unpickling forbidden"), _golden(about)]
        if theirs and (other := other_task(params, theirs.params)):
            words = f"trained for {other[0]}, as the champion was: give it a model_name of its own"
            rungs.append(Rung("comparable", False, words))
            theirs = None
        same = bool(theirs and theirs.about["weights_sha256"] == about["weights_sha256"])
        seeds, words = _seeds(params, candidate, champion, noise_seed)
        try:
            errors, test = _measure(ours, None if same else theirs, params, seeds, bounds, stopping, console)
        except WitnessError as error:
            if error.uri != candidate.uri:
                raise UserError(f"the champion cannot be asked, so nothing is decided: {error}") from error
            return Evidence([*rungs, Rung("answers", False, str(error))], {}, None, words)
    of_candidate = errors["candidate"]
    held_against = {side: table for side, table in errors.items() if side not in ("candidate", "champion")}
    rungs += [finite(of_candidate), *beats(of_candidate, held_against)]
    rungs += near_limit(of_candidate, held_against.get(LIMIT), bounds)
    rungs.append(no_leak(candidate.tags.get("diagnoses", "")))
    rungs += fast_and_small(about["milliseconds"], about["megabytes"], bounds)
    rungs.append(better(test, same_weights=same))
    shown = {side: errors[side] for side in ("candidate", "champion", LIMIT) if side in errors}
    return Evidence(rungs, shown, test, words)


def _golden(about: dict[str, float | None]) -> Rung:
    difference = about["golden_difference"]
    if difference is None:
        return Rung("golden predictions", None, "an old version, which has none")
    words = f"at most {difference:.1e} from those of its registration"
    return Rung("golden predictions", difference <= GOLDEN_TOLERANCE, words)


def _seeds(
    params: Params, candidate: Version, champion: Version | None, noise_seed: int | None
) -> tuple[list[int] | None, str]:
    """Noise seeds of realizations that neither has seen, and words on them; None for a user's data."""
    if params.data.data_file is not None:
        return None, f"the test windows of {params.data.data_file}, in {PARTS_OF_A_FILE} parts"
    if noise_seed is not None:
        return [noise_seed + n for n in range(LOOKS[-1])], f"noise seeds from {noise_seed} on, which somebody chose"
    both = [version.tags.get(MODEL_DIGEST, version.uri) for version in (candidate, champion) if version]
    key = int.from_bytes(hashlib.sha256(" ".join(both).encode()).digest()[:8], "big")
    drawn = stream(key, "promotion").choice(SEEDS_TO - SEEDS_FROM, size=LOOKS[-1], replace=False) + SEEDS_FROM
    return [int(seed) for seed in drawn], "noise seeds that follow from what both models are, never used in training"


def _measure(
    ours: Witness,
    theirs: Witness | None,
    params: Params,
    seeds: list[int] | None,
    bounds: Bounds,
    stopping: Stopping,
    console: Console,
) -> tuple[dict[str, pd.DataFrame], PairedTest | None]:
    """Errors on as many realizations as it takes, by side."""
    rows: dict[str, dict[int, dict[str, float]]] = {}
    held_against, test = _held_against(params), None
    for first, last in zip((0, *LOOKS), LOOKS, strict=False):
        stopping.check()
        part = seeds[first:last] if seeds is not None else None
        asked = {"candidate": ours} | ({"champion": theirs} if theirs else {})
        for witness in asked.values():
            witness.ask(part)
        scored = dict(score_realizations(held_against, params, part, device=torch.device("cpu")))
        found = {
            side: {n: {str(name): float(errors[name][side]) for name in errors} for n, errors in scored.items()}
            for side in held_against
        }
        found |= {side: witness.answers(len(scored)) for side, witness in asked.items()}
        for side, errors in found.items():
            rows.setdefault(side, {}).update(errors)
        if theirs:
            candidate, champion = (pd.DataFrame(rows[side]).T[OVERALL].to_numpy() for side in asked)
            looks = LOOKS if seeds is not None else (len(scored),)
            test = paired_test(candidate, champion, margin=bounds.margin, looks=looks)
        console.say(f"{len(rows['candidate'])} realizations{f': {test.words}' if test else ''}")
        if seeds is None or test is None or test.verdict != Verdict.OPEN:
            break
    return {side: pd.DataFrame(errors).T for side, errors in rows.items()}, test


def _held_against(params: Params) -> dict[str, Extractor]:
    """What the candidate has to beat, and the limit where it is known."""
    every = references(params, Splits.from_params(params))
    return {name: extractor for name, extractor in every.items() if name in (*BEATEN, LIMIT)}
