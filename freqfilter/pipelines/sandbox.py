"""Sandboxed models: each computes its estimates in a worker process of its own, with unpickling forbidden."""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import signal
import socket
import subprocess
import tempfile
import time
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import IO, Any, Self

import numpy as np
import psutil
import torch
from numpy.typing import NDArray
from torch import Tensor

from freqfilter.atomic_io import temporary_folder
from freqfilter.config import Params, restore
from freqfilter.errors import UserError, printable
from freqfilter.pipelines.model_server import (
    ARRAY_LIMIT,
    MEMORY_LIMIT,
    command,
    receive,
    receive_bytes,
    send,
    send_array,
)
from freqfilter.process import Interrupted
from freqfilter.tracking.loading import GOLDEN, MODEL_SPACE, ChecksumError, checked_files

RESPONSE_TIMEOUT_S = 300.0
TIME_LIMIT_S = 1800.0  # of all responses of a model together
EXIT_TIMEOUT_S = 2.0
FILE_LIMIT = 64 << 20  # bytes of each file that is read in this process
LOG_LIMIT = 1 << 16  # bytes at the end of a log
# Sent by a user or the system, not by a model.
KILL_SIGNALS = {signal.SIGHUP, signal.SIGINT, signal.SIGKILL, signal.SIGTERM}
GOLDEN_TOLERANCE = 1e-5  # processors differ in the order of summation
NO_DECISION = "no decision was made, run the command again"

