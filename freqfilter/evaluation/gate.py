"""Acceptance criteria of the promotion gate."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from freqfilter.config.schema import Bounds
from freqfilter.evaluation.metrics import OVERALL, half_width
from freqfilter.evaluation.significance import PairedTest, Verdict

BASELINES_TO_BEAT = ("zero", "mean", "linear_mmse")  # trivial baselines, and the best linear filter


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
            checks.append(Check(f"beats {name}", None, "not available for a data file"))
            continue
        mse, baseline_mse = errors[OVERALL].mean(), references[name][OVERALL].mean()
        checks.append(Check(f"beats {name}", bool(mse < baseline_mse), f"MSE {mse:.4f} against {baseline_mse:.4f}"))
    return checks


def check_limit(errors: pd.DataFrame, limit: pd.DataFrame | None, bounds: Bounds) -> list[Check]:
    """Check that the ratio of MSE to limit, None if unknown, is within its bounds, overall and for each component."""
    if limit is None:
        return [Check("near the limit", None, "no limit: the signal model of a data file is unknown")]
    checks = []
    for component in errors.columns:
        overall = component == OVERALL
        max_ratio = bounds.max_mse_ratio if overall else bounds.max_mse_ratio_per_frequency
        ratio, half = _ratio(errors[component], limit[component])
        name = "near the limit" if overall else f"near the limit, {component}"
        summary = f"{ratio:.4f} ± {half:.4f} × the limit, at most {max_ratio:g}"
        checks.append(Check(name, ratio + half <= max_ratio, summary))
    return checks


def _ratio(errors: pd.Series[float], limit: pd.Series[float]) -> tuple[float, float]:
    """Ratio of two means over the same realizations, and half the width of its interval (paired delta method)."""
    limit_mse = float(limit.mean())
    if limit_mse == 0:
        return (1.0, 0.0) if errors.max() == 0 else (float("inf"), 0.0)
    ratio = float(errors.mean()) / limit_mse
    return ratio, half_width(((errors - ratio * limit) / limit_mse).to_numpy())


def check_improvement(test: PairedTest, candidate_number: int) -> Check:
    """Check that the candidate is better than the champion or, with a margin, worse by less than the margin.

    Args:
        test: Paired comparison with the champion.
        candidate_number: Number of the candidate among those that were compared with the champion, from 1.
    """
    criterion = f"less than {100 * test.margin:g} % worse" if test.margin else "better"
    summary = f"{test.summary}, candidate {candidate_number} against this champion"
    return Check(f"{criterion} than the champion", test.verdict == Verdict.BETTER, summary)


def check_cost(milliseconds: float, megabytes: float, bounds: Bounds) -> list[Check]:
    """Check that latency and size are within their bounds."""
    latency = f"{milliseconds:.1f} ms for a window, at most {bounds.max_latency_ms:g}"
    size = f"{megabytes:.1f} MB, at most {bounds.max_size_mb:g}"
    return [
        Check("fast", milliseconds <= bounds.max_latency_ms, latency),
        Check("small", megabytes <= bounds.max_size_mb, size),
    ]


def check_leak(diagnoses: str | None, bounds: Bounds) -> Check:
    """Check that the training run raised no leak alarm.

    Args:
        diagnoses: Problems of the training run, separated by spaces; None if the training is unknown.
        bounds: Bounds, which state whether an unknown training is accepted.
    """
    if diagnoses is None:
        summary = "not known: the version was registered without the record of its training"
        if not bounds.allow_unknown_training:
            return Check("no leak", False, f"{summary}; accept it with allow_unknown_training=true")
        return Check("no leak", None, f"{summary}; accepted by allow_unknown_training")
    leaks = "leak" in diagnoses.split()
    summary = "its training run raised a leak alarm" if leaks else "no leak alarm in its training run"
    return Check("no leak", not leaks, summary)


def check_finite(errors: pd.DataFrame) -> Check:
    """Check that all errors, and hence all estimates, are finite."""
    finite = bool(np.isfinite(errors.to_numpy()).all())
    return Check("finite", finite, "all estimates are finite" if finite else "estimates contain NaN or Inf")
