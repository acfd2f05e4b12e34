"""Acceptance criteria of the promotion gate."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pandas as pd
from scipy import stats

from freqfilter.config.schema import Bounds
from freqfilter.evaluation.baselines import LINEAR_MMSE
from freqfilter.evaluation.heldout import Repetition
from freqfilter.evaluation.metrics import OVERALL, limit_ratio, ratio_interval
from freqfilter.evaluation.significance import PairedTest, Verdict
from freqfilter.tracked_names import AFTER

FALSE_REFUSAL_RATE = 0.001  # of candidates whose expected error is the limit
BELOW_LIMIT_MARGIN = 0.0005  # share of the limit; smaller differences are those of rounding
REPETITION_TOLERANCE = 1e-5  # the order of summation depends on the size of a batch
BASELINES_TO_BEAT = ("zero", "mean", LINEAR_MMSE)
ROUNDING = 1e-4  # of a mean squared error


@dataclass(frozen=True)
class Check:
    """Result of one acceptance criterion.

    Attributes:
        name: Name of the criterion.
        passed: Whether the candidate passed; None if it was not checked.
        summary: The figures, or why it was not checked.
    """

    name: str
    passed: bool | None
    summary: str


def check_baselines(errors: pd.DataFrame, references: dict[str, pd.DataFrame]) -> list[Check]:
    """Check that the candidate beats the trivial baselines and the best linear filter on the same realizations.

    Args:
        errors: Mean squared error of the candidate: a row for each realization, a column for all components together
            and one for each.
        references: Mean squared errors of the baselines, by name.
    """
    checks = []
    for name in BASELINES_TO_BEAT:
        if name not in references:
            checks.append(Check(f"beats {name}", None, "not available for data of this kind"))
            continue
        mse, baseline_mse = errors[OVERALL].mean(), references[name][OVERALL].mean()
        summary = f"MSE {mse:.4f} against {baseline_mse:.4f}"
        if name == LINEAR_MMSE:  # a version may be that filter itself
            baseline_mse *= 1 + ROUNDING
        checks.append(Check(f"beats {name}", bool(mse < baseline_mse), summary))
    return checks


def check_limit(errors: pd.DataFrame, limit: pd.DataFrame | None, bounds: Bounds) -> list[Check]:
    """Check that the ratio of MSE to limit, None if unknown, is within its bounds, overall and for each component.

    Of recordings also after ``MAIN_CONTEXT`` samples, since most of the whole error is that of the first ones. The
    check does not apply to a limit of zero.
    """
    if limit is None:
        return [Check("near the limit", None, "the limit of this data is unknown")]
    checks = []
    for component in errors.columns:
        of_all = component in (OVERALL, AFTER)
        max_ratio = bounds.max_mse_ratio if of_all else bounds.max_mse_ratio_per_frequency
        name = "near the limit" if component == OVERALL else f"near the limit, {component.replace('_', ' ')}"
        ratio = limit_ratio(float(errors[component].mean()), float(limit[component].mean()))
        if ratio is None:
            checks.append(Check(name, None, "the limit is zero, there is no ratio to it"))
            continue
        low, high = ratio_interval(errors[component].to_numpy(), limit[component].to_numpy()) or (-math.inf, math.inf)
        summary = f"{ratio:.4f} ({low:.4f} to {high:.4f}) × the limit, at most {max_ratio:g}"
        checks.append(Check(name, bool(high <= max_ratio), summary))
    return checks


def check_not_below_limit(errors: pd.DataFrame, limit: pd.DataFrame | None) -> Check:
    """Check that no error is below the limit by more than chance, which needs knowledge of the targets.

    An error is below if the upper end of the one-sided interval of its mean paired difference (Student's t) is below
    ``-BELOW_LIMIT_MARGIN`` of the limit. Each component and their mean have an equal share of
    ``FALSE_REFUSAL_RATE`` (Bonferroni).

    Args:
        errors: Mean squared error of the candidate: a row for each realization, a column for all components together
            and one for each.
        limit: That of the limit; None if it is unknown.
    """
    name = "not below the limit"
    if limit is None:
        return Check(name, None, "the limit of this data is unknown")
    below, n = [], len(errors)
    quantile = float(stats.t.isf(FALSE_REFUSAL_RATE / len(errors.columns), n - 1)) if n > 1 else math.inf
    for component in errors.columns:
        if not (limit_mse := float(limit[component].mean())):
            continue
        difference = (errors[component] - limit[component]) / limit_mse
        ratio, error = 1 + float(difference.mean()), float(stats.sem(difference)) if n > 1 else math.nan
        if ratio + quantile * error < 1 - BELOW_LIMIT_MARGIN:
            which = "" if component == OVERALL else f", {component}"
            below.append(f"{ratio:.4f} ± {quantile * error:.4f} × the limit{which}")
    if below:
        return Check(name, False, f"impossible: {'; '.join(below)}, below it by more than chance; targets have leaked")
    return Check(name, True, "no error is below the limit by more than chance")


def check_repetition(repetition: Repetition) -> Check:
    """Check that estimates of the same windows do not depend on size, order and number of requests."""
    difference = repetition.difference
    summary = f"largest difference of repeated estimates {difference:.1e}, at most {REPETITION_TOLERANCE:.0e}"
    return Check("same answers", difference <= REPETITION_TOLERANCE, summary)


def check_improvement(test: PairedTest, candidate_number: int) -> Check:
    """Check that the candidate is better than the champion or, with a margin, worse by less than the margin.

    Args:
        test: Paired comparison with the champion.
        candidate_number: Number of the candidate among those that were compared with the champion, from 1.
    """
    criterion = f"less than {100 * test.margin:g} % worse" if test.margin else "better"
    summary = f"{test.summary}, candidate {candidate_number} against this champion"
    return Check(f"{criterion} than the champion", test.verdict == Verdict.BETTER, summary)


def check_cost(milliseconds: float, extent: str, megabytes: float, bounds: Bounds) -> list[Check]:
    """Check that the latency of a request of this extent, and the size, are within their bounds."""
    latency = f"{milliseconds:.1f} ms for {extent}, at most {bounds.max_latency_ms:g}"
    size = f"{megabytes:.1f} MB, at most {bounds.max_size_mb:g}"
    return [
        Check("fast", milliseconds <= bounds.max_latency_ms, latency),
        Check("small", megabytes <= bounds.max_size_mb, size),
    ]


def check_leak(diagnoses: str | None, bounds: Bounds) -> Check:
    """Check that the training run reported no leak.

    Args:
        diagnoses: Problems of the training run, separated by spaces; None if the training is unknown.
        bounds: Bounds, which state whether an unknown training is accepted.
    """
    if diagnoses is None:
        summary = "not known: the version was registered without the record of its training"
        if not bounds.allow_unknown_training:
            return Check("no leak", False, f"{summary}; accept it with allow_unknown_training=true")
        return Check("no leak", None, f"{summary}; accepted by allow_unknown_training")
    reported = {"leak": "raised a leak alarm", "overlap": "had the same data in two of its splits"}
    found = " and ".join(text for name, text in reported.items() if name in diagnoses.split())
    return Check("no leak", not found, f"its training run {found}" if found else "no leak alarm in its training run")
