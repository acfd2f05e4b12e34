"""Python programs forked from a process that has already imported PyTorch, MLflow and Matplotlib.

A start of ``python -m freqfilter`` spends 5 to 10 seconds of processor time on imports of other libraries. `Popen` and
`run` take the command of `subprocess.Popen` and `subprocess.run`, but fork a *zygote*: a process of each pytest worker
that has imported these libraries, has opened no file and runs one thread. The child imports freqfilter itself, in the
environment and working directory it is given. It is a process like any other: it can be signalled, stopped and waited
for.

A fork whose environment has the variables of `stand_ins` gets its own zygote. The programs ``python`` and
``mlflow`` on its search path, and its `sys.executable`, are forked from that one: the program that ``mlflow run``
starts is a descendant of ``mlflow run``.

Tests whose subject is the start itself (``mlflow run``, the wheel, secrets, imports) use `subprocess`.
"""

from __future__ import annotations

import atexit
import ctypes
import fcntl
import gc
import importlib
import io
import json
import os
import runpy
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

# Everything outside the standard library that a training imports, directly or indirectly.
LIBRARIES = [
    *(
        "IPython",
        "PIL.Image",
        "alembic.command",
        "filelock",
        "git",
        "matplotlib.backends.backend_agg",
        "matplotlib.figure",
    ),
    *("mlflow", "mlflow.models.display_utils", "mlflow.pyfunc.model", "mlflow.pyfunc.scoring_server"),
    *("mlflow.store.model_registry.sqlalchemy_workspace_store", "mlflow.store.tracking.sqlalchemy_workspace_store"),
    *("mlflow.utils.search_logged_model_utils", "pandas", "platformdirs", "psutil", "pydantic", "scipy.signal"),
    *(
        "scipy.stats",
        "sqlalchemy.dialects.sqlite",
        "tabulate",
        "torch",
        "torch._dynamo",
        "torch.export._trace",
        "torch.onnx",
        "tqdm",
        "yaml",
    ),
]
# Variables that those libraries, the OpenMP runtime or the interpreter read when they are loaded.
READ_WHEN_IMPORTED = (
    *("LANG", "LC_", "TZ", "PYTHON", "OMP_", "GOMP_", "KMP_", "MKL_", "OPENBLAS_", "ATEN_", "TORCH", "PYTORCH"),
    *("MPL", "MATPLOTLIB", "NPY_", "NUMPY_", "PANDAS_", "SCIPY_", "PILLOW_", "OTEL_", "MLFLOW_DISABLE_TELEMETRY"),
    *("MLFLOW_CONFIGURE_LOGGING", "MLFLOW_LOGGING_", "MLFLOW_WEBHOOK_", "_MLFLOW_TESTING"),
)
GIVEN_AGAIN = {"PYTHONPATH", "TORCHINDUCTOR_CACHE_DIR"}  # the child's values take effect
LEAVES_NO_TRACE = {"MLFLOW_DISABLE_TELEMETRY": "true"}  # freqfilter.tracking sets it where it is absent
DRAW_NOTHING = "FREQFILTER_TESTS_DRAW_NOTHING"  # of a fork's environment
STAND_INS = "FREQFILTER_TESTS_STAND_INS"  # in a fork's environment: the folder of `stand_ins`
SOCKET = "FREQFILTER_TESTS_ZYGOTE"  # in the environment of a fork with its own zygote: its socket
LARGEST_REQUEST = 1 << 17


