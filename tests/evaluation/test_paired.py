"""Error rates of the promotion gate on errors of real filters."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from freqfilter.evaluation.significance import (
    FALSE_PROMOTION_RATE,
    INDIFFERENCE,
    INTERIM_ANALYSES,
    Verdict,
    paired_test,
)
from tests.conftest import SEED, many

# Measured by `python -m benchmarks.gate`, on 200 realizations.
ERRORS = pd.read_csv(Path(__file__).parents[1] / "data" / "gate_errors.csv", index_col="noise_seed")
LIMIT = ERRORS["limit"].to_numpy()
GOOD, WORSE = (ERRORS[name].to_numpy() for name in ERRORS.columns if name != "limit")
SHIFT = 0.01 * LIMIT.mean() - (WORSE - GOOD).mean()
DECISIONS = many(400, 4000)


def decide(candidate: np.ndarray, champion: np.ndarray, *, margin: float = 0.0) -> tuple[Verdict, int]:
    """Run the interim analyses of the gate; return the verdict and the number of realizations."""
    for look in INTERIM_ANALYSES:
        test = paired_test(candidate[:look], champion[:look], margin=margin)
        if test.verdict != Verdict.OPEN:
            return test.verdict, look
    raise AssertionError("no verdict at the last analysis")


def draw(rng: np.random.Generator) -> np.ndarray:
    return rng.integers(len(ERRORS), size=INTERIM_ANALYSES[-1])


def rate(verdicts: list[Verdict], counted: Verdict) -> float:
    return sum(verdict == counted for verdict in verdicts) / len(verdicts)


def test_the_filters_have_the_stated_ratios() -> None:
    """One has half of the other's excess over the limit; the shift makes the difference 1 % of the limit."""
    good, worse = (float(errors.mean() / LIMIT.mean() - 1) for errors in (GOOD, WORSE))
    assert good / worse == pytest.approx(0.5, abs=0.05)
    assert float((WORSE + SHIFT - GOOD).mean() / LIMIT.mean()) == pytest.approx(0.01)
    assert abs(SHIFT) < 0.004 * LIMIT.mean()


@pytest.mark.soak
def test_an_equal_candidate_is_rarely_promoted() -> None:
    """Errors of two filters swapped at random have the same distribution."""
    rng, verdicts = np.random.default_rng([SEED, 1]), []
    for _ in range(DECISIONS):
        indices = draw(rng)
        swapped = rng.random(len(indices)) < 0.5
        one, other = GOOD[indices], WORSE[indices]
        verdicts.append(decide(np.where(swapped, one, other), np.where(swapped, other, one))[0])
    tolerance = 3 * (FALSE_PROMOTION_RATE * (1 - FALSE_PROMOTION_RATE) / DECISIONS) ** 0.5
    assert rate(verdicts, Verdict.BETTER) <= FALSE_PROMOTION_RATE + tolerance


@pytest.mark.soak
def test_half_the_excess_is_detected_with_few_realizations() -> None:
    rng, decisions = np.random.default_rng([SEED, 2]), []
    for _ in range(DECISIONS):
        indices = draw(rng)
        decisions.append(decide(GOOD[indices], WORSE[indices] + SHIFT))
    assert rate([verdict for verdict, _ in decisions], Verdict.BETTER) >= 0.8
    assert np.mean([looks for _, looks in decisions]) < INTERIM_ANALYSES[1]


@pytest.mark.soak
def test_a_worse_candidate_is_promoted_only_within_a_margin() -> None:
    rng, without_margin, with_margin = np.random.default_rng([SEED, 3]), [], []
    for _ in range(DECISIONS):
        indices = draw(rng)
        without_margin.append(decide(WORSE[indices], GOOD[indices])[0])
        with_margin.append(decide(WORSE[indices], GOOD[indices], margin=0.03)[0])
    assert rate(without_margin, Verdict.BETTER) == 0
    assert rate(with_margin, Verdict.BETTER) >= 0.8


def test_identical_errors_are_equal_at_the_first_analysis() -> None:
    assert decide(GOOD, GOOD) == (Verdict.EQUAL, INTERIM_ANALYSES[0])
    assert decide(GOOD * (1 + INDIFFERENCE / 3), GOOD)[0] != Verdict.BETTER


def test_the_p_value_counts_all_sign_patterns() -> None:
    champion = np.ones(4)
    assert paired_test(champion - [0.1, 0.2, 0.3, 0.4], champion).p_value == 1 / 16
    assert paired_test(champion - [0.1, 0.2, 0.3, -0.05], champion).p_value == 2 / 16
    assert paired_test(champion + np.array([0.1, 0.2, 0.3, 0.4]), champion).p_value == 1
    ones = np.ones(INTERIM_ANALYSES[-1])
    assert paired_test(ones - 0.1, ones).p_value < 1e-4


def test_the_interval_has_the_differences_that_a_paired_t_test_accepts() -> None:
    rng = np.random.default_rng(0)
    champion = 1 + 0.1 * rng.standard_normal(10)
    candidate = champion - 0.02 + 0.01 * rng.standard_normal(10)
    test = paired_test(candidate, champion)
    assert test.difference == pytest.approx(((candidate - champion) / champion.mean()).mean())
    for end in (test.low, test.high):  # 5 % / 3 in each tail
        assert stats.ttest_1samp(candidate - (1 + end) * champion, 0).pvalue == pytest.approx(2 * 0.05 / 3)
