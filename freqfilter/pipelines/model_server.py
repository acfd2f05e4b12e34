"""Process that loads and scores models: a server that imports PyTorch and MLflow once and forks a worker per model.

``python -P -m freqfilter.pipelines.model_server`` serves on its standard input, which is a Unix socket. Each message
on it carries three descriptors: a worker's connection, a socket for reports on its process, and its log. The client
is ``freqfilter.pipelines.sandbox``.
"""

from __future__ import annotations

import gc
import hashlib
import json
import os
import select
import signal
import socket
import struct
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from freqfilter.errors import UserError
from freqfilter.evaluation.heldout import score_realizations
from freqfilter.evaluation.metrics import MODEL, Estimator
from freqfilter.models.filter import Filter
from freqfilter.tracking.loading import import_loader, load_files
from freqfilter.training.device import use_deterministic_algorithms

COMMAND = [sys.executable, "-P", "-m", "freqfilter.pipelines.model_server"]
WORKER = "worker"  # argument of a process that is a worker itself
MESSAGE_LIMIT = 1 << 20  # bytes
HEADER = struct.Struct("!I")  # length of the message that follows
HANDLED = {signal.SIGCHLD, signal.SIGTERM}  # signals, by the server
N_TIMED_CALLS = 20  # calls, whose median is the latency


def send(connection: socket.socket, content: Any) -> None:
    """Send a message as JSON.

    Raises:
        ValueError: If it is longer than ``MESSAGE_LIMIT``.
        OSError: If the other side has closed the connection.
    """
    message = json.dumps(content).encode()
    if len(message) > MESSAGE_LIMIT:
        raise ValueError(f"a message of {len(message)} bytes; at most {MESSAGE_LIMIT} are allowed")
    connection.sendall(HEADER.pack(len(message)) + message)


def receive(connection: socket.socket) -> dict[str, Any] | None:
    """Receive a message; None if the other side has closed the connection.

    Raises:
        ValueError: If it is longer than ``MESSAGE_LIMIT``, or not a JSON object.
        TimeoutError: If the connection has a timeout, and nothing has arrived within it.
    """
    header = _receive_bytes(connection, HEADER.size)
    if len(header) < HEADER.size:
        return None
    (length,) = HEADER.unpack(header)
    if length > MESSAGE_LIMIT:
        raise ValueError(f"a message of {length} bytes; at most {MESSAGE_LIMIT} are allowed")
    message = _receive_bytes(connection, length)
    if len(message) < length:
        return None
    try:
        content = json.loads(message)
    except RecursionError as error:
        raise ValueError("a message with too many levels") from error
    if not isinstance(content, dict):
        raise ValueError("a message that is not a JSON object")
    return content


def _receive_bytes(connection: socket.socket, length: int) -> bytes:
    """Receive ``length`` bytes; fewer if the other side has closed the connection."""
    received = b""
    with suppress(ConnectionResetError):
        while len(received) < length and (part := connection.recv(length - len(received))):
            received += part
    return received


def describe(found: Filter, files: Path) -> dict[str, Any]:
    """Parameters, size, latency, digest and golden difference of a model; no difference for versions without it."""
    window = np.zeros((1, found.facts["window_length"], 1 + len(found.facts["frequencies_hz"])), dtype=np.float32)
    times = []
    for _ in range(N_TIMED_CALLS):
        started = time.perf_counter()
        found.predict(window)
        times.append(time.perf_counter() - started)
    difference = None
    if found.golden is not None:
        inputs, estimates = found.golden
        difference = float(np.abs(found.predict(inputs) - estimates).max())
    weights = hashlib.sha256()
    for name, weight in found.module.state_dict().items():
        weights.update(name.encode() + weight.numpy().tobytes())
    return {
        "params": found.params.model_dump(mode="json"),
        "megabytes": sum(path.stat().st_size for path in files.rglob("*") if path.is_file()) / 1e6,
        "milliseconds": 1000 * float(np.median(times)),
        "weights_sha256": weights.hexdigest(),
        "golden_difference": difference,
    }


