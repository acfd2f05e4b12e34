"""Acceptance criteria of the promotion gate."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd

from freqfilter.config.schema import Bounds
from freqfilter.evaluation.metrics import OVERALL, limit_ratio, ratio_interval
from freqfilter.evaluation.significance import PairedTest, Verdict

BASELINES_TO_BEAT = ("zero", "mean", "linear_mmse")  # trivial baselines, and the best linear filter


@dataclass(frozen=True)
class Check:
    """Result of one acceptance criterion.

    Attributes:
        name: Name of the criterion.
        passed: Whether the candidate passed; None if the check does not apply.
        summary: The figures, or why the check does not apply.
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
            checks.append(Check(f"beats {name}", None, "not available for a data file"))
            continue
        mse, baseline_mse = errors[OVERALL].mean(), references[name][OVERALL].mean()
        checks.append(Check(f"beats {name}", bool(mse < baseline_mse), f"MSE {mse:.4f} against {baseline_mse:.4f}"))
    return checks


def check_limit(errors: pd.DataFrame, limit: pd.DataFrame | None, bounds: Bounds) -> list[Check]:
    """Check that the ratio of MSE to limit, None if unknown, is within its bounds, overall and for each component.

    The check does not apply to a limit of zero.
    """
    if limit is None:
        return [Check("near the limit", None, "no limit: the signal model of a data file is unknown")]
    checks = []
    for component in errors.columns:
        overall = component == OVERALL
        max_ratio = bounds.max_mse_ratio if overall else bounds.max_mse_ratio_per_frequency
        name = "near the limit" if overall else f"near the limit, {component}"
        ratio = limit_ratio(float(errors[component].mean()), float(limit[component].mean()))
        if ratio is None:
            checks.append(Check(name, None, "the limit is zero, there is no ratio to it"))
            continue
        low, high = ratio_interval(errors[component].to_numpy(), limit[component].to_numpy()) or (-math.inf, math.inf)
        summary = f"{ratio:.4f} ({low:.4f} to {high:.4f}) × the limit, at most {max_ratio:g}"
        checks.append(Check(name, bool(high <= max_ratio), summary))
    return checks


def check_improvement(test: PairedTest | None, *, same_weights: bool = False) -> Check:
    """Check that the candidate is better than the champion or, with a margin, worse by less than the margin.

    Args:
        test: Paired comparison with the champion; None if there is no champion yet.
        same_weights: Whether both have identical weights.
    """
    if same_weights:
        return Check("better than the champion", False, "identical weights")
    if test is None:
        return Check("better than the champion", None, "no champion yet")
    criterion = f"less than {100 * test.margin:g} % worse" if test.margin else "better"
    return Check(f"{criterion} than the champion", test.verdict == Verdict.BETTER, test.summary)


def check_cost(milliseconds: float, megabytes: float, bounds: Bounds) -> list[Check]:
    """Check that latency and size are within their bounds."""
    latency = f"{milliseconds:.1f} ms for a window, at most {bounds.max_latency_ms:g}"
    size = f"{megabytes:.1f} MB, at most {bounds.max_size_mb:g}"
    return [
        Check("fast", milliseconds <= bounds.max_latency_ms, latency),
        Check("small", megabytes <= bounds.max_size_mb, size),
    ]


def check_leak(diagnoses: str) -> Check:
    """Check that the training run reported no leak; ``diagnoses`` are its problems, separated by spaces."""
    reported = {"leak": "raised a leak alarm", "overlap": "had the same data in two of its splits"}
    found = " and ".join(text for name, text in reported.items() if name in diagnoses.split())
    return Check("no leak", not found, f"its training run {found}" if found else "no leak alarm in its training run")


def check_finite(errors: pd.DataFrame) -> Check:
    """Check that all errors, and hence all estimates, are finite."""
    finite = bool(np.isfinite(errors.to_numpy()).all())
    return Check("finite", finite, "all estimates are finite" if finite else "estimates contain NaN or Inf")
