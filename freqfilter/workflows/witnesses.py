"""Ask models in processes of their own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from typing import Any, Self

from freqfilter.errors import UserError
from freqfilter.params import Params, restore

LONGEST_ANSWER_S = 300.0
FROM_OUTSIDE = {signal.SIGHUP, signal.SIGINT, signal.SIGKILL, signal.SIGTERM}  # no model ends its process so


class WitnessError(UserError):
    """A model that cannot be loaded, or breaks when it is asked.

    Attributes:
        uri: The model.
    """

    def __init__(self, uri: str, message: str) -> None:
        super().__init__(message)
        self.uri = uri


class Witness:
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
            [sys.executable, "-m", "freqfilter.workflows.witness", uri],
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
    def about(self) -> dict[str, Any]:
        """What the model says of itself.

        Raises:
            WitnessError: If it cannot be loaded.
            UserError: If somebody else has ended its process.
        """
        if self._about is None:
            self._about = self._answer()
        return self._about

    @property
    def params(self) -> Params:
        """The parameters of its training run."""
        return restore(self.about["params"])

    def ask(self, noise_seeds: list[int] | None) -> None:
        """Have it scored on realizations, or on its file's test windows; ``answers`` has the result."""
        if self._process.stdin is None:
            raise ValueError("a witness listens")
        try:
            self._process.stdin.write(json.dumps(noise_seeds) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            self._answer()

    def answers(self, count: int) -> dict[int, dict[str, float]]:
        """Mean squared errors by realization and component.

        Raises:
            WitnessError: If it breaks.
            UserError: If somebody else has ended its process.
        """
        found = [self._answer() for _ in range(count)]
        return {answer["name"]: answer["mse"] for answer in found}

    def _answer(self) -> dict[str, Any]:
        if self._process.stdout is None:
            raise ValueError("a witness answers")
        too_late = threading.Event()

        def end() -> None:
            too_late.set()
            self._process.kill()

        watchdog = threading.Timer(LONGEST_ANSWER_S, end)
        watchdog.start()
        line = self._process.stdout.readline()
        watchdog.cancel()
        if too_late.is_set():
            raise WitnessError(self._uri, f"{self._uri}: no answer within {LONGEST_ANSWER_S:.0f} s")
        answer = json.loads(line) if line else {"refused": self._last_words()}
        if "refused" in answer:
            raise WitnessError(self._uri, answer["refused"])
        return dict(answer)

    def _last_words(self) -> str:
        if (ended_by := -self._process.wait()) in FROM_OUTSIDE:
            name = signal.Signals(ended_by).name
            raise UserError(
                f"{self._uri}: its process was ended by {name} from outside, as a system short of memory does; "
                "nothing is decided, ask again"
            )
        self._said.seek(0)
        said = self._said.read().decode(errors="replace").strip().splitlines()
        return f"{self._uri}: its process ended: {said[-1] if said else 'without a word'}"
