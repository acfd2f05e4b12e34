"""Two filters on the same realizations: which of them is better, from no more realizations than that takes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray
from scipy import stats

LOOKS = (5, 10, 20, 40)  # realizations after which a decision is tried
FALSE_PROMOTIONS = 0.05  # of candidates that are equal to the champion, over all looks
INDIFFERENCE = 0.0005  # of the champion's error: less is no difference that anybody would act on

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
        low: Lower end of its interval.
        high: Upper end.
        margin: By how much the candidate may be worse, as a share of the champion's error; 0: it has to be better.
        verdict: What follows.
    """

    n_realizations: int
    difference: float
    low: float
    high: float
    margin: float
    verdict: Verdict

    @property
    def words(self) -> str:
        """The figures in words."""
        span = f"{100 * self.low:+.3f} % to {100 * self.high:+.3f} %"
        return f"{100 * self.difference:+.3f} % of the champion's error ({span}), {self.n_realizations} realizations"


def paired_test(
    candidate: Array, champion: Array, *, margin: float = 0.0, looks: tuple[int, ...] = LOOKS
) -> PairedTest:
    """Compare two filters' errors on the same realizations, at one of several looks.

    The noise of a realization makes both errors larger or smaller together, so that their difference scatters much
    less than they do. Its mean is held against its own scatter (Student's t). Each look may err with an equal share
    of ``FALSE_PROMOTIONS`` (Bonferroni), so that a candidate that is equal is promoted at most as often as stated,
    however many looks are taken.

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
    half = float(stats.t.isf(FALSE_PROMOTIONS / len(looks), n - 1) * differences.std(ddof=1) / math.sqrt(n))
    low, high = mean - half, mean + half
    if high < margin:
        verdict = Verdict.BETTER
    elif low > margin:
        verdict = Verdict.NOT_BETTER
    elif low > -INDIFFERENCE and high < INDIFFERENCE:
        verdict = Verdict.EQUAL
    else:
        verdict = Verdict.NOT_BETTER if n >= looks[-1] else Verdict.OPEN
    return PairedTest(n, mean, low, high, margin, verdict)
