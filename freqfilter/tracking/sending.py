"""How each kind of message from a run's outbox is told to MLflow."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.data.dataset import Dataset
from mlflow.entities import Dataset as DatasetEntity
from mlflow.entities import DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT

from freqfilter.tracking.outbox import Message

METRICS_AT_ONCE = 1000  # MLflow's own limit for a batch


def sender(run_id: str, folder: Path) -> Callable[[list[Message]], None]:
    """What delivers a run's messages.

    Args:
        run_id: The run.
        folder: Where the files are that messages name.
    """
    client = MlflowClient()

    def send(messages: list[Message]) -> None:
        message = messages[0]
        match message["kind"]:
            case "metrics":
                points = [point for batch in messages for point in _points(batch)]
                for first in range(0, len(points), METRICS_AT_ONCE):
                    client.log_batch(run_id, metrics=points[first : first + METRICS_AT_ONCE])
            case "params":
                client.log_batch(run_id, params=[Param(*item) for item in message["values"].items()])
            case "tags":
                client.log_batch(run_id, tags=[RunTag(*item) for item in message["values"].items()])
            case "no_tag":
                _delete_tag(client, run_id, message["name"])
            case "file":
                path = folder / message["path"]
                if path.exists():  # an old checkpoint may be gone
                    parent = Path(message["path"]).parent.as_posix()
                    client.log_artifact(run_id, str(path), None if parent == "." else parent)
            case "data":
                context = InputTag(MLFLOW_DATASET_CONTEXT, message["context"])
                client.log_inputs(run_id, datasets=[DatasetInput(DatasetEntity(**message["dataset"]), [context])])

    return send


def described(dataset: Dataset) -> dict[str, Any]:
    """A data set as a message holds it."""
    return {name: value for name, value in dataset.to_dict().items() if name in DatasetEntity._properties()}


def now_ms() -> int:
    """MLflow's time stamp of now."""
    return time.time_ns() // 1_000_000


def _points(batch: Message) -> list[Metric]:
    return [
        Metric(name, value, batch["time_ms"], batch["step"], model_id=batch["model_id"])
        for name, value in batch["values"].items()
    ]


def _delete_tag(client: MlflowClient, run_id: str, name: str) -> None:
    try:
        client.delete_tag(run_id, name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
