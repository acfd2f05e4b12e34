"""Comparisons of several filters on the same realizations."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from freqfilter.evaluation.significance import (
    SIGNIFICANCE_LEVEL,
    holm_correction,
    paired_difference,
    pairwise_comparisons,
)
from tests.conftest import SEED, many


def errors_by_seed(**rows: np.ndarray) -> dict[int, pd.DataFrame]:
    """Return errors by noise seed, for all components together and for one."""
    count = len(next(iter(rows.values())))
    return {
        seed: pd.DataFrame({"all": {name: row[seed] for name, row in rows.items()}}).assign(**{"1hz": 1.0})
        for seed in range(count)
    }


def test_one_percent_is_significant_under_shared_noise() -> None:
    rng = np.random.default_rng(SEED)
    shared = 0.2 + 0.02 * rng.standard_normal(12)
    worse = shared * (1.01 + 0.001 * rng.standard_normal(12))
    found = pairwise_comparisons(errors_by_seed(first=shared, worse=worse, limit=0.98 * shared), ["first", "worse"])
    assert found["first"].difference is None
    assert found["first"].fresh.ratio_interval == pytest.approx((1 / 0.98, 1 / 0.98))
    assert found["worse"].against == "first"
    assert found["worse"].summary.startswith("worse by 1.0")
    swapped = pairwise_comparisons(errors_by_seed(first=worse, better=shared), ["first", "better"])
    assert swapped["better"].summary.startswith("better by")
    assert swapped["better"].fresh.ratio_interval is None


@pytest.mark.soak
def test_equal_filters_are_called_different_no_more_often_than_stated() -> None:
    """The differences have fixed sizes and random signs."""
    rng = np.random.default_rng(SEED)
    n_trials = many(400, 20_000)
    champion, step = np.full(12, 0.2), 0.001 * (1 + np.arange(12))
    n_significant = sum(
        paired_difference(champion + step * rng.choice([-1, 1], 12), champion).p_value < SIGNIFICANCE_LEVEL
        for _ in range(n_trials)
    )
    assert n_significant / n_trials < SIGNIFICANCE_LEVEL + 3 * (SIGNIFICANCE_LEVEL / n_trials) ** 0.5


def test_p_values_increase_with_the_number_of_comparisons() -> None:
    assert holm_correction([0.02]) == [0.02]
    assert holm_correction([0.02, 0.03, 0.9]) == pytest.approx([0.06, 0.06, 0.9])
    assert max(holm_correction([0.5] * 4)) == 1
