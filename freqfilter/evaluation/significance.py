"""Significance tests of the difference between filters on the same realizations."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import count

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from freqfilter.data.signal_model import random_stream
from freqfilter.evaluation.heldout import FreshScores, summarize
from freqfilter.evaluation.limits import LIMIT
from freqfilter.evaluation.metrics import CONFIDENCE, MODEL, OVERALL, ratio_interval

INTERIM_ANALYSES = (8, 16, 24)  # numbers of realizations after which the test is run
FALSE_PROMOTION_RATE = 0.05  # of candidates equal to the champion, over all candidates that are compared with it
INDIFFERENCE = 0.0005  # share of the champion's error; smaller differences count as equal

MAX_EXACT = 24  # realizations; up to here all sign patterns are counted
N_SIGN_FLIPS = 20_000  # random sign patterns for more realizations
SIGNIFICANCE_LEVEL = 0.05

Array = NDArray[np.float64]


class Verdict(StrEnum):
    """Verdict on a candidate after an interim analysis."""

    BETTER = "better"
    NOT_BETTER = "not better"
    EQUAL = "equal"
    OPEN = "open"


@dataclass(frozen=True)
class PairedTest:
    """Paired comparison of a candidate's error with the champion's over realizations.

    Attributes:
        n_realizations: Number of realizations so far.
        difference: Mean of the candidate's error minus the champion's, as a share of the champion's.
        low: Lower end of its confidence interval (``ratio_interval`` minus 1); -Inf if it is unknown.
        high: Upper end; Inf if it is unknown.
        p_value: One-sided p-value of ``difference`` below ``margin``.
        margin: Accepted increase of the error, as a share of the champion's; 0 if the candidate has to be better.
        level: Largest p-value of a better candidate.
        verdict: Verdict of the test.
    """

    n_realizations: int
    difference: float
    low: float
    high: float
    p_value: float
    margin: float
    level: float
    verdict: Verdict

    @property
    def summary(self) -> str:
        """The difference with its interval, p-value, level and number of realizations, as text."""
        span = f"{100 * self.low:+.3f} % to {100 * self.high:+.3f} %"
        figures = f"{100 * self.difference:+.3f} % of the champion's error ({span})"
        return f"{figures}, p = {self.p_value:.2g} (at most {self.level:.2g}), {self.n_realizations} realizations"


def error_rate(number: int) -> float:
    """Return the false-promotion rate of the ``number``-th candidate, from 1, that is compared with a champion.

    The rates of all candidates, however many, add up to ``FALSE_PROMOTION_RATE``, since the sum of 1 / k² is π² / 6.

    Source: alpha-spending rules in D. P. Foster and R. A. Stine, "α-investing: a procedure for sequential control of
    expected false discoveries", Journal of the Royal Statistical Society B 70, 2008.

    >>> round(error_rate(1), 4), round(error_rate(2), 4)
    (0.0304, 0.0076)
    """
    return FALSE_PROMOTION_RATE * 6 / (math.pi * number) ** 2


def min_parts(rate: float) -> int:
    """Return the least number of parts of a data file with which a candidate can be better at this error rate.

    The smallest p-value of n parts is that of one of the 2ⁿ sign patterns.

    >>> min_parts(error_rate(1)), min_parts(error_rate(2))
    (6, 8)
    """
    return math.ceil(-math.log2(rate))


def paired_test(
    candidate: Array,
    champion: Array,
    *,
    margin: float = 0.0,
    rate: float = FALSE_PROMOTION_RATE,
    looks: tuple[int, ...] = INTERIM_ANALYSES,
) -> PairedTest:
    """Compare two filters' errors on the same realizations by a group-sequential paired permutation test.

    The noise of a realization moves both errors in the same direction, so that their difference varies much less than
    they do. Under the null hypothesis the sign of each difference is random: the mean is compared with those under
    all sign patterns. A t-test has too many false positives on so few realizations, since the differences are not
    normal. Each interim analysis has an equal share of ``rate`` (Bonferroni), which bounds the rate of false promotions
    over all of them. The other verdicts promote nothing, and use ``FALSE_PROMOTION_RATE``.

    Source: R. A. Fisher, "The Design of Experiments", 1935, section 21.

    Args:
        candidate: Mean squared error of the candidate on each realization, (n_realizations,).
        champion: Mean squared error of the champion, (n_realizations,).
        margin: Accepted increase of the error, as a share of the champion's.
        rate: Rate of false promotions of this comparison; see ``error_rate``.
        looks: Numbers of realizations at the interim analyses; the last one decides.

    Raises:
        ValueError: If there are fewer than two realizations, or the numbers differ.
    """
    n = len(candidate)
    if n < 2 or champion.shape != candidate.shape:
        raise ValueError(f"{n} and {len(champion)} realizations: expected the same number of both, at least two")
    differences = (candidate - champion) / float(champion.mean())
    mean, allowed = float(differences.mean()), FALSE_PROMOTION_RATE / len(looks)
    low, high = _difference_interval(candidate, champion, confidence=1 - 2 * allowed)
    p_value = _p_value_below(differences - margin)
    level = rate / len(looks)
    if p_value <= level:
        verdict = Verdict.BETTER
    elif _p_value_below(margin - differences) <= allowed:
        verdict = Verdict.NOT_BETTER
    elif low > -INDIFFERENCE and high < INDIFFERENCE:
        verdict = Verdict.EQUAL
    else:
        verdict = Verdict.NOT_BETTER if n >= looks[-1] else Verdict.OPEN
    return PairedTest(n, mean, low, high, p_value, margin, level, verdict)


@dataclass(frozen=True)
class Difference:
    """Relative difference of two filters' errors on the same realizations.

    Attributes:
        mean: Mean over realizations of the first error minus the second, as a share of the second; below zero the
            first filter is better.
        low: Lower end of its 95 % interval (``ratio_interval`` minus 1); -Inf if it is unknown.
        high: Upper end; Inf if it is unknown.
        p_value: Two-sided p-value.
    """

    mean: float
    low: float
    high: float
    p_value: float


def paired_difference(one: Array, other: Array) -> Difference:
    """Compare two filters' mean squared errors on each realization, (n_realizations,), as in ``paired_test``."""
    shares = (one - other) / float(other.mean())
    low, high = _difference_interval(one, other, confidence=CONFIDENCE)
    p_value = min(1.0, 2 * min(_p_value_below(shares), _p_value_below(-shares)))
    return Difference(float(shares.mean()), low, high, p_value)


