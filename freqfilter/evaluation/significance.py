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
from scipy import stats

from freqfilter.data.signal_model import random_stream
from freqfilter.evaluation.heldout import FreshScores, summarize
from freqfilter.evaluation.limits import CONFIDENCE, LIMIT
from freqfilter.evaluation.metrics import MODEL, OVERALL

INTERIM_ANALYSES = (6, 12, 24)  # realizations after which a decision is tried
FALSE_PROMOTION_RATE = 0.05  # of candidates that are equal to the champion, over all looks
INDIFFERENCE = 0.0005  # of the champion's error: less is no difference that anybody would act on

EXACT = 12  # realizations of which all signs can be tried
N_SIGN_FLIPS = 20_000  # of more, so many

Array = NDArray[np.float64]


class Verdict(StrEnum):
    """What the realizations so far say of a candidate."""

    BETTER = "better"
    NOT_BETTER = "not better"
    EQUAL = "equal"
    OPEN = "open"


@dataclass(frozen=True)
class PairedTest:
    """A candidate's error beside a champion's, realization by realization.

    Attributes:
        n_realizations: So far.
        difference: Mean of the candidate's error less the champion's, as a share of the champion's.
        low: Lower end of its interval (Student's t).
        high: Upper end.
        p_value: How often a difference this far below the margin comes about by chance alone.
        margin: By how much the candidate may be worse, as a share of the champion's error; 0: it has to be better.
        verdict: What follows.
    """

    n_realizations: int
    difference: float
    low: float
    high: float
    p_value: float
    margin: float
    verdict: Verdict

    @property
    def summary(self) -> str:
        """The figures in words."""
        span = f"{100 * self.low:+.3f} % to {100 * self.high:+.3f} %"
        figures = f"{100 * self.difference:+.3f} % of the champion's error ({span})"
        return f"{figures}, p = {self.p_value:.3f}, {self.n_realizations} realizations"


def paired_test(
    candidate: Array, champion: Array, *, margin: float = 0.0, looks: tuple[int, ...] = INTERIM_ANALYSES
) -> PairedTest:
    """Compare two filters' errors on the same realizations, at one of several looks.

    The noise of a realization makes both errors larger or smaller together, so that their difference scatters much
    less than they do. Of two filters that are equal, each difference could as well have the other sign: its mean is
    held against those under all signs. So few realizations are no matter for a t-test, which two errors that differ
    in a regular way deceive. Each look may err with an equal share of ``FALSE_PROMOTION_RATE`` (Bonferroni), so that a
    candidate that is equal is promoted at most as often as stated, however many looks are taken.

    Source: R. A. Fisher, "The Design of Experiments", 1935, section 21.

    Args:
        candidate: Mean squared error on each realization, (n_realizations,).
        champion: The same of the champion.
        margin: By how much the candidate may be worse, as a share of the champion's error.
        looks: After how many realizations a decision is tried; after the last one it is made.

    Raises:
        ValueError: If there are fewer than two realizations, or not as many of both.
    """
    n = len(candidate)
    if n < 2 or champion.shape != candidate.shape:
        raise ValueError(f"{n} and {len(champion)} realizations: the same are needed of both, at least two")
    scale = float(champion.mean())
    differences = (candidate - champion) / scale
    mean = float(differences.mean())
    half = float(stats.t.isf(FALSE_PROMOTION_RATE / len(looks), n - 1) * differences.std(ddof=1) / math.sqrt(n))
    low, high, allowed = mean - half, mean + half, FALSE_PROMOTION_RATE / len(looks)
    p_value = _p_value_below(differences - margin)
    if p_value <= allowed:
        verdict = Verdict.BETTER
    elif _p_value_below(margin - differences) <= allowed:
        verdict = Verdict.NOT_BETTER
    elif low > -INDIFFERENCE and high < INDIFFERENCE:
        verdict = Verdict.EQUAL
    else:
        verdict = Verdict.NOT_BETTER if n >= looks[-1] else Verdict.OPEN
    return PairedTest(n, mean, low, high, p_value, margin, verdict)


@dataclass(frozen=True)
class Difference:
    """One filter's error less another's, on the same realizations, as a share of the other's.

    Attributes:
        mean: Over the realizations; below zero: the one is better.
        low: Lower end of its 95 % interval (Student's t); NaN of a single realization.
        high: Upper end.
        p_value: How often a difference this far from zero, to either side, comes about by chance alone.
    """

    mean: float
    low: float
    high: float
    p_value: float


