"""Transactional outbox: a run's messages are written to a file first, and one thread delivers them to MLflow."""

from __future__ import annotations

import json
import math
import os
import threading
import time
from collections.abc import Callable, Collection, Iterator
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
from freqfilter.tracking.owner import TakenOverError, check_owner

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0  # between retries
READ_CHUNK = 1000  # lines
METRICS = "metrics"

Message = dict[str, Any]


class UndeliveredError(UserError):
    """The store did not accept all messages; they stay in the outbox."""

    def __init__(self, message: str) -> None:
        super().__init__(f"{message}; when the store is back, deliver them with: python -m freqfilter sync")


class Outbox:
    """A file of messages, and the thread that delivers them in order.

    ``append`` never waits for the store: an outage delays delivery, not the run. Each message is delivered at least
    once. Delivery is idempotent, since a message holds its own time stamps: the store's key of a metric consists of
    run, name, step, time and value, and everything else is replaced by the same value.

    Args:
        path: The file; messages left by an earlier process are delivered first.
        send: Delivers several messages of metrics or one message of another kind. None: nothing is delivered.
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
        """Write a message durably to the file, and wake the sender; thread-safe.

        Raises:
            UserError: If the file cannot be written; it then ends with the previous message.
            TakenOverError: If another process has taken over the run.
        """
        if isinstance(self._problem, TakenOverError):
            raise self._problem
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
        """Return the next messages to deliver."""
        return [_read(line, self.path) for line in self._unsent()]

    def wait(self, timeout_s: float) -> None:
        """Wait until all messages appended before this call are delivered.

        Raises:
            UndeliveredError: If they are not delivered in time; they stay in the file.
        """
        if self._send is None:
            return
        with self._appending:
            end = self.path.stat().st_size
        self._hurry.set()
        with self._idle:
            self._idle.wait_for(lambda: self._given_up.is_set() or self._sent_bytes >= end, timeout_s)
        self._hurry.clear()
        if isinstance(self._problem, TakenOverError):
            raise self._problem
        if self._sent_bytes < end:
            reason = f" ({one_line(self._problem)})" if self._problem else ""
            raise UndeliveredError(
                f"the tracking store did not accept all messages{reason}; the others are in {self.path}"
            )

    def close(self, timeout_s: float) -> None:
        """Deliver the remaining messages.

        Raises:
            UndeliveredError: If they are not delivered in time.
        """
        with suppress(OSError):  # append() has reported failed writes
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
            with self._idle:  # after close(), another process may deliver the rest
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
            except Exception as error:  # MLflow does not wrap all exceptions of the network
                self._problem = error
                if isinstance(error, UserError) or getattr(error, "error_code", None) == "INVALID_PARAMETER_VALUE":
                    self._given_up.set()  # a retry cannot succeed
                    self._notify()
                    return
                self._hurry.wait(pause_s)
                if self._hurry.is_set():
                    time.sleep(FIRST_PAUSE_S)
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
            else:
                pause_s = FIRST_PAUSE_S
                with self._idle:  # a waiting thread may reopen the file at once and read the position
                    self._sent_bytes += sum(map(len, lines[: len(together)]))
                    with suppress(OSError):  # then they are delivered again
                        self._sent_file.write_text(str(self._sent_bytes))
                self._notify()

    def _notify(self) -> None:
        with self._idle:
            self._idle.notify_all()

    def _unsent(self) -> list[bytes]:
        with self.path.open("rb") as file:
            file.seek(self._sent_bytes)
            lines = [line for line, _ in zip(file, range(READ_CHUNK), strict=False)]
        return [line for line in lines if line.endswith(b"\n")]  # the last one may still be being written


def messages(path: Path) -> Iterator[Message]:
    """Iterate over all complete messages of a file, delivered or not.

    Raises:
        UserError: If the file is corrupt.
    """
    if path.exists():
        with path.open("rb") as file:
            yield from (_read(line, path) for line in file if line.endswith(b"\n"))


def logged_points(path: Path) -> set[tuple[str, int]]:
    """Return names and steps of the metrics in a file.

    Raises:
        UserError: If the file is corrupt.
    """
    batches = (message for message in messages(path) if message["kind"] == METRICS)
    return {(name, batch["step"]) for batch in batches for name in batch["values"]}


# Fields of a message, by kind.
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
    raise UserError(f"{path}: corrupt line {line[:60]!r}; restore the file or remove the line")


def _cut_torn_line(path: Path) -> None:
    """Remove an incomplete last line, which a killed process leaves."""
    if path.exists():
        content = path.read_bytes()
        os.truncate(path, content.rfind(b"\n") + 1)


def _read_number(path: Path) -> int:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return 0


OWNER_CHECK_S = 0.5
METRICS_CHUNK = 1000  # MLflow's limit for a batch


def sender(run_id: str, folder: Path, owner_ids: Collection[str]) -> Callable[[list[Message]], None]:
    """Return the function that delivers a run's messages, each before it returns.

    Args:
        run_id: Id of the run.
        folder: Folder of the files that messages name.
        owner_ids: Ids of the run's owner; if the store has another one, ``TakenOverError`` is raised. A former check is
            valid for ``OWNER_CHECK_S``, which is much shorter than the time that a new owner waits.
    """
    client = MlflowClient()
    checked_at = -math.inf

    def send(messages: list[Message]) -> None:
        nonlocal checked_at
        if (now := time.monotonic()) - checked_at > OWNER_CHECK_S:
            check_owner(client, run_id, owner_ids)
            checked_at = now
        message = messages[0]
        match message["kind"]:
            case "metrics":
                points = [point for batch in messages for point in _points(batch)]
                for first in range(0, len(points), METRICS_CHUNK):
                    client.log_batch(run_id, metrics=points[first : first + METRICS_CHUNK], synchronous=True)
            case "params":
                client.log_batch(run_id, params=[Param(*each) for each in message["values"].items()], synchronous=True)
            case "tags":
                client.log_batch(run_id, tags=[RunTag(*each) for each in message["values"].items()], synchronous=True)
            case "no_tag":
                _delete_tag(client, run_id, message["name"])
            case "file":
                path = folder / message["path"]
                if path.exists():  # an old checkpoint may be deleted
                    parent = Path(message["path"]).parent.as_posix()
                    client.log_artifact(run_id, str(path), None if parent == "." else parent)
            case "data":
                context = InputTag(MLFLOW_DATASET_CONTEXT, message["context"])
                client.log_inputs(run_id, datasets=[DatasetInput(DatasetEntity(**message["dataset"]), [context])])

    return send


def describe_dataset(dataset: Dataset) -> dict[str, Any]:
    """Convert a dataset to the fields of a message."""
    return {name: value for name, value in dataset.to_dict().items() if name in DatasetEntity._properties()}


def now_ms() -> int:
    """Current time, milliseconds since 1970."""
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
