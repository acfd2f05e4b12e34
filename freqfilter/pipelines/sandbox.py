"""A model in a sandboxed process of its own, with unpickling forbidden.

``python -m freqfilter.pipelines.sandbox URI`` loads a model and answers requests on its standard input.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch

from freqfilter.config import Params, restore
from freqfilter.errors import UserError
from freqfilter.evaluation.heldout import score_realizations
from freqfilter.evaluation.metrics import MODEL
from freqfilter.models.filter import Filter
from freqfilter.training.device import use_deterministic_algorithms

RESPONSE_TIMEOUT_S = 300.0
KILL_SIGNALS = {signal.SIGHUP, signal.SIGINT, signal.SIGKILL, signal.SIGTERM}  # no model ends its process so


class ModelWorkerError(UserError):
    """A model that cannot be loaded, or breaks when it is asked.

    Attributes:
        uri: The model.
    """

    def __init__(self, uri: str, message: str) -> None:
        super().__init__(message)
        self.uri = uri


class ModelWorker:
    """A model in a process of its own.

    Args:
        uri: Where it is loaded from.

    Attributes:
        params: The parameters of its training run.
        milliseconds: For one window, one thread.
        weights_sha256: Of its weights.
        golden_difference: From what it gave when it was registered; None of a version that does not say.
    """

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the process)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "freqfilter.pipelines.sandbox", uri],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1", "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"},
        )
        self._about: dict[str, Any] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()
        self._said.close()

    @property
    def description(self) -> dict[str, Any]:
        """What the model says of itself.

        Raises:
            ModelWorkerError: If it cannot be loaded.
            UserError: If somebody else has ended its process.
        """
        if self._about is None:
            self._about = self._read_response()
        return self._about

    @property
    def params(self) -> Params:
        """The parameters of its training run."""
        return restore(self.description["params"])

    def request_scores(self, noise_seeds: list[int] | None) -> None:
        """Have it scored on realizations, or on its file's test windows; ``read_scores`` has the result."""
        if self._process.stdin is None:
            raise ValueError("a witness listens")
        try:
            self._process.stdin.write(json.dumps(noise_seeds) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            self._read_response()

    def read_scores(self, count: int) -> dict[int, dict[str, float]]:
        """Mean squared errors by realization and component.

        Raises:
            ModelWorkerError: If it breaks.
            UserError: If somebody else has ended its process.
        """
        found = [self._read_response() for _ in range(count)]
        return {answer["name"]: answer["mse"] for answer in found}

    def _read_response(self) -> dict[str, Any]:
        if self._process.stdout is None:
            raise ValueError("a witness answers")
        too_late = threading.Event()

        def end() -> None:
            too_late.set()
            self._process.kill()

        watchdog = threading.Timer(RESPONSE_TIMEOUT_S, end)
        watchdog.start()
        line = self._process.stdout.readline()
        watchdog.cancel()
        if too_late.is_set():
            raise ModelWorkerError(self._uri, f"{self._uri}: no answer within {RESPONSE_TIMEOUT_S:.0f} s")
        answer = json.loads(line) if line else {"refused": self._exit_reason()}
        if "refused" in answer:
            raise ModelWorkerError(self._uri, answer["refused"])
        return dict(answer)

    def _exit_reason(self) -> str:
        if (ended_by := -self._process.wait()) in KILL_SIGNALS:
            name = signal.Signals(ended_by).name
            raise UserError(
                f"{self._uri}: its process was ended by {name} from outside, as a system short of memory does; "
                "nothing is decided, ask again"
            )
        self._said.seek(0)
        said = self._said.read().decode(errors="replace").strip().splitlines()
        return f"{self._uri}: its process ended: {said[-1] if said else 'without a word'}"


N_TIMED_CALLS = 20  # calls, whose median is the latency
GOLDEN_TOLERANCE = 1e-5  # other processors sum in other orders


def describe(found: Filter, files: Path) -> dict[str, Any]:
    """What a model says of itself, and shows."""
    window = np.zeros((1, found.facts["window_length"], 1 + len(found.facts["frequencies_hz"])), dtype=np.float32)
    times = []
    for _ in range(N_TIMED_CALLS):
        started = time.perf_counter()
        found.predict(window)
        times.append(time.perf_counter() - started)
    weights = hashlib.sha256()
    for name, weight in found.module.state_dict().items():
        weights.update(name.encode() + weight.numpy().tobytes())
    return {
        "params": found.params.model_dump(mode="json"),
        "megabytes": sum(path.stat().st_size for path in files.rglob("*") if path.is_file()) / 1e6,
        "milliseconds": 1000 * float(np.median(times)),
        "weights_sha256": weights.hexdigest(),
        "golden_difference": golden_difference(found),
    }


def golden_difference(found: Filter) -> float | None:
    """How far a model is from what it gave when it was registered; None of an old version, which does not say."""
    if found.golden is None:
        return None
    inputs, estimates = found.golden
    return float(np.abs(found.predict(inputs) - estimates).max())


def score(found: Filter, noise_seeds: list[int] | None) -> Iterator[dict[str, Any]]:
    """Mean squared error on each realization, or, of a user's data, on each part of its test windows."""
    extractor = {MODEL: lambda inputs: torch.from_numpy(found.predict(inputs.numpy()))}
    for name, errors in score_realizations(extractor, found.params, noise_seeds, device=torch.device("cpu")):
        yield {"name": name, "mse": errors.loc[MODEL].to_dict()}


def _main(uri: str) -> None:
    from freqfilter.tracking.loading import checked_files, load_files

    answers = sys.stdout
    sys.stdout = sys.stderr  # what a model prints is no answer

    def answer(content: dict[str, Any]) -> None:
        answers.write(json.dumps(content) + "\n")
        answers.flush()

    torch.set_num_threads(1)  # the same bits wherever it is asked
    use_deterministic_algorithms(True)
    try:
        with tempfile.TemporaryDirectory() as folder:
            files = checked_files(uri, Path(folder))
            found = load_files(uri, files)
            answer(describe(found, files))
        for line in sys.stdin:
            for scored in score(found, json.loads(line)):
                answer(scored)
    except UserError as error:
        answer({"refused": str(error)})


if __name__ == "__main__":
    _main(sys.argv[1])