def _work(connection: socket.socket) -> None:
    """Load a model, describe it, and score it on request until the connection is closed."""
    torch.set_num_threads(1)  # the same bits on every machine
    use_deterministic_algorithms(True)
    try:
        if (request := receive(connection)) is None:
            return
        files = Path(request["files"])
        found = load_files(request["uri"], files, suppress_warnings=True)
        send(connection, describe(found, files))
        estimators: dict[str, Estimator] = {MODEL: lambda inputs: torch.from_numpy(found.predict(inputs.numpy()))}
        cpu = torch.device("cpu")
        while (request := receive(connection)) is not None:
            for name, errors in score_realizations(estimators, found.params, request["noise_seeds"], device=cpu):
                send(connection, {"name": name, "mse": errors.loc[MODEL].to_dict()})
    except UserError as error:
        send(connection, {"refused": str(error)})


class _Server:
    """Starts a worker for each message on the control socket, and reports how each has ended.

    A worker leads a process group of its own, which is killed when its report socket is closed, when it has ended, and
    when the server ends: on the end of the control socket, or on SIGTERM.
    """

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._workers: dict[int, socket.socket] = {}  # report sockets by process id
        self._signals, self._wakeup = socket.socketpair()
        self._wakeup.setblocking(False)
        signal.set_wakeup_fd(self._wakeup.fileno())
        for number in HANDLED:
            signal.signal(number, lambda *_: None)

    def serve(self) -> socket.socket | None:
        """Serve until the end: None. In a forked worker: its connection."""
        while True:
            ready, _, _ = select.select([self._control, self._signals, *self._workers.values()], [], [])
            for pid, report in self._workers.items():
                if report in ready:  # closed by the client
                    _kill_group(pid)
            if self._signals in ready and signal.SIGTERM in self._signals.recv(1024):
                self._end()
                return None
            if self._control in ready:
                message, descriptors, _, _ = socket.recv_fds(self._control, 1, 3)
                if not message:
                    self._end()
                    return None
                if connection := self._start_worker(*descriptors):
                    return connection
            self._reap()

    def _start_worker(self, connection: int, report: int, log: int) -> socket.socket | None:
        if _n_threads() == 1:
            # A worker that has the server's handlers would pass its signals to the server.
            before = signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED)
            pid = os.fork()
            if pid == 0:
                self._leave()
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            if pid == 0:
                for standard in (1, 2):
                    os.dup2(log, standard)
                for descriptor in (report, log):
                    os.close(descriptor)
                return socket.socket(fileno=connection)
            with suppress(OSError):  # the worker has done so itself, or has ended
                os.setpgid(pid, pid)
        else:  # a lock that another thread holds would stay locked in a fork
            actions = [(os.POSIX_SPAWN_DUP2, own, number) for number, own in enumerate((connection, log, log))]
            pid = os.posix_spawn(sys.executable, [*COMMAND, WORKER], os.environ, file_actions=actions, setpgroup=0)
        for descriptor in (connection, log):
            os.close(descriptor)
        self._workers[pid] = socket.socket(fileno=report)
        self._report(pid, {"pid": pid})
        return None

    def _leave(self) -> None:
        """Close the server's sockets and restore its signal handlers, in a worker."""
        os.setpgid(0, 0)
        signal.set_wakeup_fd(-1)
        for number in HANDLED:
            signal.signal(number, signal.SIG_DFL)
        for own in (self._control, self._signals, self._wakeup, *self._workers.values()):
            own.close()

    def _reap(self, options: int = os.WNOHANG) -> None:
        for pid in list(self._workers):
            ended, status = os.waitpid(pid, options)
            if ended:
                _kill_group(pid)  # processes that it has started
                self._report(pid, {"exit_code": os.waitstatus_to_exitcode(status)})
                self._workers.pop(pid).close()

    def _report(self, pid: int, content: dict[str, int]) -> None:
        with suppress(BrokenPipeError, ConnectionResetError):  # the worker is no longer needed
            send(self._workers[pid], content)

    def _end(self) -> None:
        for pid in self._workers:
            _kill_group(pid)
        self._reap(options=0)


def _kill_group(pid: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def _n_threads() -> int | None:
    """Number of threads of this process; None where the system does not list them."""
    tasks = Path("/proc/self/task")
    return len(list(tasks.iterdir())) if tasks.is_dir() else None


def _main(arguments: list[str]) -> None:
    given = socket.socket(fileno=os.dup(0))
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # KeyboardInterrupt is lost where it is raised in a callback
    connection: socket.socket | None = given
    if WORKER not in arguments:
        import_loader()
        gc.collect()
        gc.freeze()  # so that collections in a worker leave these pages shared
        connection = _Server(given).serve()
    if connection is not None:
        _work(connection)


if __name__ == "__main__":
    _main(sys.argv[1:])