# The environment of a model: where its interpreter and libraries are, their language, and settings that change numbers.
KEPT = {"DYLD_LIBRARY_PATH", "LANG", "LC_ALL", "LC_CTYPE", "LD_LIBRARY_PATH", "PATH", "PYTHONHOME", "TZ"} | {
    *("ATEN_CPU_CAPABILITY", "KMP_DUPLICATE_LIB_OK", "MKL_CBWR", "ONEDNN_MAX_CPU_ISA", "OPENBLAS_CORETYPE")
}
SET = {
    "CUDA_VISIBLE_DEVICES": "",
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

    Raises:
        UserError: If it cannot be started.
    """

    def __init__(self) -> None:
        with ExitStack() as opened, machine_errors():
            folder = str(opened.enter_context(temporary_folder(space=MODEL_SPACE)))
            self._log = opened.enter_context(tempfile.TemporaryFile())
            control, its_control = socket.socketpair()
            self._control = opened.enter_context(control)
            with its_control:
                self._process = subprocess.Popen(
                    command(),
                    stdin=its_control.fileno(),
                    stdout=self._log,
                    stderr=subprocess.STDOUT,
                    env=_environment(folder),
                    cwd=folder,
                    start_new_session=True,
                )
            self._opened = opened.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(EXIT_TIMEOUT_S / 2)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._opened.close()

    def start_worker(self, log: IO[bytes]) -> tuple[socket.socket, socket.socket]:
        """Start a worker whose standard output and standard error go to ``log``.

        Returns:
            Its connection, and a socket that has a message with its process id and, when it has ended, one with its
            exit code. The worker is killed when that socket is closed or shut down.
        """
        connection, its_connection = socket.socketpair()
        report, its_report = socket.socketpair()
        with its_connection, its_report, suppress(BrokenPipeError, ConnectionResetError):
            descriptors = [its_connection.fileno(), its_report.fileno(), log.fileno()]
            socket.send_fds(self._control, [b"\0"], descriptors)
        return connection, report

    def exit_reason(self) -> UserError:
        """The error to raise after the server has ended by itself."""
        exit_code = self._process.wait()
        text = f"the model server ended with exit code {exit_code}: {_last_line(self._log)}; {NO_DECISION}"
        return _kill_error("the model server", exit_code) or UserError(text)


class ModelWorker:
    """A model in a process of its own, which gets windows and returns estimates.

    What is known of the model's files (parameters, size, golden predictions) is read in this process, before the code
    of the model runs.

    Args:
        server: The server that forks the process.
        uri: The URI that the model is loaded from.

    Raises:
        UserError: If the files cannot be copied.
    """

    def __init__(self, server: ModelServer, uri: str) -> None:
        self._server = server
        self._uri = uri
        self._refusal: ModelWorkerError | None = None
        self._remaining_s = TIME_LIMIT_S
        self._started = False
        with ExitStack() as opened, machine_errors():
            folder = opened.enter_context(temporary_folder(space=MODEL_SPACE))
            for name in ("files", "work"):
                (folder / name).mkdir()
            try:
                files = checked_files(uri, folder / "files")
                self._files = _read_files(files)
            except ChecksumError as error:
                self._refusal = ModelWorkerError(uri, str(error))
            else:
                self._log = opened.enter_context(tempfile.TemporaryFile())
                self._connection, self._report = map(opened.enter_context, server.start_worker(self._log))
                opened.callback(self._end)
                self._send({"uri": uri, "files": str(files), "folder": str(folder / "work")})
            self._opened = opened.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    def _end(self) -> None:
        """Have the server kill the process and all that it has started, and wait for that."""
        with suppress(Interrupted, OSError, ValueError):
            self._report.shutdown(socket.SHUT_WR)
            deadline = time.monotonic() + EXIT_TIMEOUT_S / 4
            while receive(self._report, deadline=deadline):
                pass

    @property
    def pid(self) -> int:
        """Process id of the worker."""
        report = receive(self._report)
        if report is None:
            raise self._server.exit_reason()
        return int(report["pid"])

    @cached_property
    def description(self) -> dict[str, Any]:
        """Size in megabytes, digest of the weights, and golden difference: None for versions without it.

        Raises:
            ModelWorkerError: If the model cannot be loaded.
            UserError: If its process was killed from outside.
        """
        self._read_message()
        self._started = True
        self._read_message()
        difference = None
        if self._files["golden"] is not None:
            inputs, estimates = self._read_golden()
            difference = float((self.estimate(inputs) - estimates).abs().max())
        return {name: self._files[name] for name in ("megabytes", "weights_sha256")} | {"golden_difference": difference}

    def _read_golden(self) -> tuple[Tensor, Tensor]:
        try:
            with zipfile.ZipFile(io.BytesIO(self._files["golden"])) as archive:
                if sum(entry.file_size for entry in archive.infolist()) > FILE_LIMIT:
                    raise ValueError(f"more than {FILE_LIMIT} bytes")
            with np.load(io.BytesIO(self._files["golden"]), allow_pickle=False) as stored:
                inputs, estimates = (torch.from_numpy(stored[name]).float() for name in ("inputs", "estimates"))
            if inputs.ndim not in (2, 3) or [*estimates.shape] != self._shape(inputs):
                raise ValueError(f"shapes {tuple(inputs.shape)} and {tuple(estimates.shape)}")
        except Exception as error:  # the file is not trusted
            text = printable(f"{type(error).__name__}: {error}")
            raise ModelWorkerError(self._uri, f"{self._uri}: its golden predictions are corrupt ({text})") from error
        return inputs, estimates

    @cached_property
    def params(self) -> Params:
        """The parameters of its training run."""
        try:
            return restore(json.loads(self._files["facts"] or b"")["params"])
        except (KeyError, RecursionError, TypeError, UserError, ValueError) as error:
            text = printable(f"{type(error).__name__}: {error}")
            raise ModelWorkerError(self._uri, f"{self._uri}: its parameters are corrupt ({text})") from error

    def _shape(self, inputs: Tensor) -> list[int]:
        """Shape of the estimates of windows, or of recordings."""
        return [*inputs.shape[:2], len(self.params.signals.frequencies_hz) if inputs.dim() == 2 else 1]

    def request(self, inputs: Tensor) -> None:
        """Request estimates, which ``read`` returns, of the inputs of windows or of recordings.

        Raises:
            ModelWorkerError: If a response has arrived already.
            UserError: If the inputs have more than ``ARRAY_LIMIT`` bytes.
        """
        if 4 * inputs.numel() > ARRAY_LIMIT:
            raise UserError(f"{self._uri}: {4 * inputs.numel()} bytes in a request; at most {ARRAY_LIMIT} are allowed")
        with suppress(BlockingIOError, ConnectionResetError):
            self._connection.setblocking(False)
            if self._connection.recv(1, socket.MSG_PEEK):
                raise ModelWorkerError(self._uri, f"{self._uri}: its process sent a response before the request")
        self._send(inputs.numpy())

    def read(self, inputs: Tensor) -> Tensor:
        """Estimates of the requested windows, (n_windows, n_samples, 1), or recordings, with all components.

        Raises:
            ModelWorkerError: If the model fails, or the estimates have another shape or type, or are not finite.
            UserError: If its process was killed from outside.
        """
        shape = self._shape(inputs)
        expected = {"shape": shape, "dtype": "float32"}
        if (header := self._read_message()) != expected:
            text = printable(f"shape {header.get('shape')} and type {header.get('dtype')}")
            wanted = f"shape {expected['shape']} and type float32"
            raise ModelWorkerError(self._uri, f"{self._uri}: its estimates have {text}, not {wanted}")
        with self._response_time() as deadline:
            values = receive_bytes(self._connection, 4 * math.prod(shape), deadline=deadline)
        if values is None:
            raise self._exit_reason()
        estimates = torch.from_numpy(np.frombuffer(values, dtype=np.float32)).view(shape)
        if not torch.isfinite(estimates).all():
            raise ModelWorkerError(self._uri, f"{self._uri}: its estimates contain NaN or Inf")
        return estimates

    def estimate(self, inputs: Tensor) -> Tensor:
        """Request and read estimates of inputs; see ``request`` and ``read``."""
        self.request(inputs)
        return self.read(inputs)

    def _send(self, content: dict[str, Any] | NDArray[np.float32]) -> None:
        if self._refusal:
            return
        self._connection.settimeout(RESPONSE_TIMEOUT_S)
        with suppress(BrokenPipeError, ConnectionResetError, TimeoutError):  # _read_message raises the reason
            if isinstance(content, dict):
                send(self._connection, content)
            else:
                send_array(self._connection, content)

    def _read_message(self) -> dict[str, Any]:
        """Read the header of estimates, or that the model is loaded."""
        if self._refusal:
            raise self._refusal
        try:
            with self._response_time() as deadline:
                message = receive(self._connection, deadline=deadline)
        except ValueError as error:
            raise ModelWorkerError(self._uri, f"{self._uri}: its process sent {printable(str(error))}") from error
        if message is None:
            raise self._exit_reason()
        if "error" in message:
            raise self._error(printable(str(message["error"])), str(message.get("cause")))
        return message

    @contextmanager
    def _response_time(self) -> Iterator[float]:
        """Context manager of waiting for the model; its value is the deadline of the response.

        Raises:
            ModelWorkerError: If the response does not arrive in time.
        """
        started = time.monotonic()
        allowed = min(RESPONSE_TIMEOUT_S, self._remaining_s)
        try:
            yield started + allowed
        except TimeoutError:
            text = f"no response within {RESPONSE_TIMEOUT_S:.0f} s"
            if allowed < RESPONSE_TIMEOUT_S:
                text = f"its responses took more than {TIME_LIMIT_S:.0f} s together"
            raise ModelWorkerError(self._uri, f"{self._uri}: {text}") from None
        finally:
            self._remaining_s -= time.monotonic() - started

    def _error(self, text: str, cause: str) -> UserError:
        own = text if text.startswith(self._uri) else f"{self._uri}: {text}"
        # Less is available than a model may use, so that the lack may be one of the machine.
        if cause == "memory" and psutil.virtual_memory().available >= MEMORY_LIMIT:
            return ModelWorkerError(self._uri, f"{own}; a model may use {MEMORY_LIMIT / 2**30:.0f} GiB of memory")
        return (
            UserError(f"{own}; {NO_DECISION}") if cause in ("machine", "memory") else ModelWorkerError(self._uri, own)
        )

    def _exit_reason(self) -> UserError:
        reports: dict[str, int] = {}
        with suppress(TimeoutError):
            while report := receive(self._report, deadline=time.monotonic() + EXIT_TIMEOUT_S):
                reports |= report
        if "exit_code" not in reports:
            return self._server.exit_reason()
        exit_code, line = reports["exit_code"], _last_line(self._log)
        if killed := _kill_error(self._uri, exit_code):
            return killed
        if not self._started:
            return UserError(f"{self._uri}: its process ended before the model was loaded: {line}; {NO_DECISION}")
        how = (
            f"was ended by {signal.Signals(-exit_code).name}" if exit_code < 0 else f"ended with exit code {exit_code}"
        )
        return ModelWorkerError(self._uri, f"{self._uri}: its process {how}: {line}")


@contextmanager
def machine_errors() -> Iterator[None]:
    """Context manager that converts errors of the system, such as a full disk, to a ``UserError``."""
    try:
        yield
    except OSError as error:
        raise UserError(f"the models' processes cannot be started: {error}; {NO_DECISION}") from error


def _read_files(folder: Path) -> dict[str, Any]:
    """What this process uses of a model's files: facts, golden predictions, digest of the weights, megabytes."""
    contents: dict[str, bytes | None] = {}
    for name in ("artifacts/facts.json", GOLDEN, "artifacts/weights.pt"):
        path = folder / name
        if not path.is_file():
            contents[name] = None
        else:
            contents[name] = (
                path.read_bytes() if path.stat().st_size <= FILE_LIMIT else b""
            )  # refused when it is parsed
    return {
        "facts": contents["artifacts/facts.json"],
        "golden": contents[GOLDEN],
        "weights_sha256": hashlib.sha256(contents["artifacts/weights.pt"] or b"").hexdigest(),
        "megabytes": sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6,
    }


def _kill_error(subject: str, exit_code: int) -> UserError | None:
    """The error of a process that was killed from outside; None if it ended by itself."""
    if -exit_code not in KILL_SIGNALS:
        return None
    return UserError(
        f"{subject}: its process was ended by {signal.Signals(-exit_code).name} from outside, possibly for lack of "
        "memory; no decision was made, run the command again"
    )


def _last_line(log: IO[bytes]) -> str:
    log.seek(max(0, log.seek(0, os.SEEK_END) - LOG_LIMIT))
    lines = log.read(LOG_LIMIT).decode(errors="replace").strip().splitlines()
    return printable(lines[-1]) if lines else "it printed nothing"


def _environment(folder: str) -> dict[str, str]:
    """The environment of the server and its workers, whose files belong in ``folder``."""
    kept = {name: value for name, value in os.environ.items() if name in KEPT}
    return kept | SET | {"HOME": folder, "TMPDIR": folder}
