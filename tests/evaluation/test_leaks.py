"""The sample overlap counts what is shared, and the alarm goes off where something leaks and nowhere else."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from mlflow import MlflowClient
from scipy import stats

from freqfilter.config import resolve
from freqfilter.data.posterior import MMSEEstimator
from freqfilter.data.signal_model import SignalModel, realization_windows
from freqfilter.data.splits import Splits
from freqfilter.data.windows import TensorWindows, WindowDataset
from freqfilter.evaluation.limits import ValidationLimit
from freqfilter.evaluation.monitor import SampleOverlap, leak, measure_overlap
from freqfilter.training.reports import EpochReport
from tests.conftest import SEED, SMALL, Typed, all_runs, artifacts, many, options


def stored(windows: WindowDataset) -> TensorWindows:
    return TensorWindows(*windows.batch(torch.arange(len(windows))))


def overlaps(**overrides: str) -> tuple[SampleOverlap, SampleOverlap]:
    """The overlap of a split, and that of the same windows as a file would hold them."""
    splits = Splits.from_params(resolve(SMALL | {"noise": "fixed"} | overrides))
    train, validation = splits.train, splits.validation
    return (
        measure_overlap(train, validation, fresh_noise=False),
        measure_overlap(stored(train), stored(validation), fresh_noise=False),
    )


def test_validation_on_noise_of_its_own_shares_nothing() -> None:
    of_views, of_file = overlaps()
    assert of_views == of_file
    assert of_views.n_shared == 0
    assert of_views.n_samples == 399  # the first has no predecessor


def test_a_random_split_shares_nearly_every_sample() -> None:
    of_views, of_file = overlaps(split="random", allow_shared_realizations="true")
    assert of_views == of_file
    assert of_views.n_shared > 0.99 * of_views.n_samples


@pytest.mark.parametrize("window_length", ["1", "2", "20"])
def test_blocks_with_a_gap_share_nothing_and_use_all_the_rest(window_length: str) -> None:
    params = resolve(SMALL | {"noise": "fixed", "split": "blocked", "window_length": window_length})
    splits = Splits.from_params(params)
    of_views = measure_overlap(splits.train, splits.validation, fresh_noise=False)
    assert of_views.n_shared == 0
    n_starts = 400 - int(window_length) + 1
    n_validation = math.ceil(0.1 * n_starts)
    assert len(splits.validation) == 4 * n_validation
    assert len(splits.train) == splits.n_epoch == 4 * (n_starts - n_validation - (int(window_length) - 1))


def test_fresh_noise_is_shared_with_nobody() -> None:
    splits = Splits.from_params(resolve(SMALL))
    by_rule = measure_overlap(splits.train, splits.validation, fresh_noise=splits.fresh_noise)
    by_content = measure_overlap(stored(splits.epoch(1)), splits.validation, fresh_noise=False)
    assert by_rule == by_content
    assert by_rule.n_shared == 0


def test_a_single_shared_window_is_counted_sample_by_sample() -> None:
    splits = Splits.from_params(resolve(SMALL | {"noise": "fixed"}))
    train, validation = stored(splits.train), stored(splits.validation)
    train.inputs[7] = validation.inputs[40]
    assert measure_overlap(train, validation, fresh_noise=False).n_shared == 19


def report(blocks: np.ndarray) -> EpochReport:
    return EpochReport(3, 0.1, 1, 1e-3, 1, val_loss=0.1, val_mse=float(blocks.mean()), val_blocks=tuple(blocks))


def test_the_alarm_needs_more_than_chance() -> None:
    limit = np.full(9, 0.2)
    known = ValidationLimit(0.2, tuple(limit))
    scatter = np.linspace(-1, 1, 9) * 0.01
    found = leak(report(limit - 0.1 + scatter), known, n_validations=50)
    assert found
    assert found.name == "leak"
    assert "lies below 0.2" in found.line
    assert found.line.endswith("try split=independent")
    assert leak(report(limit + 0.01 + scatter), known, n_validations=50) is None
    assert leak(report(limit - 0.002 + scatter), known, n_validations=50) is None
    assert leak(report(limit), known, n_validations=50) is None


def test_without_a_limit_or_blocks_there_is_no_alarm() -> None:
    blocks = np.full(9, 0.01)
    assert leak(report(blocks), None, n_validations=1) is None
    assert leak(report(blocks[:3]), ValidationLimit(0.2, (0.2, 0.3, 0.25)), n_validations=1) is None


def test_the_alarm_asks_for_more_the_more_often_it_looks() -> None:
    limit = np.full(9, 0.2)
    differences = np.linspace(-1, 1, 9)
    at_once = stats.t.ppf(1e-3, 8)
    differences = differences / (differences.std(ddof=1) / 3) + 1.1 * at_once
    known = ValidationLimit(0.2, tuple(limit))
    found = report(limit + 0.01 * differences)
    assert leak(found, known, n_validations=1)
    assert leak(found, known, n_validations=1000) is None


HONEST_RUNS = many(40, 1000)


@pytest.mark.slow
@pytest.mark.soak
def test_honest_runs_are_hardly_ever_accused() -> None:
    """Filters that approach the limit over thirty validations, each run on noise of its own, with nothing leaked."""
    stated = SignalModel.from_params(
        resolve({"n_samples": "1000", "duration_s": "10", "window_length": "8", "noise_std": "0.3"}).signals
    )
    limit = MMSEEstimator.from_model(stated, n_samples=8)
    targets = limit.components.unfold(1, 8, 1).transpose(0, 1)
    accused = 0
    for run in range(HONEST_RUNS):
        windows = realization_windows(stated, 8, (10_000 * SEED + run) % 2**32)
        mixtures = windows.mixtures[0].unfold(0, 8, 1)
        best = limit.posterior(mixtures).causal
        blocks = windows.block_ids(torch.arange(0, len(windows), 4))
        of_limit = _block_errors(best, targets, blocks)
        # Errors of a filter: too cautious, too bold, and on its own way, ever less of each.
        bold = MMSEEstimator(limit.components, 0.2, 8).posterior(mixtures).causal
        wobble = torch.randn(best.shape, generator=torch.Generator().manual_seed(run))
        known = ValidationLimit(float(of_limit.mean()), tuple(of_limit))
        for epoch in range(1, 31):
            estimate = best + (0.3 * (bold - best) + 0.1 * wobble - 0.2 * best) / epoch
            found = leak(report(_block_errors(estimate, targets, blocks)), known, n_validations=30)
            accused += found is not None
            if found:
                break
    assert accused <= max(1, HONEST_RUNS // 1000) if HONEST_RUNS >= 1000 else accused == 0


def _block_errors(estimate: torch.Tensor, targets: torch.Tensor, blocks: torch.Tensor) -> np.ndarray:
    errors = (estimate - targets).square().mean(dim=(1, 2)).double()
    return np.array([float(errors[blocks == block].mean()) for block in torch.unique(blocks)])


def test_a_leaking_run_is_told_so_and_tagged_and_an_honest_one_is_not(typed: Typed, folder: Path) -> None:
    loud = {
        "frequencies_hz": "[3, 9]",
        "noise_std": "2",
        "n_samples": "1200",
        "duration_s": "12",
        "window_length": "20",
    }
    given = loud | {"hidden_size": "64", "learning_rate": "0.01", "batch_size": "64", "epochs": "16", "threads": "1"}
    assert typed("original", *options(given)) == (0, "")
    (run,) = all_runs()
    assert "they leak from training" in run.data.tags["diagnosis.leak"]
    (version,) = MlflowClient().search_model_versions()
    assert "leak" in version.tags["diagnoses"].split()
    assert "evaluation/overlap.json" in artifacts(run)
    honest = given | {"noise": "fixed", "register": "false", "epochs": "10", "windows_per_epoch": "null"}
    assert typed("train", *options(honest)) == (0, "")
    assert "diagnosis.leak" not in all_runs()[-1].data.tags


def test_a_blocked_split_has_no_limit_and_says_so(
    typed: Typed, capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    given = SMALL | {"noise": "fixed", "split": "blocked", "register": "false"}
    assert typed("train", *options(given)) == (0, "")
    assert "val/limit_mse" not in all_runs()[0].data.metrics
    assert "test/limit_mse" in all_runs()[0].data.metrics
