"""Comparison of two runs' results, and the setting of runs to interrupt."""

from __future__ import annotations

import signal
import subprocess
import tempfile
from dataclasses import dataclass

import mlflow
import torch
from mlflow import MlflowClient
from mlflow.entities import Run

from freqfilter.tracked_names import SYSTEM
from tests.conftest import SMALL, SMALL_RECORDINGS, artifacts, is_repeatable

# Everything that is random or has a state; long enough to interrupt.
RICH = SMALL | {
    "epochs": "12",
    "dropout": "0.3",
    "scheduler_patience": "1",
    "learning_rate": "0.05",
    "checkpoint_every": "4",
    "early_stopping_patience": "50",
}
# The same with recordings whose state is carried; dropout and the carried state are in each checkpoint.
CARRIED = RICH | SMALL_RECORDINGS | {"recordings_per_epoch": "40", "n_samples": "1200", "duration_s": "1.2"}
NOT_COMPARED = {"run_dir", "checkpoint_minutes", "checkpoints_kept"}  # parameters that do not change results


def end_by(process: subprocess.Popen[str], number: signal.Signals) -> str:
    """Send a signal, a second time if it can be handled, and return the remaining output."""
    process.send_signal(number)
    if number is not signal.SIGKILL:
        process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    return output


@dataclass(frozen=True)
class Outcome:
    """Results of a finished run that are equal in every repetition."""

    params: dict[str, str]
    metrics: dict[str, list[tuple[int, float]]]
    files: set[str]
    weights: dict[str, torch.Tensor]

    @classmethod
    def of(cls, run: Run) -> Outcome:
        assert run.info.status == "FINISHED"
        for name in run.data.metrics:
            if name.startswith(SYSTEM):  # their number depends on time; none is duplicated
                points = history(run, name)
                assert [step for step, _ in points] == list(range(1, len(points) + 1))
        return cls(
            {name: value for name, value in run.data.params.items() if name not in NOT_COMPARED},
            {name: history(run, name) for name in run.data.metrics if not name.startswith(SYSTEM)},
            {name for name in artifacts(run) if not name.startswith("source/")},
            weights(run),
        )

    def assert_same(self, run: Run) -> None:
        """Assert that a run has the same results, and one model and one version with these weights."""
        other = Outcome.of(run)
        assert other.params == self.params
        assert other.files == self.files
        assert other.metrics == self.metrics
        self.assert_weights(other.weights)
        client, experiment_id, run_id = MlflowClient(), run.info.experiment_id, run.info.run_id
        versions = client.search_model_versions(f"run_id = '{run_id}'")
        assert len(versions) == 1
        models = client.search_logged_models([experiment_id], filter_string=f"source_run_id = '{run_id}'")
        assert [(model.status, f"models:/{model.model_id}") for model in models] == [("READY", versions[0].source)]
        self.assert_weights(mlflow.pyfunc.load_model(versions[0].source).unwrap_python_model().module.state_dict())

    def assert_weights(self, other: dict[str, torch.Tensor]) -> None:
        assert other.keys() == self.weights.keys()
        assert all(torch.equal(other[name], weight) for name, weight in self.weights.items())


def history(run: Run, metric: str) -> list[tuple[int, float]]:
    """Steps and values of a metric sorted by step, duplicates included."""
    points = MlflowClient().get_metric_history(run.info.run_id, metric)
    return sorted((point.step, point.value if is_repeatable(metric) else 0.0) for point in points)


def weights(run: Run) -> dict[str, torch.Tensor]:
    with tempfile.TemporaryDirectory() as folder:
        path = mlflow.artifacts.download_artifacts(
            run_id=run.info.run_id, artifact_path="models/best_model.pth", dst_path=folder
        )
        found: dict[str, torch.Tensor] = torch.load(path, weights_only=True)
    return found