def _difference_interval(one: Array, other: Array, *, confidence: float) -> tuple[float, float]:
    """Confidence interval of the relative difference of two means over the same realizations."""
    low, high = ratio_interval(one, other, confidence=confidence) or (-math.inf, math.inf)
    return low - 1, high - 1


def holm_correction(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values of several comparisons to control the family-wise error rate.

    Source: S. Holm, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 6,
    1979.

    >>> holm_correction([0.01, 0.5, 0.02])
    [0.03, 0.5, 0.04]
    """
    adjusted, highest = list(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(adjusted)), key=adjusted.__getitem__)):
        highest = max(highest, min(1.0, adjusted[index] * (len(adjusted) - rank)))
        adjusted[index] = highest
    return adjusted


def _p_value_below(values: Array) -> float:
    """One-sided permutation p-value: share of sign patterns whose sum is at most that of the values."""
    n, largest = len(values), values.sum() + 1e-12 * np.abs(values).sum()
    if n <= MAX_EXACT:  # 2ⁿ sums, each of one of either half
        first, second = (_signed_sums(half) for half in np.array_split(values, 2))
        return float(np.searchsorted(np.sort(first), largest - second, side="right").sum() / 2**n)
    signs = random_stream(0, "signs").choice([-1, 1], size=(N_SIGN_FLIPS, n))
    signs[0] = 1  # the observed pattern
    return float((signs @ values <= largest).mean())


def _signed_sums(values: Array) -> Array:
    """Sums of the values under all sign patterns, (2ⁿ,)."""
    n = len(values)
    return np.asarray((1 - 2 * (np.arange(2**n)[:, None] >> np.arange(n) & 1)) @ values)


@dataclass(frozen=True)
class PairwiseComparison:
    """Comparison of a filter with a reference filter.

    Attributes:
        fresh: Scores of the filter and its limit on the realizations.
        against: Name of the reference; None for the reference itself.
        difference: Difference from the reference, with Holm's adjusted p-value; None for the reference itself.
    """

    fresh: FreshScores
    against: str | None
    difference: Difference | None

    @property
    def summary(self) -> str:
        """The comparison as text, without the name of the filter."""
        if self.difference is None:
            return "reference of the comparison"
        p_value = self.difference.p_value
        mean, low, high = (100 * share for share in (self.difference.mean, self.difference.low, self.difference.high))
        if p_value >= SIGNIFICANCE_LEVEL:
            return f"not significant: {mean:+.2f} % ({low:+.2f} to {high:+.2f}), p = {p_value:.2g}"
        if mean < 0:
            return f"better by {-mean:.2f} % ({-high:.2f} to {-low:.2f}), significant, p = {p_value:.2g}"
        return f"worse by {mean:.2f} % ({low:.2f} to {high:.2f}), significant, p = {p_value:.2g}"


def min_realizations(n_others: int) -> int:
    """Return the least number of realizations with which a difference from the reference can be significant.

    The smallest p-value of n realizations is that of one sign pattern and its opposite among all 2ⁿ.

    >>> min_realizations(1), min_realizations(9)
    (6, 9)
    """
    return next(n for n in count(1) if 2 * n_others / 2**n < SIGNIFICANCE_LEVEL)


def pairwise_comparisons(errors: Mapping[int, pd.DataFrame], names: Sequence[str]) -> dict[str, PairwiseComparison]:
    """Compare each filter with the first one.

    Args:
        errors: Mean squared errors by noise seed: a row for each name and, if it is known, ``limit``, a column for
            all components together and one for each.
        names: Names of the filters.
    """
    first, *others = names
    overall = pd.DataFrame({seed: table[OVERALL] for seed, table in errors.items()})
    raw = [paired_difference(overall.loc[name].to_numpy(), overall.loc[first].to_numpy()) for name in others]
    adjusted = holm_correction([difference.p_value for difference in raw])
    differences = [None, *(replace(difference, p_value=p) for difference, p in zip(raw, adjusted, strict=True))]
    return {
        name: PairwiseComparison(summarize(_filter_errors(errors, name)), first if difference else None, difference)
        for name, difference in zip(names, differences, strict=True)
    }


def _filter_errors(errors: Mapping[int, pd.DataFrame], name: str) -> dict[int, pd.DataFrame]:
    rows = [name, *({LIMIT} & set(next(iter(errors.values())).index))]
    return {seed: table.loc[rows].rename({name: MODEL}) for seed, table in errors.items()}
