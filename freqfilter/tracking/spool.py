"""Metrics on their way to MLflow: first into the run's own append-only file, then to the store by one sender."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Mapping
from itertools import islice
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Metric

from freqfilter.errors import UserError

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0  # between tries at a store that does not answer
SENT_AT_ONCE = 1000  # MLflow's own limit for a batch


class MetricSpool:
    """A file of metrics, and the thread that delivers its lines in order, with their original time stamps.

    Whoever appends never waits for the store: an outage delays delivery, not training. To send a point twice does
    no harm, since the store's key holds run, metric, step, time and value.
    """

    def __init__(self, path: Path, run_id: str) -> None:
        self.path = path
        self._run_id = run_id
        self._client = MlflowClient()
        self._file = path.open("a", encoding="utf-8")
        self._sent_bytes = 0
        self._problem: Exception | None = None
        self._wake = threading.Event()
        self._closing = False
        self._sender = threading.Thread(target=self._deliver, name="metrics", daemon=True)
        self._sender.start()

    def append(self, metrics: Mapping[str, float], *, step: int, model_id: str | None = None) -> None:
        """Write metrics of a step to the file, durably, and let the sender know.

        Args:
            metrics: Values by name.
            step: The epoch they belong to.
            model_id: The logged model they also describe, if any.
        """
        now_ms = time.time_ns() // 1_000_000
        for name, value in metrics.items():
            point = {"name": name, "value": value, "step": step, "time_ms": now_ms, "model_id": model_id}
            self._file.write(json.dumps(point) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self._wake.set()

    def close(self, timeout_s: float) -> None:
        """Deliver what is left.

        Raises:
            UserError: If that does not succeed in time; the file keeps every point.
        """
        self._file.close()
        self._closing = True
        self._wake.set()
        self._sender.join(timeout_s)
        if self._unsent():
            reason = f" ({' '.join(str(self._problem).split())[:200]})" if self._problem else ""
            raise UserError(f"the tracking store has not taken all metrics{reason}; they are in {self.path}")

    def _deliver(self) -> None:
        pause_s = FIRST_PAUSE_S
        while True:
            closing = self._closing
            lines = self._unsent()
            if not lines and closing:
                return
            if not lines:
                self._wake.wait()
                self._wake.clear()
                continue
            try:
                self._client.log_batch(self._run_id, metrics=[_metric(line) for line in lines])
            except Exception as error:  # the network's own exceptions come through too
                self._problem = error
                if getattr(error, "error_code", None) == "INVALID_PARAMETER_VALUE":
                    return  # the store is there and will never take it
                time.sleep(pause_s)
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
            else:
                self._sent_bytes += sum(map(len, lines))
                pause_s = FIRST_PAUSE_S

    def _unsent(self) -> list[bytes]:
        with self.path.open("rb") as file:
            file.seek(self._sent_bytes)
            lines = list(islice(file, SENT_AT_ONCE))
        return [line for line in lines if line.endswith(b"\n")]  # the last one may still be being written


def _metric(line: bytes) -> Metric:
    point = json.loads(line)
    return Metric(point["name"], point["value"], point["time_ms"], point["step"], model_id=point["model_id"])
