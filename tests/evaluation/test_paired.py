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
    error_rate,
    min_parts,
    paired_test,
)
from tests.conftest import SEED, many

# Measured by `python -m benchmarks.gate`, on 200 realizations.
ERRORS = pd.read_csv(Path(__file__).parents[1] / "data" / "gate_errors.csv", index_col="noise_seed")
LIMIT = ERRORS["limit"].to_numpy()
GOOD, WORSE = (ERRORS[name].to_numpy() for name in ERRORS.columns if name != "limit")
SHIFT = 0.01 * LIMIT.mean() - (WORSE - GOOD).mean()
DECISIONS = many(400, 4000)


def decide(candidate: np.ndarray, champion: np.ndarray, *, margin: float = 0.0, number: int = 1) -> tuple[Verdict, int]:
    """Run the interim analyses of the gate; return the verdict and the number of realizations."""
    for look in INTERIM_ANALYSES:
        test = paired_test(candidate[:look], champion[:look], margin=margin, rate=error_rate(number))
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


def equal_errors(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Errors of two filters swapped at random, which have the same distribution."""
    indices = draw(rng)
    swapped = rng.random(len(indices)) < 0.5
    one, other = GOOD[indices], WORSE[indices]
    return np.where(swapped, one, other), np.where(swapped, other, one)


@pytest.mark.soak
def test_an_equal_candidate_is_rarely_promoted() -> None:
    rng = np.random.default_rng([SEED, 1])
    verdicts = [decide(*equal_errors(rng))[0] for _ in range(DECISIONS)]
    allowed = error_rate(1)
    tolerance = 3 * (allowed * (1 - allowed) / DECISIONS) ** 0.5
    assert rate(verdicts, Verdict.BETTER) <= allowed + tolerance


@pytest.mark.soak
def test_many_equal_candidates_in_a_row_are_rarely_promoted() -> None:
    """The error rate holds for a champion, however many candidates are compared with it."""
    rng, n_champions, n_candidates = np.random.default_rng([SEED, 4]), many(100, 1000), many(12, 50)
    lost = 0
    for _ in range(n_champions):
        verdicts = (decide(*equal_errors(rng), number=number)[0] for number in range(1, n_candidates + 1))
        lost += Verdict.BETTER in verdicts
    tolerance = 3 * (FALSE_PROMOTION_RATE * (1 - FALSE_PROMOTION_RATE) / n_champions) ** 0.5
    assert lost / n_champions <= FALSE_PROMOTION_RATE + tolerance


def test_the_error_rates_of_all_candidates_add_up_to_the_rate_of_a_champion() -> None:
    rates = [error_rate(number) for number in range(1, 100_001)]
    assert sum(rates) == pytest.approx(FALSE_PROMOTION_RATE, rel=1e-4)
    assert sum(rates) < FALSE_PROMOTION_RATE


@pytest.mark.parametrize("number", [1, 2, 10, 100])
def test_a_clearly_better_candidate_is_promoted_after_many_others(number: int) -> None:
    champion = np.ones(INTERIM_ANALYSES[-1])
    assert decide(champion - 0.1, champion, number=number)[0] == Verdict.BETTER


@pytest.mark.parametrize("number", [1, 2, 10])
def test_the_least_number_of_parts_can_show_a_better_candidate(number: int) -> None:
    enough = min_parts(error_rate(number))
    for n, verdict in ((enough, Verdict.BETTER), (enough - 1, Verdict.NOT_BETTER)):
        assert paired_test(np.full(n, 0.9), np.ones(n), rate=error_rate(number), looks=(n,)).verdict == verdict


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
    ones = np.ones(24)
    assert paired_test(ones - 0.1, ones).p_value == 2**-24
    # A sum of 24 signs is at most -8 if at least 16 of them are negative.
    expected = stats.binom.sf(15, 24, 0.5)
    assert paired_test(ones - np.repeat([0.1, -0.1], [16, 8]), ones).p_value == pytest.approx(expected)
    ones = np.ones(40)  # random sign patterns
    assert paired_test(ones - np.repeat([0.1, -0.1], [26, 14]), ones).p_value == pytest.approx(
        stats.binom.sf(25, 40, 0.5), rel=0.1
    )


def test_the_interval_has_the_differences_that_a_paired_t_test_accepts() -> None:
    rng = np.random.default_rng(0)
    champion = 1 + 0.1 * rng.standard_normal(10)
    candidate = champion - 0.02 + 0.01 * rng.standard_normal(10)
    test = paired_test(candidate, champion)
    assert test.difference == pytest.approx(((candidate - champion) / champion.mean()).mean())
    for end in (test.low, test.high):  # 5 % / 3 in each tail
        assert stats.ttest_1samp(candidate - (1 + end) * champion, 0).pvalue == pytest.approx(2 * 0.05 / 3)
