"""How several filters stand on the same realizations."""

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


def errors_of(**rows: np.ndarray) -> dict[int, pd.DataFrame]:
    """Errors by noise seed, the same for all components together and for one."""
    count = len(next(iter(rows.values())))
    return {
        seed: pd.DataFrame({"all": {name: row[seed] for name, row in rows.items()}}).assign(**{"1hz": 1.0})
        for seed in range(count)
    }


def test_a_filter_one_percent_worse_is_seen_through_noise_that_both_share() -> None:
    rng = np.random.default_rng(SEED)
    shared = 0.2 + 0.02 * rng.standard_normal(12)
    worse = shared * (1.01 + 0.001 * rng.standard_normal(12))
    found = pairwise_comparisons(errors_of(first=shared, worse=worse, limit=0.98 * shared), ["first", "worse"])
    assert found["first"].difference is None
    assert found["first"].fresh.ratio_interval == pytest.approx((1 / 0.98, 1 / 0.98))
    assert found["worse"].against == "first"
    assert found["worse"].summary.startswith("worse by 1.0")
    turned = pairwise_comparisons(errors_of(first=worse, better=shared), ["first", "better"])
    assert turned["better"].summary.startswith("better by")
    assert turned["better"].fresh.ratio_interval is None


@pytest.mark.soak
def test_of_equal_filters_none_is_called_different_more_often_than_stated() -> None:
    """Errors in a regular way: the same size, and a sign that chance gives."""
    rng = np.random.default_rng(SEED)
    tried = many(400, 20_000)
    champion, step = np.full(12, 0.2), 0.001 * (1 + np.arange(12))
    called = sum(
        paired_difference(champion + step * rng.choice([-1, 1], 12), champion).p_value < SIGNIFICANCE_LEVEL
        for _ in range(tried)
    )
    assert called / tried < SIGNIFICANCE_LEVEL + 3 * (SIGNIFICANCE_LEVEL / tried) ** 0.5


def test_many_comparisons_are_judged_more_strictly() -> None:
    assert holm_correction([0.02]) == [0.02]
    assert holm_correction([0.02, 0.03, 0.9]) == pytest.approx([0.06, 0.06, 0.9])
    assert max(holm_correction([0.5] * 4)) == 1
