"""Sandboxed models: each is loaded and scored in a worker process of its own, with unpickling forbidden."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sysconfig
import tempfile
from contextlib import ExitStack, suppress
from functools import cached_property
from pathlib import Path
from typing import IO, Any, Self

import freqfilter
from freqfilter.config import Params, restore
from freqfilter.errors import UserError
from freqfilter.pipelines.model_server import COMMAND, receive, send
from freqfilter.tracking.loading import checked_files

RESPONSE_TIMEOUT_S = 300.0
# Sent by a user or the system, not by a model.
KILL_SIGNALS = {signal.SIGHUP, signal.SIGINT, signal.SIGKILL, signal.SIGTERM}
GOLDEN_TOLERANCE = 1e-5  # processors differ in the order of summation

# The environment of a model: where its interpreter, libraries and temporary files are, and the libraries' settings.
KEPT = {"HOME", "LANG", "LD_LIBRARY_PATH", "LOGNAME", "PATH", "TMPDIR", "TZ", "USER", "VIRTUAL_ENV", "XDG_CACHE_HOME"}
KEPT_PREFIXES = ("ATEN_", "KMP_", "LC_", "MKL_", "MPL", "PYTHON", "PYTORCH_", "TORCH")
SET = {
    "OMP_NUM_THREADS": "1",  # also OpenBLAS's threads
    "JE_ARROW_MALLOC_CONF": "background_thread:false",  # of pyarrow, which MLflow imports
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
}


class ModelWorkerError(UserError):
    """A model that cannot be loaded, or fails when it is scored.

    Attributes:
        uri: The model.
    """

    def __init__(self, uri: str, message: str) -> None:
        super().__init__(message)
        self.uri = uri


class ModelServer:
    """A process that has imported PyTorch and MLflow, and forks a worker for each model.

    It gets no credentials: a model's files are downloaded in this process. It is in a session of its own, so that a
    terminal's signals reach this process alone, which ends it.
    """

    def __init__(self) -> None:
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the process)
        self._control, control = socket.socketpair()
        with control:
            self._process = subprocess.Popen(
                COMMAND,
                stdin=control.fileno(),
                stdout=self._log,
                stderr=subprocess.STDOUT,
                env=_environment(),
                start_new_session=True,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait()
        self._control.close()
        self._log.close()

    def start_worker(self, log: IO[bytes]) -> tuple[socket.socket, socket.socket]:
        """Start a worker whose standard output and standard error go to ``log``.

        Returns:
            Its connection, and a socket that has a message with its process id and, when it has ended, one with its
            exit code. The worker is killed when that socket is closed.
        """
        connection, its_connection = socket.socketpair()
        report, its_report = socket.socketpair()
        with its_connection, its_report, suppress(BrokenPipeError, ConnectionResetError):
            descriptors = [its_connection.fileno(), its_report.fileno(), log.fileno()]
            socket.send_fds(self._control, [b"\0"], descriptors)
        return connection, report

    def exit_reason(self) -> Exception:
        """The error to raise after the server has ended by itself."""
        exit_code = self._process.wait()
        error = RuntimeError(f"the model server ended with exit code {exit_code}: {_last_line(self._log)}")
        return _kill_error("the model server", exit_code) or error


class ModelWorker:
    """A model in a process of its own.

    Args:
        server: The server that forks the process.
        uri: The URI that the model is loaded from.
    """

    def __init__(self, server: ModelServer, uri: str) -> None:
        self._server = server
        self._uri = uri
        self._refusal: ModelWorkerError | None = None
        with ExitStack() as opened:
            self._log = opened.enter_context(tempfile.TemporaryFile())
            self._connection, self._report = map(opened.enter_context, server.start_worker(self._log))
            self._connection.settimeout(RESPONSE_TIMEOUT_S)
            folder = Path(opened.enter_context(tempfile.TemporaryDirectory()))
            try:
                self._send({"uri": uri, "files": str(checked_files(uri, folder))})
            except UserError as error:
                self._refusal = ModelWorkerError(uri, str(error))
            self._opened = opened.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    @property
    def pid(self) -> int:
        """Process id of the worker."""
        report = receive(self._report)
        if report is None:
            raise self._server.exit_reason()
        return int(report["pid"])

    @cached_property
    def description(self) -> dict[str, Any]:
        """Parameters, size, latency, digest and golden difference; see ``model_server.describe``.

        Raises:
            ModelWorkerError: If the model cannot be loaded.
            UserError: If its process was killed from outside.
        """
        return self._read_response()

    @property
    def params(self) -> Params:
        """The parameters of its training run."""
        return restore(self.description["params"])

    def request_scores(self, noise_seeds: list[int] | None) -> None:
        """Request scores on realizations, or on the test windows of its file; ``read_scores`` returns them."""
        self._send({"noise_seeds": noise_seeds})

    def read_scores(self, count: int) -> dict[int, dict[str, float]]:
        """Mean squared errors by realization and component.

        Raises:
            ModelWorkerError: If the model fails.
            UserError: If its process was killed from outside.
        """
        responses = [self._read_response() for _ in range(count)]
        return {response["name"]: response["mse"] for response in responses}

    def _send(self, content: dict[str, Any]) -> None:
        with suppress(BrokenPipeError, ConnectionResetError):  # _read_response raises the reason
            send(self._connection, content)

    def _read_response(self) -> dict[str, Any]:
        if self._refusal:
            raise self._refusal
        try:
            response = receive(self._connection)
        except TimeoutError:
            raise ModelWorkerError(self._uri, f"{self._uri}: no response within {RESPONSE_TIMEOUT_S:.0f} s") from None
        except ValueError as error:
            raise ModelWorkerError(self._uri, f"{self._uri}: its process sent {error}") from error
        if response is None:
            raise self._exit_reason()
        if "refused" in response:
            raise ModelWorkerError(self._uri, response["refused"])
        return response

    def _exit_reason(self) -> Exception:
        reports: dict[str, int] = {}
        while report := receive(self._report):
            reports |= report
        if "exit_code" not in reports:
            return self._server.exit_reason()
        error = ModelWorkerError(self._uri, f"{self._uri}: its process ended: {_last_line(self._log)}")
        return _kill_error(self._uri, reports["exit_code"]) or error


def _kill_error(subject: str, exit_code: int) -> UserError | None:
    """The error of a process that was killed from outside; None if it ended by itself."""
    if -exit_code not in KILL_SIGNALS:
        return None
    return UserError(
        f"{subject}: its process was ended by {signal.Signals(-exit_code).name} from outside, possibly for lack of "
        "memory; no decision was made, run the command again"
    )


def _last_line(log: IO[bytes]) -> str:
    log.seek(0)
    lines = log.read().decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else "it printed nothing"


def _environment() -> dict[str, str]:
    """The environment of the server and its workers; the package is imported from where it is imported here."""
    kept = {name: value for name, value in os.environ.items() if name in KEPT or name.startswith(KEPT_PREFIXES)}
    root = str(Path(freqfilter.__file__).resolve().parents[1])
    paths = [path for path in kept.get("PYTHONPATH", "").split(os.pathsep) if path]
    if root not in (*paths, sysconfig.get_path("purelib")):
        kept["PYTHONPATH"] = os.pathsep.join([root, *paths])
    return kept | SET