def paired_difference(one: Array, other: Array) -> Difference:
    """How much one filter's error differs from another's, and how often chance alone does as much.

    The p-value is that of ``paired_test``, to both sides.

    Args:
        one: Mean squared error on each realization, (n_realizations,).
        other: The same of the other filter, on the same realizations.
    """
    shares = (one - other) / float(other.mean())
    mean, n = float(shares.mean()), len(shares)
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1) * stats.sem(shares)) if n > 1 else math.nan
    p_value = min(1.0, 2 * min(_p_value_below(shares), _p_value_below(-shares)))
    return Difference(mean, mean - half, mean + half, p_value)


def holm_correction(p_values: Sequence[float]) -> list[float]:
    """P-values of several comparisons, each raised so far that all of them together err no more often than one.

    Source: S. Holm, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 6,
    1979.

    >>> holm_correction([0.01, 0.5, 0.02])
    [0.03, 0.5, 0.04]
    """
    raised, highest = list(p_values), 0.0
    for rank, place in enumerate(sorted(range(len(raised)), key=raised.__getitem__)):
        highest = max(highest, min(1.0, raised[place] * (len(raised) - rank)))
        raised[place] = highest
    return raised


def _p_value_below(values: Array) -> float:
    """Share of all signs of the values under which their sum is at most what it is."""
    n = len(values)
    if n <= EXACT:
        signs = 1 - 2 * (np.arange(2**n)[:, None] >> np.arange(n) & 1)
    else:
        signs = random_stream(0, "signs").choice([-1, 1], size=(N_SIGN_FLIPS, n))
        signs[0] = 1  # as they are
    sums = signs @ values
    return float((sums <= values.sum() + 1e-12 * np.abs(values).sum()).mean())


SIGNIFICANCE_LEVEL = 0.05  # a difference that chance brings about less often than this is one


@dataclass(frozen=True)
class PairwiseComparison:
    """How a filter stands among others.

    Attributes:
        fresh: Its errors on the realizations, and its limit's.
        against: Name of the filter that it is held against; None of that one itself.
        difference: From that one; the p-value is raised by the number of comparisons (Holm).
    """

    fresh: FreshScores
    against: str | None
    difference: Difference | None

    @property
    def summary(self) -> str:
        """The comparison in words, without the name of the filter."""
        if self.difference is None:
            return "what the others are held against"
        found = self.difference
        share, low, high = (100 * value for value in (found.mean, found.low, found.high))
        if found.p_value >= SIGNIFICANCE_LEVEL:
            return f"no more than chance: {share:+.2f} % ({low:+.2f} to {high:+.2f}), p = {found.p_value:.2g}"
        if share < 0:
            return f"better by {-share:.2f} % ({-high:.2f} to {-low:.2f}), more than chance, p = {found.p_value:.2g}"
        return f"worse by {share:.2f} % ({low:.2f} to {high:.2f}), more than chance, p = {found.p_value:.2g}"


def min_realizations(n_others: int) -> int:
    """How many realizations it takes for any difference of so many filters from a first to be more than chance.

    The least p-value of n realizations is that of one sign pattern and its opposite among all 2ⁿ.

    >>> min_realizations(1), min_realizations(9)
    (6, 9)
    """
    return next(n for n in count(1) if 2 * n_others / 2**n < SIGNIFICANCE_LEVEL)


def pairwise_comparisons(errors: Mapping[int, pd.DataFrame], names: Sequence[str]) -> dict[str, PairwiseComparison]:
    """Each filter's standing; the first is what the others are held against.

    Args:
        errors: Mean squared errors by noise seed: a row for each name and, where it is known, ``limit``, a column for
            all components together and one for each.
        names: Of the filters.
    """
    first, *others = names
    overall = pd.DataFrame({seed: table[OVERALL] for seed, table in errors.items()})
    found = [paired_difference(overall.loc[name].to_numpy(), overall.loc[first].to_numpy()) for name in others]
    raised = holm_correction([one.p_value for one in found])
    against = [None, *(replace(one, p_value=p_value) for one, p_value in zip(found, raised, strict=True))]
    return {
        name: PairwiseComparison(summarize(_of_one(errors, name)), first if of_name else None, of_name)
        for name, of_name in zip(names, against, strict=True)
    }


def _of_one(errors: Mapping[int, pd.DataFrame], name: str) -> dict[int, pd.DataFrame]:
    rows = [name, *({LIMIT} & set(next(iter(errors.values())).index))]
    return {seed: table.loc[rows].rename({name: MODEL}) for seed, table in errors.items()}
