"""Ratios of mean squared errors: their intervals have the stated coverage, and there is none to a limit of zero."""

from __future__ import annotations

import math
import re
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure
from scipy import stats

from freqfilter.config import resolve
from freqfilter.config.schema import Bounds
from freqfilter.data.signal_model import SignalModel, realization_windows
from freqfilter.data.windows import block_means
from freqfilter.evaluation.gate import check_leak, check_limit
from freqfilter.evaluation.heldout import summarize
from freqfilter.evaluation.limits import LIMIT
from freqfilter.evaluation.metrics import MODEL, Comparison, half_width, limit_ratio, ratio_interval
from freqfilter.evaluation.significance import paired_difference, paired_test
from freqfilter.pipelines.model_card import heldout_summary, limit_summary, scores_table
from freqfilter.pipelines.run_metrics import epoch_metrics, fresh_metrics, score_metrics
from freqfilter.plots.limit import decision
from freqfilter.plots.training import Curves, side_by_side, training_loss
from freqfilter.training.reports import EpochReport
from tests.conftest import SEED, SMALL, Typed, all_runs, many, options, say

MIN_COVERAGE = 0.93  # of intervals of 95 %
N_TRIALS = many(1500, 20_000)

Pairs = tuple[np.ndarray, np.ndarray]


def near_the_limit(random: np.random.Generator, n: int) -> Pairs:
    """Errors 0.2 % above a limit that varies by 7 % from block to block."""
    limit = 0.2 * random.gamma(200, 1 / 200, n)
    return limit * (1.002 + 0.002 * random.standard_normal(n)), limit


def skewed(random: np.random.Generator, n: int) -> Pairs:
    limit = random.lognormal(0, 0.5, n)
    return 1.2 * limit * random.lognormal(-0.045, 0.3, n), limit


def independent(random: np.random.Generator, n: int) -> Pairs:
    return 5 * random.gamma(100, 1 / 100, n), random.gamma(100, 1 / 100, n)


def coverage(interval: Callable[[np.ndarray, np.ndarray], tuple[float, float]], draw: Callable[..., Pairs], n: int,
             truth: float) -> float:  # fmt: skip
    random = np.random.default_rng([SEED, n])
    intervals = [interval(*draw(random, n)) for _ in range(N_TRIALS)]
    return sum(low <= truth <= high for low, high in intervals) / N_TRIALS


def fieller(numerator: np.ndarray, denominator: np.ndarray) -> tuple[float, float]:
    return ratio_interval(numerator, denominator) or (-math.inf, math.inf)


@pytest.mark.soak
@pytest.mark.parametrize("n", [2, 3, 9, 24])
@pytest.mark.parametrize(("draw", "truth"), [(near_the_limit, 1.002), (skewed, 1.2), (independent, 5)])
def test_the_interval_of_a_ratio_has_its_stated_coverage(draw: Callable[..., Pairs], truth: float, n: int) -> None:
    assert coverage(fieller, draw, n, truth) >= MIN_COVERAGE


@pytest.mark.soak
def test_the_intervals_of_a_mean_and_of_a_difference_have_their_stated_coverage() -> None:
    def mean(values: np.ndarray, _: np.ndarray) -> tuple[float, float]:
        return float(values.mean()) - half_width(values), float(values.mean()) + half_width(values)

    def difference(one: np.ndarray, other: np.ndarray) -> tuple[float, float]:
        found = paired_difference(one, other)
        return found.low, found.high

    assert coverage(mean, near_the_limit, 3, 0.2 * 1.002) >= MIN_COVERAGE
    assert coverage(difference, independent, 6, 4) >= MIN_COVERAGE


def test_errors_of_neighbouring_blocks_are_hardly_correlated() -> None:
    """Windows of a second share noise with windows of the next second, so that blocks are longer."""
    params = resolve({"n_samples": "4099", "duration_s": "40.98", "window_length": "100"})
    windows = realization_windows(SignalModel.from_params(params.signals), 100, 1)
    blocks = windows.block_ids(torch.arange(0, len(windows), windows.n_components))
    random, errors = np.random.default_rng(SEED), []
    for _ in range(300):
        powers = np.cumsum(np.append(0, random.standard_normal(4099) ** 2))
        errors.append(block_means(torch.from_numpy(powers[100:] - powers[:-100]), blocks))
    table = np.array(errors)
    assert table.shape[1] == 10
    assert abs(np.corrcoef(table[:, :-1].flatten(), table[:, 1:].flatten())[0, 1]) < 0.12


def test_the_interval_has_the_ratios_that_a_paired_t_test_accepts() -> None:
    numerator, denominator = independent(np.random.default_rng(SEED), 7)
    found = ratio_interval(numerator, denominator, confidence=0.9)
    assert found
    for end in found:
        assert stats.ttest_1samp(numerator - end * denominator, 0).pvalue == pytest.approx(0.1)
    assert found[0] < numerator.mean() / denominator.mean() < found[1]
    scaled = ratio_interval(3 * numerator, 2 * denominator, confidence=0.9)
    assert scaled == pytest.approx(tuple(1.5 * end for end in found))


def test_without_enough_data_the_interval_is_unknown_and_said_to_be() -> None:
    assert ratio_interval(np.array([2.0]), np.array([1.0])) is None
    assert ratio_interval(np.array([1.0, 2.0]), np.array([0.1, 2.0])) is None, "the limit may be zero"
    assert ratio_interval(np.array([2.0, 2.2]), np.array([1.0, 1.1])) == pytest.approx((2, 2))
    metrics = score_metrics(compared([0.3], [0.2]))
    assert metrics["test/mse_over_limit"] == pytest.approx(1.5)
    assert "test/mse_over_limit_low" not in metrics
    assert limit_summary(metrics) == "1.500 × the limit (95 % interval unknown, too little data)"
    assert score_metrics(compared([0.3, 0.31], [0.2, 0.2]))["test/mse_over_limit_low"] < 1.5


