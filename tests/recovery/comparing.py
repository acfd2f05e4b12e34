"""What it means that two runs came to the same, and how the program is started to be interrupted."""

from __future__ import annotations

import signal
import subprocess
import tempfile
from dataclasses import dataclass

import mlflow
import torch
from mlflow import MlflowClient
from mlflow.entities import Run

from freqfilter.tracked_names import SYSTEM, is_repeatable
from tests.conftest import SMALL, artifacts

# Everything that is random or has a state of its own; long enough to be interrupted.
RICH = SMALL | {
    "epochs": "12",
    "dropout": "0.3",
    "scheduler_patience": "1",
    "learning_rate": "0.05",
    "checkpoint_every": "4",
    "early_stopping_patience": "50",
}
WHERE_AND_WHEN = {"run_dir", "checkpoint_minutes", "checkpoints_kept"}  # parameters that change no number


def end_by(process: subprocess.Popen[str], number: signal.Signals) -> str:
    """End the program by a signal, twice where it could be hurried; what it says after that."""
    process.send_signal(number)
    if number is not signal.SIGKILL:
        process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    return output


@dataclass(frozen=True)
class Outcome:
    """All that a finished run came to, but for what differs from run to run."""

    params: dict[str, str]
    metrics: dict[str, list[tuple[int, float]]]
    files: set[str]
    weights: dict[str, torch.Tensor]

    @classmethod
    def of(cls, run: Run) -> Outcome:
        assert run.info.status == "FINISHED"
        for name in run.data.metrics:
            if name.startswith(SYSTEM):  # how many points there are depends on the time, each of them is there once
                points = history(run, name)
                assert [step for step, _ in points] == list(range(1, len(points) + 1))
        return cls(
            {name: value for name, value in run.data.params.items() if name not in WHERE_AND_WHEN},
            {name: history(run, name) for name in run.data.metrics if not name.startswith(SYSTEM)},
            {name for name in artifacts(run) if not name.startswith("source/")},
            weights(run),
        )

    def assert_same(self, run: Run) -> None:
        """Another run came to the very same, and has one whole model and one version, of these weights."""
        found = Outcome.of(run)
        assert found.params == self.params
        assert found.files == self.files
        assert found.metrics == self.metrics
        self.assert_weights(found.weights)
        client, experiment_id, run_id = MlflowClient(), run.info.experiment_id, run.info.run_id
        versions = client.search_model_versions(f"run_id = '{run_id}'")
        assert len(versions) == 1
        models = client.search_logged_models([experiment_id], filter_string=f"source_run_id = '{run_id}'")
        assert [(model.status, f"models:/{model.model_id}") for model in models] == [("READY", versions[0].source)]
        self.assert_weights(mlflow.pyfunc.load_model(versions[0].source).unwrap_python_model().module.state_dict())

    def assert_weights(self, found: dict[str, torch.Tensor]) -> None:
        assert found.keys() == self.weights.keys()
        assert all(torch.equal(found[name], weight) for name, weight in self.weights.items())


def history(run: Run, metric: str) -> list[tuple[int, float]]:
    """Steps and values in the order of their steps; what stands twice is there twice."""
    points = MlflowClient().get_metric_history(run.info.run_id, metric)
    return sorted((point.step, point.value if is_repeatable(metric) else 0.0) for point in points)


def weights(run: Run) -> dict[str, torch.Tensor]:
    with tempfile.TemporaryDirectory() as folder:
        path = mlflow.artifacts.download_artifacts(
            run_id=run.info.run_id, artifact_path="models/best_model.pth", dst_path=folder
        )
        found: dict[str, torch.Tensor] = torch.load(path, weights_only=True)
    return found