class Popen(subprocess.Popen[str]):
    """A Python program, started by a fork of the zygote.

    Takes the arguments of `subprocess.Popen` that tests need: the command ``[sys.executable, "-m" MODULE | "-c" CODE |
    FILE, …]``, ``cwd``, ``env``, ``stdin``, ``stdout``, ``stderr``, ``text``, ``pass_fds`` and ``start_new_session``.

    Raises:
        ValueError: If the environment differs from the zygote's in a variable that was read while importing.
    """

    # The two private methods by which subprocess (as it is in Python 3.11, which the tests run on) starts a child and
    # waits for it; pipes, communicate(), poll(), wait() and kill() are its own.

    def _execute_child(self, args: list[str], *positional: Any) -> None:
        names = (
            *("executable", "preexec_fn", "close_fds", "pass_fds", "cwd", "env", "startupinfo", "creationflags"),
            *("shell", "p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite", "restore_signals"),
            *("gid", "gids", "uid", "umask", "start_new_session", "process_group"),
        )
        given = dict(zip(names, positional, strict=True))
        assert args[0] == sys.executable
        assert not given["preexec_fn"]
        assert not given["shell"]
        environment = dict(os.environ if given["env"] is None else given["env"])
        _refuse_what_is_read_too_late(environment)
        request = {
            "words": args[1:],
            "cwd": str(given["cwd"] or Path.cwd()),
            "environment": environment,
            "new_session": given["start_new_session"],
            "pass_fds": list(given["pass_fds"]),
        }
        standard = [
            number if own == -1 else own
            for number, own in enumerate((given["p2cread"], given["c2pwrite"], given["errwrite"]))
        ]
        self._ended, status = os.pipe()
        try:
            socket.send_fds(_zygote(), [json.dumps(request).encode()], [status, *standard, *given["pass_fds"]])
        finally:
            os.close(status)
            ours = ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")
            self._close_pipe_fds(*(given[name] for name in ours))
        self._child_created = True
        self.pid = self._told()

    def _told(self) -> int:
        told = os.read(self._ended, 4)
        if not told:
            raise RuntimeError("the zygote has ended")
        return int(struct.unpack("i", told)[0])

    def _try_wait(self, wait_flags: int) -> tuple[int, int]:
        if wait_flags & os.WNOHANG and not select.select([self._ended], [], [], 0)[0]:
            return 0, 0
        status = self._told()
        os.close(self._ended)
        return self.pid, status

    def _internal_poll(self, *_: Any, **__: Any) -> int | None:
        if self.returncode is None and self._waitpid_lock.acquire(blocking=False):
            try:
                pid, status = self._try_wait(os.WNOHANG)
                if pid:
                    self._handle_exitstatus(status)
            finally:
                self._waitpid_lock.release()
        return self.returncode


def run(
    command: list[str], *, timeout: float | None = 300, check: bool = False, **settings: Any
) -> subprocess.CompletedProcess[str]:
    """`subprocess.run` of a Python program by a fork of the zygote, with its output captured as text."""
    with Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **settings) as process:
        try:
            output, errors = process.communicate(timeout=timeout)
        except BaseException:
            process.kill()
            raise
    done = subprocess.CompletedProcess(command, process.returncode, output, errors)
    if check:
        done.check_returncode()
    return done


