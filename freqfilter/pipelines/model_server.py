"""Process that computes models' estimates: a server that imports PyTorch and MLflow once and forks a worker per model.

``command()`` starts it. It serves on its standard input, which is a Unix socket. Each message on it carries three
descriptors: a worker's connection, a socket for reports on its process, and its log. The client is
``freqfilter.pipelines.sandbox``.

A worker receives windows and sends estimates. Targets, noise seeds and scores are in the client's process only, where
no code of a model runs.
"""

from __future__ import annotations

import ctypes
import errno
import gc
import json
import math
import os
import resource
import select
import signal
import socket
import struct
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from numpy.typing import NDArray

import freqfilter
from freqfilter.errors import UserError
from freqfilter.process import shutdown
from freqfilter.tracking.loading import import_loader, load_files
from freqfilter.training.device import use_deterministic_algorithms

# Modules of the working directory would shadow the standard library's: the package is loaded from its own folder, and
# folders of other packages come after those of the interpreter.
BOOT = """
import importlib.util, json, sys
sys.path += [path for path in json.loads(sys.argv[2]) if path not in sys.path]
spec = importlib.util.spec_from_file_location("freqfilter", sys.argv[1])
sys.modules["freqfilter"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sys.modules["freqfilter"])
from freqfilter.pipelines.model_server import main
main(sys.argv[3:])
"""
WORKER = "worker"  # argument of a process that is a worker itself
MESSAGE_LIMIT = 1 << 16  # bytes of a JSON message
ARRAY_LIMIT = 1 << 30  # bytes of an array
POLL_S = 0.5  # between checks whether the process is to end
HEADER = struct.Struct("!I")  # length of the message that follows
HANDLED = {signal.SIGCHLD, signal.SIGTERM}  # signals, by the server
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 1, 36, 38  # linux/prctl.h

MEMORY_LIMIT = 4 << 30  # bytes that a model's process may allocate
PROCESSOR_LIMIT_S = 1800  # processor time of a model's process
LIMITS = {
    resource.RLIMIT_CORE: 0,
    resource.RLIMIT_CPU: PROCESSOR_LIMIT_S,
    resource.RLIMIT_FSIZE: 64 << 20,  # bytes of a file, its log among them
    resource.RLIMIT_NOFILE: 256,
}
# Errors of the machine rather than of a model.
MACHINE_ERRORS = {errno.EAGAIN, errno.EDQUOT, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOSPC}

Array = NDArray[np.float32]


def command(*arguments: str) -> list[str]:
    """Command of a server, or with ``WORKER`` of a worker, which imports nothing from the working directory."""
    paths = [path for path in sys.path if Path(path).is_absolute() and Path(path) != Path.cwd()]
    return [sys.executable, "-P", "-c", BOOT, str(Path(freqfilter.__file__).resolve()), json.dumps(paths), *arguments]


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


def receive(connection: socket.socket, *, deadline: float = math.inf) -> dict[str, Any] | None:
    """Receive a message; None if the other side has closed the connection.

    Args:
        connection: The socket.
        deadline: Value of ``time.monotonic()`` by which all of it has to arrive.

    Raises:
        ValueError: If it is longer than ``MESSAGE_LIMIT``, or not a JSON object.
        TimeoutError: If it has not arrived by the deadline.
    """
    header = receive_bytes(connection, HEADER.size, deadline=deadline)
    if header is None:
        return None
    (length,) = HEADER.unpack(header)
    if length > MESSAGE_LIMIT:
        raise ValueError(f"a message of {length} bytes; at most {MESSAGE_LIMIT} are allowed")
    message = receive_bytes(connection, length, deadline=deadline)
    if message is None:
        return None
    try:
        content = json.loads(message)
    except (RecursionError, ValueError) as error:
        raise ValueError("a message that is not JSON") from error
    if not isinstance(content, dict):
        raise ValueError("a message that is not a JSON object")
    return content


def send_array(connection: socket.socket, array: NDArray[Any]) -> None:
    """Send shape and type of an array as JSON and, if it has the type float32, its values as bytes.

    Raises:
        OSError: If the other side has closed the connection.
    """
    send(connection, {"shape": array.shape, "dtype": str(array.dtype)})
    if array.dtype == np.float32:
        connection.sendall(np.ascontiguousarray(array).data.cast("B"))


def receive_bytes(connection: socket.socket, length: int, *, deadline: float = math.inf) -> bytearray | None:
    """Receive ``length`` bytes; None if the other side has closed the connection.

    Raises:
        Interrupted: If the process is to end.
        TimeoutError: If they have not arrived by the deadline.
    """
    received, n_received = bytearray(length), 0
    with suppress(ConnectionResetError), memoryview(received) as view:
        while n_received < length:
            if deadline < math.inf:
                connection.settimeout(min(max(deadline - time.monotonic(), 0.001), POLL_S))
            try:
                n = connection.recv_into(view[n_received:])
            except TimeoutError:
                shutdown.check()
                if time.monotonic() > deadline:
                    raise
                continue
            if n == 0:
                return None
            n_received += n
        return received
    return None


def _receive_windows(connection: socket.socket) -> Array | None:
    header = receive(connection)
    if header is None:
        return None
    values = receive_bytes(connection, 4 * math.prod(header["shape"]))
    return None if values is None else np.frombuffer(values, dtype=np.float32).reshape(header["shape"])


