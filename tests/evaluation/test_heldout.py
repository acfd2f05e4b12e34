from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from freqfilter.config import Params, resolve
from freqfilter.data.npz import PARTS
from freqfilter.data.posterior import MMSEEstimator, WindowMMSE
from freqfilter.data.signal_model import SignalModel, realization_windows
from freqfilter.errors import UserError
from freqfilter.evaluation.heldout import (
    fresh_seeds,
    score_realizations,
    score_with_limit,
    stratified_parts,
    summarize,
)
from freqfilter.evaluation.limits import LIMIT
from freqfilter.evaluation.metrics import MODEL, compare
from freqfilter.pipelines.run_metrics import fresh_metrics
from tests.conftest import SMALL, Typed, all_runs, artifacts, options

CPU = torch.device("cpu")


def scored(network: torch.nn.Module, params: Params, noise_seeds: Sequence[int]) -> dict[int, pd.DataFrame]:
    return dict(score_realizations(score_with_limit({MODEL: network}, params), params, noise_seeds, device=CPU))


class LimitNetwork(torch.nn.Module):
    """Network that returns the estimates of the limit."""

    def __init__(self) -> None:
        super().__init__()
        model = SignalModel.from_params(resolve(SMALL).signals)
        self.estimator = WindowMMSE(MMSEEstimator.from_model(model, n_samples=20))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        estimates: torch.Tensor = self.estimator(inputs)
        return estimates


def test_the_limit_has_ratio_one_on_every_realization() -> None:
    params = resolve(SMALL)
    scores = summarize(scored(LimitNetwork(), params, range(10_000, 10_004)))
    assert scores.per_realization.index.tolist() == [10_000, 10_001, 10_002, 10_003]
    np.testing.assert_allclose(scores.per_realization["mse_over_limit"], 1)
    assert scores.ratio_interval == pytest.approx((1, 1))
    assert scores.per_realization["mse"].nunique() == 4
    metrics = fresh_metrics(scores)
    assert metrics["fresh/mse_over_limit"] == pytest.approx(1)
    assert metrics["fresh/db_over_limit"] == pytest.approx(0, abs=1e-6)
    assert metrics["fresh/mse_low"] < metrics["fresh/mse"] < metrics["fresh/mse_high"]


class ZeroNetwork(torch.nn.Module):
    """Network that predicts zero."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(inputs[..., :1])


def test_the_mean_equals_that_of_all_windows_and_its_interval_narrows() -> None:
    params = resolve(SMALL)
    errors = scored(ZeroNetwork(), params, range(10_000, 10_016))
    few, many = summarize({seed: errors[seed] for seed in range(10_000, 10_004)}), summarize(errors)
    windows = realization_windows(SignalModel.from_params(params.signals), 20, *range(10_000, 10_016))
    expected = compare({MODEL: ZeroNetwork()}, windows, frequencies_hz=params.signals.frequencies_hz, device=CPU).table
    np.testing.assert_allclose(many.mean.loc[MODEL], expected["mse"].to_numpy(), rtol=1e-6)
    assert many.mean.index.tolist() == [MODEL, LIMIT]
    assert many.ratio_interval is not None
    assert few.ratio_interval is not None
    assert np.ptp(many.ratio_interval) < np.ptp(few.ratio_interval)


def test_a_signal_too_long_for_the_limit_has_a_mean_and_no_ratio() -> None:
    params = resolve(SMALL | {"n_samples": "20100", "duration_s": "20"})
    scores = summarize(scored(ZeroNetwork(), params, [10_000, 10_001]))
    assert scores.ratio_interval is None
    assert scores.per_realization.columns.tolist() == ["mse"]
    assert not [name for name in fresh_metrics(scores) if "limit" in name]


def test_the_interval_of_the_mean_uses_students_t() -> None:
    params = resolve(SMALL)
    scores = summarize(scored(LimitNetwork(), params, range(10_000, 10_005)))
    mse = scores.per_realization["mse"].to_numpy()
    expected = stats.t.interval(0.95, 4, loc=mse.mean(), scale=mse.std(ddof=1) / 5**0.5)
    assert scores.mse_interval == pytest.approx(expected)


def test_a_component_with_limit_zero_has_no_ratio() -> None:
    params = resolve(SMALL | {"noise_std": "0", "frequencies_hz": "[1, 3.3]"})
    scores = summarize(scored(ZeroNetwork(), params, [10_000, 10_001]))
    assert (scores.mean.loc[LIMIT] == 0).any()
    assert all(math.isfinite(value) for value in fresh_metrics(scores).values())


def test_noise_seeds_of_the_training_are_skipped() -> None:
    assert fresh_seeds([resolve()], 3) == [10_000, 10_001, 10_002]
    used = resolve({"validation_noise_seed": "10001", "validation_realizations": "2"})
    assert fresh_seeds([resolve(), used], 3) == [10_000, 10_003, 10_004]


def test_a_model_of_a_data_file_has_no_fresh_realizations() -> None:
    with pytest.raises(UserError, match="a model of a data file has no signal model"):
        fresh_seeds([resolve({"data_file": "x.npz"})], 1)


def test_evaluate_scores_fresh_realizations(typed: Typed) -> None:
    assert typed("train", *options(SMALL)) == (0, "")
    assert typed("evaluate", "--realizations", "3") == (0, "")
    run = all_runs()[-1]
    metrics = run.data.metrics
    assert run.data.params["realizations"] == "3"
    assert metrics["fresh/realizations"] == 3
    assert metrics["fresh/mse_over_limit_low"] < metrics["fresh/mse_over_limit"] < metrics["fresh/mse_over_limit_high"]
    assert "evaluation/fresh_realizations.csv" in artifacts(run)


@pytest.mark.parametrize("order", ["interleaved", "grouped"])
def test_each_part_of_a_file_has_windows_of_every_component(order: str, tmp_path: Path) -> None:
    path, n_windows = tmp_path / "windows.npz", 44
    selector = np.arange(n_windows) % 4 if order == "interleaved" else np.arange(n_windows) // 11
    inputs = np.zeros((n_windows, 20, 5), dtype=np.float32)
    inputs[np.arange(n_windows), :, 1 + selector] = 1
    np.savez(path, **{f"{kind}_{part}": inputs[..., :width] for part in PARTS for kind, width in (("X", 5), ("y", 1))})
    params = resolve(SMALL | {"data_file": str(path)})
    tables = dict(score_realizations({MODEL: torch.nn.Identity()}, params, None, device=CPU))
    assert len(tables) == 11
    for table in tables.values():
        assert table.columns.tolist() == ["all", "1hz", "3hz", "5hz", "7hz"]


def test_parts_divide_the_windows_and_keep_neighbours_together() -> None:
    selectors = torch.from_numpy(np.random.default_rng(0).integers(0, 3, 1000))
    parts = stratified_parts(selectors, 20)
    assert torch.equal(torch.cat(parts).sort().values, torch.arange(1000))
    sizes = torch.stack([torch.bincount(selectors[part], minlength=3) for part in parts])
    assert (sizes.max(dim=0).values - sizes.min(dim=0).values).max() <= 1
    for component in range(3):
        in_order = torch.cat([part[selectors[part] == component] for part in parts])
        assert torch.equal(in_order, in_order.sort().values)