def stand_ins(folder: Path) -> dict[str, str]:
    """Write programs ``python`` and ``mlflow`` to a new folder, which run their arguments in a fork.

    Returns:
        Variables for the environment of a fork.
    """
    folder.mkdir()
    for name, words in {"python": "", "mlflow": "-m mlflow"}.items():
        (folder / name).write_text(f'#!/bin/sh\nexec {sys.executable} -IS {__file__} stand_in {words} "$@"\n')
        (folder / name).chmod(0o755)
    return {STAND_INS: str(folder), "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}


def draw_nothing(replace: Callable[[object, str, object], None] = setattr) -> None:
    """Replace Matplotlib's pictures by one pixel in this process."""
    import PIL.Image
    from matplotlib.figure import Figure

    dot = io.BytesIO()
    PIL.Image.new("RGB", (1, 1)).save(dot, format="png")
    replace(Figure, "savefig", lambda figure, file, **settings: file.write(dot.getvalue()))
    replace(Figure, "get_layout_engine", lambda figure: None)


def _environment() -> dict[str, str]:
    """The environment in which the libraries are imported."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    return kept | LEAVES_NO_TRACE


def _refuse_what_is_read_too_late(environment: dict[str, str]) -> None:
    """Raise ValueError if a fork would ignore a variable."""
    _zygote()
    imported_with = _zygote_environment()
    for name in sorted(environment.keys() | imported_with.keys()):
        if name not in environment or name in GIVEN_AGAIN:  # a model's process gets few variables
            continue
        differs = environment[name] != imported_with.get(name, LEAVES_NO_TRACE.get(name))
        if name.startswith(READ_WHEN_IMPORTED) and differs:
            raise ValueError(f"{name} is read while importing: start this program with subprocess")


@cache
def _zygote_environment() -> dict[str, str]:
    return _environment()


@cache
def _zygote() -> socket.socket:
    """The socket of this process's zygote, which is started on first use and ends with it."""
    if SOCKET in os.environ:
        its_own = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        its_own.connect(os.environ[SOCKET])
        return its_own
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    # pyarrow's allocator would start a thread; the thread pools of OpenMP and OpenBLAS have one thread (conftest.py).
    environment = _zygote_environment() | {"JE_ARROW_MALLOC_CONF": "background_thread:false"}
    process = subprocess.Popen(
        [sys.executable, __file__, str(its.fileno())],
        pass_fds=[its.fileno()],
        env=environment,
        stdin=subprocess.DEVNULL,
    )
    its.close()

    def end() -> None:
        ours.close()
        process.wait()

    atexit.register(end)
    return ours


def _wait_for_a_request(
    *controls: socket.socket, listener: socket.socket | None = None, parent: int = -1
) -> tuple[dict[str, Any], list[int]] | None:
    """Fork for each request, and report how each child has ended.

    Args:
        controls: Sockets of requests.
        listener: Socket to which other processes connect for requests.
        parent: Descriptor of the process that owns this zygote, if it does not end with its only control.

    Returns:
        In a child the request and its file descriptors; in the zygote None, when its process and, with a listener, its
        children have ended.
    """
    children: dict[int, tuple[int, int]] = {}  # by pidfd: process id, descriptor for its status
    connected = {control.fileno(): control for control in controls}
    poll = select.poll()
    for descriptor in (*connected, *([] if listener is None else [listener.fileno(), parent])):
        poll.register(descriptor, select.POLLIN)
    orphaned = False
    while not orphaned or children:
        for ready, _ in poll.poll():
            if ready in children:
                pid, report = children.pop(ready)
                poll.unregister(ready)
                os.close(ready)
                _, status = os.waitpid(pid, 0)
                with suppress(BrokenPipeError):  # no process waits for it
                    os.write(report, struct.pack("i", status))
                os.close(report)
                continue
            if ready == parent:
                orphaned = True
                poll.unregister(ready)
                continue
            if listener is not None and ready == listener.fileno():
                control, _ = listener.accept()
                connected[control.fileno()] = control
                poll.register(control, select.POLLIN)
                continue
            message, descriptors, _, _ = socket.recv_fds(connected[ready], LARGEST_REQUEST, 16)
            if not message:
                if listener is None:
                    return None
                poll.unregister(ready)
                connected.pop(ready).close()
                continue
            threads = list(Path("/proc/self/task").iterdir())
            if len(threads) != 1:  # a lock that another thread holds would stay locked in the child
                raise RuntimeError(f"a zygote with {len(threads)} threads is not forked")
            report, *given = descriptors
            pid = os.fork()
            if pid == 0:
                request = json.loads(message)
                if request["new_session"]:
                    os.setsid()
                with suppress(BrokenPipeError):
                    os.write(report, struct.pack("i", os.getpid()))
                for open_here in (*connected.values(), *([] if listener is None else [listener])):
                    open_here.close()
                for descriptor in (report, *children, *(report for _, report in children.values())):
                    os.close(descriptor)
                if listener is not None and not orphaned:
                    os.close(parent)
                return request, given
            for descriptor in given:
                os.close(descriptor)
            pidfd = os.pidfd_open(pid)
            children[pidfd] = pid, report
            poll.register(pidfd, select.POLLIN)
    return None


def _zygote_of_its_own() -> tuple[dict[str, Any], list[int]] | None:
    """Start a zygote of this process, if its environment has stand-ins for programs.

    It is named like the shell by which ``mlflow run`` starts a program, which skips shells to find its launcher.

    Returns:
        None in this process; in a fork of the new zygote its request.
    """
    if STAND_INS not in os.environ:
        return None
    sys.executable = f"{os.environ[STAND_INS]}/python"
    os.environ[SOCKET] = f"{os.environ[STAND_INS]}/{os.getpid()}"
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(os.environ[SOCKET])
    listener.listen()
    parent = os.pidfd_open(os.getpid())
    if os.fork():
        os.close(parent)
        listener.close()
        return None
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in range(3):  # a reader of the process's output does not wait for the zygote
        os.dup2(nothing, descriptor)
    os.close(nothing)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # for the process and its children
        signal.signal(number, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(15, b"sh", 0, 0, 0)  # PR_SET_NAME
    request = _wait_for_a_request(listener=listener, parent=parent)
    if request is None:
        os._exit(0)
    return request


def _take_over(request: dict[str, Any], descriptors: list[int], by_imports: dict[str, str | None]) -> None:
    """Give this process the state of a new process that has imported the libraries."""
    targets = [0, 1, 2, *request["pass_fds"]]
    # First to numbers above all targets.
    away = [_above(descriptor, max(targets)) for descriptor in descriptors]
    for descriptor, target in zip(away, targets, strict=True):
        os.dup2(descriptor, target)
        os.close(descriptor)
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGPIPE, signal.SIGXFSZ):  # as the interpreter does
        signal.signal(number, signal.SIG_IGN)
    os.chdir(request["cwd"])
    entries_of_the_zygote = 1 + len([path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path])
    environment = by_imports | request["environment"] | {name: None for name, new in by_imports.items() if new is None}
    os.environ.clear()
    os.environ.update({name: value for name, value in environment.items() if value is not None})
    own = [str(Path(path).absolute()) for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    # A .pth file, as that of an editable installation, adds no path that PYTHONPATH has already.
    sys.path[:] = ["", *own, *(path for path in sys.path[entries_of_the_zygote:] if path not in own)]
    importlib.invalidate_caches()
    tempfile.tempdir = None
    sys.modules["numpy"].random.seed()  # a fork reseeds the standard library's generator, not these
    sys.modules["torch"].seed()
    sys.stdout.reconfigure(line_buffering=os.isatty(1))  # type: ignore[union-attr]
    gc.enable()


def _above(descriptor: int, least: int) -> int:
    """Move a descriptor to a number above ``least``."""
    moved = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, least + 1)
    os.close(descriptor)
    return moved


def _become(words: list[str]) -> None:
    """Run what ``python WORD…`` runs."""
    if DRAW_NOTHING in os.environ:
        draw_nothing()
    kind, *rest = words
    if safe_path := kind == "-P":
        kind, *rest = rest
    if kind == "-m":
        sys.path[:1] = [] if safe_path else [str(Path.cwd())]
        sys.argv = rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif kind == "-c":
        sys.path[:1] = [] if safe_path else [""]
        sys.argv = ["-c", *rest[1:]]
        main = sys.modules["__main__"] = ModuleType("__main__")
        exec(compile(rest[0], "<string>", "exec"), main.__dict__)  # noqa: S102 (as python -c does)
    else:
        sys.path[0] = str(Path(kind).absolute().parent)
        sys.argv = words
        runpy.run_path(kind, run_name="__main__")


def _main(descriptor: int) -> None:
    gc.disable()
    before = dict(os.environ)
    for name in LIBRARIES:
        importlib.import_module(name)
    # MLflow reads the metadata of all installed packages when a process logs or loads its first model.
    sys.modules["mlflow.utils.requirements_utils"]._init_packages_to_modules_map()
    changed = {name for name, _ in before.items() ^ os.environ.items()}
    by_imports = {name: os.environ.get(name) for name in changed}
    assert not any(name.partition(".")[0] == "freqfilter" for name in sys.modules)
    gc.collect()
    gc.freeze()  # so that collections in a child leave these pages shared
    request = _wait_for_a_request(socket.socket(fileno=descriptor))
    words: list[str] = []
    while request is not None:  # for each zygote that this process descends from
        _take_over(*request, by_imports)
        words = request[0]["words"]
        request = _zygote_of_its_own()
    if words:
        _become(words)


def _stand_in(words: list[str]) -> int:
    """Run ``python WORD…`` in a fork, pass signals on to it and end with its status."""
    process = Popen([sys.executable, *words])
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: process.send_signal(number))
    status = process.wait()
    if status < 0:
        if status != -signal.SIGKILL:
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    return status


if __name__ == "__main__":
    if sys.argv[1] == "stand_in":
        sys.exit(_stand_in(sys.argv[2:]))
    _main(int(sys.argv[1]))
