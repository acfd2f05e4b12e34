"""The leak alarm detects leaks with few false alarms."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from mlflow import MlflowClient
from scipy import stats

from freqfilter.config import resolve
from freqfilter.data.posterior import MMSEEstimator
from freqfilter.data.signal_model import SignalModel, realization_windows
from freqfilter.evaluation.limits import ValidationLimit
from freqfilter.evaluation.monitor import leak
from freqfilter.training.reports import EpochReport
from tests.conftest import SEED, SMALL, Typed, all_runs, artifacts, many, options


def report(blocks: np.ndarray) -> EpochReport:
    return EpochReport(3, 0.1, 1, 1e-3, 1, val_loss=0.1, val_mse=float(blocks.mean()), val_blocks=tuple(blocks))


def test_the_alarm_requires_significance() -> None:
    limit = np.full(9, 0.2)
    known = ValidationLimit(0.2, tuple(limit))
    scatter = np.linspace(-1, 1, 9) * 0.01
    found = leak(report(limit - 0.1 + scatter), known, n_validations=50)
    assert found
    assert found.name == "leak"
    assert "is below the limit 0.2" in found.line
    assert found.line.endswith("try split=independent")
    assert leak(report(limit + 0.01 + scatter), known, n_validations=50) is None
    assert leak(report(limit - 0.002 + scatter), known, n_validations=50) is None
    assert leak(report(limit), known, n_validations=50) is None


def test_without_a_limit_or_blocks_there_is_no_alarm() -> None:
    blocks = np.full(9, 0.01)
    assert leak(report(blocks), None, n_validations=1) is None
    assert leak(report(blocks[:3]), ValidationLimit(0.2, (0.2, 0.3, 0.25)), n_validations=1) is None


def test_the_alarm_threshold_depends_on_the_number_of_validations() -> None:
    limit = np.full(9, 0.2)
    differences = np.linspace(-1, 1, 9)
    threshold = stats.t.ppf(1e-3, 8)
    differences = differences / (differences.std(ddof=1) / 3) + 1.1 * threshold
    known = ValidationLimit(0.2, tuple(limit))
    epoch = report(limit + 0.01 * differences)
    assert leak(epoch, known, n_validations=1)
    assert leak(epoch, known, n_validations=1000) is None


N_RUNS = many(40, 1000)


@pytest.mark.slow
@pytest.mark.soak
def test_false_alarms_are_as_rare_as_stated() -> None:
    """Runs on independent noise, without leaks, approach the limit over thirty validations."""
    stated = SignalModel.from_params(
        resolve({"n_samples": "1000", "duration_s": "10", "window_length": "8", "noise_std": "0.3"}).signals
    )
    limit = MMSEEstimator.from_model(stated, n_samples=8)
    targets = limit.components.unfold(1, 8, 1).transpose(0, 1)
    n_alarms = 0
    for run in range(N_RUNS):
        windows = realization_windows(stated, 8, (10_000 * SEED + run) % 2**32)
        mixtures = windows.mixtures[0].unfold(0, 8, 1)
        best = limit.posterior(mixtures).causal
        blocks = windows.block_ids(torch.arange(0, len(windows), 4))
        limit_errors = _block_errors(best, targets, blocks)
        # The estimate is shrunk, too confident and perturbed, with decreasing weights.
        confident = MMSEEstimator(limit.components, 0.2, 8).posterior(mixtures).causal
        perturbation = torch.randn(best.shape, generator=torch.Generator().manual_seed(run))
        known = ValidationLimit(float(limit_errors.mean()), tuple(limit_errors))
        for epoch in range(1, 31):
            estimate = best + (0.3 * (confident - best) + 0.1 * perturbation - 0.2 * best) / epoch
            found = leak(report(_block_errors(estimate, targets, blocks)), known, n_validations=30)
            n_alarms += found is not None
            if found:
                break
    assert n_alarms <= max(1, N_RUNS // 1000) if N_RUNS >= 1000 else n_alarms == 0


def _block_errors(estimate: torch.Tensor, targets: torch.Tensor, blocks: torch.Tensor) -> np.ndarray:
    errors = (estimate - targets).square().mean(dim=(1, 2)).double()
    return np.array([float(errors[blocks == block].mean()) for block in torch.unique(blocks)])


def test_a_leaking_run_is_reported_and_tagged_and_another_is_not(typed: Typed, folder: Path) -> None:
    noisy = {
        "frequencies_hz": "[3, 9]",
        "noise_std": "2",
        "n_samples": "1200",
        "duration_s": "12",
        "window_length": "20",
    }
    given = noisy | {"hidden_size": "64", "learning_rate": "0.01", "batch_size": "64", "epochs": "16", "threads": "1"}
    assert typed("original", *options(given)) == (0, "")
    (run,) = all_runs()
    assert "validation data leak from training" in run.data.tags["diagnosis.leak"]
    (version,) = MlflowClient().search_model_versions()
    assert "leak" in version.tags["diagnoses"].split()
    assert "evaluation/overlap.json" in artifacts(run)
    without_leak = given | {"noise": "fixed", "register": "false", "epochs": "10", "windows_per_epoch": "null"}
    assert typed("train", *options(without_leak)) == (0, "")
    assert "diagnosis.leak" not in all_runs()[-1].data.tags


def test_a_blocked_split_prints_that_it_has_no_limit(
    typed: Typed, capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    given = SMALL | {"noise": "fixed", "split": "blocked", "register": "false"}
    assert typed("train", *options(given)) == (0, "")
    assert "val/limit_mse" not in all_runs()[0].data.metrics
    assert "test/limit_mse" in all_runs()[0].data.metrics
