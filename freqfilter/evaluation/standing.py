"""Several filters of one task on the same fresh realizations: how good each is, and how it compares with the first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count

import pandas as pd

from freqfilter.evaluation.fresh import FreshScores, summarize
from freqfilter.evaluation.paired import Difference, difference, holm
from freqfilter.evaluation.references import LIMIT
from freqfilter.evaluation.scores import MODEL, OVERALL

CHANCE = 0.05  # a difference that chance brings about less often than this is one


@dataclass(frozen=True)
class Standing:
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
    def words(self) -> str:
        """The comparison in words, without the name of the filter."""
        if self.difference is None:
            return "what the others are held against"
        found = self.difference
        share, low, high = (100 * value for value in (found.mean, found.low, found.high))
        if found.p_value >= CHANCE:
            return f"no more than chance: {share:+.2f} % ({low:+.2f} to {high:+.2f}), p = {found.p_value:.2g}"
        if share < 0:
            return f"better by {-share:.2f} % ({-high:.2f} to {-low:.2f}), more than chance, p = {found.p_value:.2g}"
        return f"worse by {share:.2f} % ({low:.2f} to {high:.2f}), more than chance, p = {found.p_value:.2g}"


def least_realizations(n_others: int) -> int:
    """How many realizations it takes for any difference of so many filters from a first to be more than chance.

    The least p-value of n realizations is that of one sign pattern and its opposite among all 2ⁿ.

    >>> least_realizations(1), least_realizations(9)
    (6, 9)
    """
    return next(n for n in count(1) if 2 * n_others / 2**n < CHANCE)


def standings(errors: Mapping[int, pd.DataFrame], names: Sequence[str]) -> dict[str, Standing]:
    """Each filter's standing; the first is what the others are held against.

    Args:
        errors: Mean squared errors by noise seed: a row for each name and, where it is known, ``limit``, a column for
            all components together and one for each.
        names: Of the filters.
    """
    first, *others = names
    overall = pd.DataFrame({seed: table[OVERALL] for seed, table in errors.items()})
    found = [difference(overall.loc[name].to_numpy(), overall.loc[first].to_numpy()) for name in others]
    raised = holm([one.p_value for one in found])
    against = [None, *(replace(one, p_value=p_value) for one, p_value in zip(found, raised, strict=True))]
    return {
        name: Standing(summarize(_of_one(errors, name)), first if of_name else None, of_name)
        for name, of_name in zip(names, against, strict=True)
    }


def _of_one(errors: Mapping[int, pd.DataFrame], name: str) -> dict[int, pd.DataFrame]:
    rows = [name, *({LIMIT} & set(next(iter(errors.values())).index))]
    return {seed: table.loc[rows].rename({name: MODEL}) for seed, table in errors.items()}
