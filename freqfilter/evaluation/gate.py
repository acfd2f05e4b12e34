"""Acceptance criteria of the promotion gate."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from freqfilter.config.schema import Bounds
from freqfilter.evaluation.limits import CONFIDENCE
from freqfilter.evaluation.metrics import OVERALL
from freqfilter.evaluation.significance import PairedTest, Verdict

BASELINES_TO_BEAT = ("zero", "mean", "linear_mmse")  # what no filter is needed for, and the best linear filter


@dataclass(frozen=True)
class Check:
    """One thing that a candidate has to pass.

    Attributes:
        name: Its name.
        passed: Whether it has; None where it does not apply.
        summary: The figures, or why it does not apply.
    """

    name: str
    passed: bool | None
    summary: str


def check_baselines(errors: pd.DataFrame, references: dict[str, pd.DataFrame]) -> list[Check]:
    """Better than answers that take no filter, and than the best linear one, on the same realizations.

    Args:
        errors: The candidate's mean squared error: a row for each realization, a column for all components together
            and one for each.
        references: The same of others, by name.
    """
    rungs = []
    for name in BASELINES_TO_BEAT:
        if name not in references:
            rungs.append(Check(f"beats {name}", None, "not known of a user's own data"))
            continue
        ours, theirs = errors[OVERALL].mean(), references[name][OVERALL].mean()
        rungs.append(Check(f"beats {name}", bool(ours < theirs), f"MSE {ours:.4f} against {theirs:.4f}"))
    return rungs


def check_limit(errors: pd.DataFrame, limit: pd.DataFrame | None, bounds: Bounds) -> list[Check]:
    """Not far above the least error that is possible, overall and for each component.

    Args:
        errors: As in ``check_baselines``.
        limit: The same of the limit, on the same windows; None where nobody knows it.
        bounds: How far.
    """
    if limit is None:
        return [Check("near the limit", None, "the signal model of a user's own data is not known, hence no limit")]
    rungs = []
    for component in errors.columns:
        overall = component == OVERALL
        most = bounds.max_mse_ratio if overall else bounds.max_mse_ratio_per_frequency
        ratio, half = _ratio(errors[component], limit[component])
        name = "near the limit" if overall else f"near the limit, {component}"
        words = f"{ratio:.4f} ± {half:.4f} × the limit, at most {most:g}"
        rungs.append(Check(name, ratio + half <= most, words))
    return rungs


def _ratio(errors: pd.Series[float], limit: pd.Series[float]) -> tuple[float, float]:
    """The ratio of two means over the same realizations, and half of its interval (delta method for paired data)."""
    least = float(limit.mean())
    if least == 0:
        return (1.0, 0.0) if errors.max() == 0 else (float("inf"), 0.0)
    ratio = float(errors.mean()) / least
    rest = (errors - ratio * limit) / least
    return ratio, float(stats.t.ppf((1 + CONFIDENCE) / 2, len(errors) - 1) * stats.sem(rest))


def check_improvement(test: PairedTest | None, *, same_weights: bool = False) -> Check:
    """Better than the champion, or, with a margin, not worse by that much.

    Args:
        test: The comparison; None where there is no champion yet.
        same_weights: Whether both have the very same weights.
    """
    if same_weights:
        return Check("better than the champion", False, "the same weights")
    if test is None:
        return Check("better than the champion", None, "there is none yet")
    wanted = f"less than {100 * test.margin:g} % worse" if test.margin else "better"
    return Check(f"{wanted} than the champion", test.verdict == Verdict.BETTER, test.summary)


def check_cost(milliseconds: float, megabytes: float, bounds: Bounds) -> list[Check]:
    """Within the bounds on latency and size."""
    return [
        Check(
            "fast",
            milliseconds <= bounds.max_latency_ms,
            f"{milliseconds:.1f} ms for a window, at most {bounds.max_latency_ms:g}",
        ),
        Check("small", megabytes <= bounds.max_size_mb, f"{megabytes:.1f} MB, at most {bounds.max_size_mb:g}"),
    ]


def check_leak(diagnoses: str) -> Check:
    """No alarm of a leak in the run that trained it.

    Args:
        diagnoses: The names of what that run was told, in a row.
    """
    leaks = "leak" in diagnoses.split()
    words = "validation was below what is possible: it leaked" if leaks else "no alarm in its training run"
    return Check("no leak", not leaks, words)


def check_finite(errors: pd.DataFrame) -> Check:
    """Numbers in, numbers out."""
    good = bool(np.isfinite(errors.to_numpy()).all())
    return Check("finite", good, "every estimate is a number" if good else "some estimates are no numbers")