TINY = 1e-71  # the limit's error without noise, which is rounding


def compared(model: list[float], limit: list[float]) -> Comparison:
    """Scores of a model and of the limit on blocks."""
    blocks = pd.DataFrame([model, limit], index=[MODEL, LIMIT])
    columns = ("mse", "rmse", "mae", "r2", "pearson_r", "sdr_db")
    rows = {(name, part): [row.mean()] * 6 for name, row in blocks.iterrows() for part in ("all", "5hz")}
    table = pd.DataFrame.from_dict(rows, orient="index", columns=list(columns))
    table.index = pd.MultiIndex.from_tuples(list(rows), names=["estimator", "component"])
    return Comparison(table, blocks, blocks)


def test_there_is_no_ratio_to_a_limit_of_zero() -> None:
    assert limit_ratio(0.1, TINY) is None
    assert limit_ratio(0.1, 0.05) == 2
    scores = compared([0.1, 0.2, 0.3], [TINY, 0.0, TINY])
    metrics = score_metrics(scores)
    assert not [name for name in metrics if "over_limit" in name]
    assert limit_summary(metrics) == "limit zero, no ratio to it"
    assert limit_summary({}) == "limit unknown"
    assert "e-" not in scores_table(scores.table, "simple")
    report = EpochReport(1, 0.1, 1, 1e-3, 1, val_loss=0.1, val_mse=0.1)
    assert not [name for name in epoch_metrics(report, val_limit_mse=TINY) if "over_limit" in name]
    errors = {seed: pd.DataFrame({"all": {MODEL: 0.1 + seed, LIMIT: TINY}}) for seed in range(3)}
    fresh = summarize(errors)
    assert fresh.mse_over_limit is None
    assert fresh.per_realization["mse_over_limit"].isna().all()
    assert not [name for name in fresh_metrics(fresh) if "over_limit" in name]
    assert heldout_summary(fresh_metrics(fresh)).endswith("limit zero, no ratio to it")


def test_a_run_without_noise_states_that_its_limit_is_zero(
    typed: Typed, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, stdout, _ = say(["train", *options(SMALL | {"noise_std": "0", "epochs": "1"})], capsys, monkeypatch)
    assert code == 0
    assert "limit: zero on the validation windows; no ratio to it" in stdout
    assert "\nlimit zero, no ratio to it\n" in stdout
    assert "× the limit" not in stdout
    assert not re.search(r"e-[3-9]\d", stdout), "rounding is shown as a limit"
    (run,) = all_runs()
    assert not [name for name in run.data.metrics if "over_limit" in name]
    assert "limit zero, no ratio to it" in run.data.tags["mlflow.note.content"]
    code, stdout, _ = say(["evaluate", "--realizations", "3"], capsys, monkeypatch)
    assert code == 0
    assert "× the limit" not in stdout


def test_the_gate_has_no_bound_on_a_ratio_to_zero() -> None:
    errors = pd.DataFrame({"all": [0.21, 0.22, 0.2], "5hz": [0.1, 0.1, 0.1]})
    limit = pd.DataFrame({"all": [0.205, 0.214, 0.196], "5hz": [TINY, TINY, TINY]})
    near, zero = check_limit(errors, limit, Bounds(max_mse_ratio=1.05))
    assert near.passed
    assert near.summary == "1.0244 (1.0138 to 1.0329) × the limit, at most 1.05"
    assert (zero.passed, zero.summary) == (None, "the limit is zero, there is no ratio to it")
    assert check_limit(errors, limit, Bounds(max_mse_ratio=1.03))[0].passed is False, "the upper end is above"
    assert check_limit(errors.iloc[:1], limit, Bounds(max_mse_ratio=9))[0].passed is False, "no interval of one"


def test_the_gate_reads_both_diagnoses_of_leaks() -> None:
    assert check_leak("overfitting", Bounds()).passed
    for diagnoses in ("leak", "overfitting overlap", "overlap leak"):
        assert check_leak(diagnoses, Bounds()).passed is False
    assert check_leak("overlap", Bounds()).summary == "its training run had the same data in two of its splits"


def labels(figure: Figure) -> list[str]:
    legends = [axes.get_legend_handles_labels()[1] for axes in figure.axes]
    return [label for each in legends for label in each]


def test_charts_name_a_limit_of_zero_and_keep_their_axes() -> None:
    history = [EpochReport(n, 0.1 / n, 1, 1e-3, 1, val_loss=0.1, val_mse=0.1 / n) for n in (1, 2)]
    curves = Curves(pd.Series([0.1, 0.05], index=[1, 2]), None, TINY, None)
    for figure in (training_loss(history, val_limit_mse=TINY), side_by_side({"one": curves})):
        assert "limit on validation: zero" in labels(figure)
        assert figure.axes[0].get_yscale() == "log"
        assert figure.axes[0].get_ylim()[0] > 0.01


def test_a_decision_is_drawn_without_an_interval() -> None:
    candidate, champion = np.array([1.0, 2.0]), np.array([0.1, 2.0])
    test = paired_test(candidate, champion)
    assert (test.low, test.high) == (-math.inf, math.inf)
    errors = {name: pd.DataFrame({"all": mse}) for name, mse in (("candidate", candidate), ("champion", champion))}
    decision(errors, test).canvas.draw()
