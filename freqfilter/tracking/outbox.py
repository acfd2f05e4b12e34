"""Transactional outbox: what a run logs goes to a file first, and one sender delivers it to MLflow."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import takewhile
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.data.dataset import Dataset
from mlflow.entities import Dataset as DatasetEntity
from mlflow.entities import DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT

from freqfilter.atomic_io import sync_folder, writable_folder, write_error
from freqfilter.errors import UserError, one_line

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0  # between tries at a store that does not answer
READ_CHUNK = 1000  # lines
METRICS = "metrics"

Message = dict[str, Any]


class UndeliveredError(UserError):
    """The store has not taken everything; the outbox has it."""

    def __init__(self, message: str) -> None:
        super().__init__(f"{message}; when it is back: python -m freqfilter sync")


class Outbox:
    """A file of messages, and the thread that delivers them in order.

    Whoever appends never waits for the store: an outage delays delivery, not the run. A message is delivered at least
    once. To deliver it twice does no harm, since it holds its own time stamps: the store's key of a metric has run,
    name, step, time and value, and all else is replaced by the same.

    Args:
        path: The file; what an earlier process has left in it goes out first.
        send: Delivers some messages, all of them metrics or one of another kind. None: nothing is delivered.
    """

    def __init__(self, path: Path, send: Callable[[list[Message]], None] | None) -> None:
        self.path = path
        self._send = send
        self._sent_file = path.with_suffix(".sent")
        writable_folder(path.parent)
        _cut_torn_line(path)
        self._file = path.open("ab", buffering=0)
        self._appending = threading.Lock()
        sync_folder(path.parent)
        self._sent_bytes = _read_number(self._sent_file)
        self._problem: Exception | None = None
        self._wake, self._hurry, self._given_up = threading.Event(), threading.Event(), threading.Event()
        self._closing = False
        self._idle = threading.Condition()
        self._sender = threading.Thread(target=self._deliver, name="outbox", daemon=True)
        if send:
            self._sender.start()

    def append(self, kind: str, **content: Any) -> None:
        """Write a message to the file, durably, and let the sender know; any thread may call it.

        Raises:
            UserError: If the file cannot be written; it then ends with the message before.
        """
        line = memoryview(f"{json.dumps({'kind': kind, **content})}\n".encode())
        with self._appending:
            end = os.fstat(self._file.fileno()).st_size
            try:
                while line:
                    line = line[self._file.write(line) :]
                os.fsync(self._file.fileno())
            except OSError as error:
                with suppress(OSError):
                    os.ftruncate(self._file.fileno(), end)
                raise write_error(self.path, error) from error
        self._wake.set()

    def waiting(self) -> list[Message]:
        """The messages that are to go out next."""
        return [_read(line, self.path) for line in self._unsent()]

    def wait(self, timeout_s: float) -> None:
        """Wait until everything that was appended before this call is delivered.

        Raises:
            UndeliveredError: If that does not succeed in time; the file keeps every message.
        """
        if self._send is None:
            return
        with self._appending:
            end = self.path.stat().st_size
        self._hurry.set()
        with self._idle:
            self._idle.wait_for(lambda: self._given_up.is_set() or self._sent_bytes >= end, timeout_s)
        self._hurry.clear()
        if self._sent_bytes < end:
            reason = f" ({one_line(self._problem)})" if self._problem else ""
            raise UndeliveredError(
                f"the tracking store has not taken everything{reason}; what is left is in {self.path}"
            )

    def close(self, timeout_s: float) -> None:
        """Deliver what is left.

        Raises:
            UndeliveredError: If that does not succeed in time.
        """
        with suppress(OSError):  # what could not be written has been said
            self._file.close()
        try:
            self.wait(timeout_s)
        finally:
            with self._idle:
                self._closing = True
            self._wake.set()
            self._hurry.set()

    def _deliver(self) -> None:
        pause_s = FIRST_PAUSE_S
        while True:
            with self._idle:  # what is written once it is closed is another's to send
                if self._closing:
                    return
                lines = self._unsent()
            if not lines:
                self._wake.wait()
                self._wake.clear()
                continue
            try:
                messages = [_read(line, self.path) for line in lines]
                together = list(takewhile(lambda message: message["kind"] == METRICS, messages)) or messages[:1]
                if self._send:
                    self._send(together)
            except Exception as error:  # the network's own exceptions come through too
                self._problem = error
                if isinstance(error, UserError) or getattr(error, "error_code", None) == "INVALID_PARAMETER_VALUE":
                    self._given_up.set()  # the store is there and will never take it
                    self._tell_waiting()
                    return
                self._hurry.wait(pause_s)
                if self._hurry.is_set():
                    time.sleep(FIRST_PAUSE_S)
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
            else:
                pause_s = FIRST_PAUSE_S
                with self._idle:  # whoever waits may open the file again at once, and has to find how far it has come
                    self._sent_bytes += sum(map(len, lines[: len(together)]))
                    with suppress(OSError):  # then it is sent once more
                        self._sent_file.write_text(str(self._sent_bytes))
                self._tell_waiting()

    def _tell_waiting(self) -> None:
        with self._idle:
            self._idle.notify_all()

    def _unsent(self) -> list[bytes]:
        with self.path.open("rb") as file:
            file.seek(self._sent_bytes)
            lines = [line for line, _ in zip(file, range(READ_CHUNK), strict=False)]
        return [line for line in lines if line.endswith(b"\n")]  # the last one may still be being written


def messages(path: Path) -> Iterator[Message]:
    """All messages of a file, delivered or not, but for a last one that was never written whole.

    Raises:
        UserError: If the file is damaged.
    """
    if path.exists():
        with path.open("rb") as file:
            yield from (_read(line, path) for line in file if line.endswith(b"\n"))


def logged_points(path: Path) -> set[tuple[str, int]]:
    """Names and steps of the metrics in a file.

    Raises:
        UserError: If the file is damaged.
    """
    batches = (message for message in messages(path) if message["kind"] == METRICS)
    return {(name, batch["step"]) for batch in batches for name in batch["values"]}


# What a message of each kind holds.
CONTENT: dict[str, dict[str, type | tuple[type, ...]]] = {
    "run": {"run_id": str, "experiment": str, "name": str, "time_ms": int},
    "params": {"values": dict},
    "tags": {"values": dict},
    "no_tag": {"name": str},
    METRICS: {"values": dict, "step": int, "time_ms": int, "model_id": (str, type(None))},
    "data": {"dataset": dict, "context": str},
    "file": {"path": str},
    "end": {"status": str},
}


def _read(line: bytes, path: Path) -> Message:
    try:
        message = json.loads(line)
        content = CONTENT[message["kind"]]
        if all(isinstance(message[name], kind) for name, kind in content.items()):
            return dict(message)
    except (KeyError, TypeError, ValueError):
        pass
    raise UserError(f"{path}: damaged: no message in the line {line[:60]!r}")


def _cut_torn_line(path: Path) -> None:
    """Take away what a process that died has left of its last line."""
    if path.exists():
        content = path.read_bytes()
        os.truncate(path, content.rfind(b"\n") + 1)


def _read_number(path: Path) -> int:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return 0


METRICS_CHUNK = 1000  # MLflow's own limit for a batch


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
                for first in range(0, len(points), METRICS_CHUNK):
                    client.log_batch(run_id, metrics=points[first : first + METRICS_CHUNK])
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


def describe_dataset(dataset: Dataset) -> dict[str, Any]:
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