def _work(connection: socket.socket) -> None:
    """Load a model and compute its estimates of received windows until the connection is closed."""
    torch.set_num_threads(1)  # the same bits on every machine
    use_deterministic_algorithms(True)
    if (request := receive(connection)) is None:
        return
    os.chdir(request["folder"])
    os.environ |= dict.fromkeys(("HOME", "TMPDIR"), request["folder"])
    tempfile.tempdir = None
    _set_limits()
    send(connection, {"started": True})  # a failure from here on is one of the model
    try:
        model = load_files(request["uri"], Path(request["files"]), suppress_warnings=True)
        send(connection, {"loaded": True})
        while (windows := _receive_windows(connection)) is not None:
            send_array(connection, model.predict(windows))
    except BaseException as error:  # the code of a model may raise anything
        with suppress(OSError):
            send(connection, {"error": _error_text(error)[:1000], "cause": _error_cause(error)})


def _error_text(error: BaseException) -> str:
    return str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"


def _error_cause(error: BaseException) -> str:
    """Cause of an error: the model, its need of memory, or the machine."""
    causes: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in causes:
        causes.append(cause)
        cause = cause.__cause__ or cause.__context__
    if any(isinstance(each, OSError) and each.errno in MACHINE_ERRORS for each in causes):
        return "machine"
    lacks_memory = any(isinstance(each, MemoryError) or "t allocate memory" in str(each) for each in causes)
    return "memory" if lacks_memory else "model"


def _set_limits() -> None:
    """Limit the resources of this process and of those that it starts; they cannot be raised again."""
    _prctl(PR_SET_NO_NEW_PRIVS, 1)
    limits = dict(LIMITS)
    with suppress(OSError):  # where the system does not tell the size of a process
        n_pages = int(Path("/proc/self/statm").read_text().split()[0])
        limits[resource.RLIMIT_AS] = n_pages * resource.getpagesize() + MEMORY_LIMIT
    for kind, limit in limits.items():
        hard = resource.getrlimit(kind)[1]
        allowed = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(kind, (allowed, allowed))


def _prctl(option: int, value: int) -> None:
    """Set an attribute of this process where the system, Linux, has it."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


class _Server:
    """Starts a worker for each message on the control socket, and reports how each has ended.

    A worker leads a process group of its own, which is killed when its report socket is closed, when it has ended, and
    when the server ends: on the end of the control socket, or on SIGTERM. Processes that have left the group become
    children of the server when the worker ends (on Linux), and are killed then.
    """

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._workers: dict[int, socket.socket] = {}  # report sockets by process id
        self._signals, self._wakeup = socket.socketpair()
        self._wakeup.setblocking(False)
        _prctl(PR_SET_CHILD_SUBREAPER, 1)
        signal.set_wakeup_fd(self._wakeup.fileno())
        for number in HANDLED:
            signal.signal(number, lambda *_: None)

    def serve(self) -> socket.socket | None:
        """Serve until the end: None. In a forked worker: its connection."""
        while True:
            ready, _, _ = select.select([self._control, self._signals, *self._workers.values()], [], [])
            for pid, report in self._workers.items():
                if report in ready:  # ended by the client
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
                os.closerange(3, connection)
                os.closerange(connection + 1, os.sysconf("SC_OPEN_MAX"))
                return socket.socket(fileno=connection)
            with suppress(OSError):  # the worker has done so itself, or has ended
                os.setpgid(pid, pid)
        else:  # a lock that another thread holds would stay locked in a fork
            actions = [(os.POSIX_SPAWN_DUP2, own, number) for number, own in enumerate((connection, log, log))]
            pid = os.posix_spawn(sys.executable, command(WORKER), os.environ, file_actions=actions, setpgroup=0)
        for descriptor in (connection, log):
            os.close(descriptor)
        self._workers[pid] = socket.socket(fileno=report)
        _report(self._workers[pid], {"pid": pid})
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
                report = self._workers.pop(pid)
                self._kill_orphans()
                _report(report, {"exit_code": os.waitstatus_to_exitcode(status)})
                report.close()

    def _kill_orphans(self) -> None:
        """Kill what ended workers have left, and what becomes a child of the server by that, until nothing is left."""
        while orphans := [child for child in psutil.Process().children() if child.pid not in self._workers]:
            for orphan in orphans:
                with suppress(psutil.NoSuchProcess):
                    orphan.kill()
                with suppress(ChildProcessError):
                    os.waitpid(orphan.pid, 0)

    def _end(self) -> None:
        for pid in self._workers:
            _kill_group(pid)
        self._reap(options=0)


def _report(report: socket.socket, content: dict[str, int]) -> None:
    with suppress(BrokenPipeError, ConnectionResetError):  # the worker is no longer needed
        send(report, content)


def _kill_group(pid: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def _n_threads() -> int | None:
    """Number of threads of this process; None where the system does not list them."""
    tasks = Path("/proc/self/task")
    return len(list(tasks.iterdir())) if tasks.is_dir() else None


def main(arguments: list[str]) -> None:
    """Run a server or, with the argument ``WORKER``, a worker."""
    given = socket.socket(fileno=os.dup(0))
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # KeyboardInterrupt is lost where it is raised in a callback
    connection = given
    if WORKER not in arguments:
        import_loader()
        gc.collect()
        gc.freeze()  # so that collections in a worker leave these pages shared
        served = _Server(given).serve()
        if served is None:
            os._exit(0)  # without the libraries' clean-up, which takes a second
        connection = served
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # at the end of the server, whatever ends it
    _work(connection)
