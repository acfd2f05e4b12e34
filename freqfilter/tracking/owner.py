"""Ownership of a run: a lock on a file in its folder, and the owner's id in the store.

Where the run's folder is shared, the lock decides which process works on a run: the kernel releases it when the process
ends, also in another PID namespace or after a step of the clock. Where it is not, nothing decides by itself: a
take-over writes a new owner to the store, and the former owner stops before its next delivery.

A process of its own waits for a launcher to end and then sets the status (``process.set_status_after``), because
``mlflow run`` marks a run FAILED when its child was stopped, even if the child has ended the run as KILLED:
``mlflow.projects._maybe_set_run_terminated`` compares the name of the status with numbers, so that no status counts as
terminal (MLflow 3.17.2).
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import uuid
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Self

import psutil
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from freqfilter.atomic_io import HOST, atomic_write, writable_folder
from freqfilter.errors import UserError

PROCESS = "process"  # tag of the owner
LOCK, OWNERS = "owner.lock", "owners.json"  # in the run's folder
LONGEST_WAIT_S = 60.0  # for the launcher to end


class TakenOverError(UserError):
    """Another process has taken over the run."""


@dataclass(frozen=True)
class RunOwner:
    """The process that owns a run.

    Attributes:
        host: Name of the machine.
        pid: Process id on that machine.
        run_dir: Folder of the runs' folders.
        id: Random id of this ownership; empty in runs that were opened without a lock.
    """

    host: str
    pid: int
    run_dir: str
    id: str = field(default_factory=lambda: uuid.uuid4().hex)

    @classmethod
    def current(cls, run_dir: str) -> Self:
        """Describe this process, with a new id."""
        return cls(HOST, os.getpid(), run_dir)

    @classmethod
    def from_tags(cls, tags: Mapping[str, str]) -> Self | None:
        """Read the owner from a run's tags; None if they have none."""
        try:
            owner = json.loads(tags[PROCESS])
            return cls(str(owner["host"]), int(owner["pid"]), str(owner["run_dir"]), str(owner.get("id", "")))
        except (AttributeError, KeyError, TypeError, ValueError):
            return None

    def folder(self, run_id: str) -> Path:
        """Folder of a run on the owner's machine."""
        return Path(self.run_dir) / run_id

    @property
    def tag(self) -> dict[str, str]:
        """Name and value of the run's tag."""
        return {PROCESS: json.dumps(asdict(self))}

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


class RunLock:
    """An exclusive lock on a run's folder, held until ``release`` or the end of the process.

    Args:
        folder: The run's folder, which is created if it is missing.

    Raises:
        BlockingIOError: If another process holds it.
        FileNotFoundError: If its holder removed the folder meanwhile.
        UserError: If the folder cannot be written or its file system has no locks.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = writable_folder(folder)
        self._descriptor: int | None = _locked(folder / LOCK)

    def owner_ids(self) -> set[str]:
        """Ids of the processes that have owned the run with this folder."""
        return owner_ids(self.folder)

    def add(self, owner: RunOwner) -> None:
        """Record an owner in the folder, before it is recorded in the store."""
        with atomic_write(self.folder / OWNERS) as file:
            file.write(json.dumps(sorted(self.owner_ids() - {""} | {owner.id})).encode())

    def move(self, folder: Path) -> None:
        """Rename the folder.

        Raises:
            OSError: If it cannot be renamed.
        """
        self.folder = self.folder.rename(folder)

    def remove_folder(self) -> None:
        """Delete the folder, and release the lock."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.release()

    def release(self) -> None:
        """Release the lock; a folder that has nothing else is deleted."""
        if self._descriptor is None:
            return
        with suppress(OSError):
            if {path.name for path in self.folder.iterdir()} <= {LOCK, OWNERS}:
                shutil.rmtree(self.folder)
        os.close(self._descriptor)
        self._descriptor = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def owner_ids(folder: Path) -> set[str]:
    """Ids of the processes that have owned the run with this folder; an empty id if none is recorded."""
    try:
        return set(json.loads((folder / OWNERS).read_bytes()))
    except (OSError, TypeError, ValueError):
        return {""}


def is_locked(folder: Path) -> bool:
    """Whether a process holds the lock of a run's folder."""
    try:
        os.close(_locked(folder / LOCK, create=False))
    except BlockingIOError:
        return True
    except (OSError, UserError):
        return False
    return False


def check_owner(client: MlflowClient, run_id: str, ids: Collection[str]) -> None:
    """Check that no other process has taken over a run.

    Args:
        client: Client of the store.
        run_id: Id of the run.
        ids: Ids of this owner.

    Raises:
        TakenOverError: If one has.
        MlflowException: If the response is not that of the store.
    """
    run = client.get_run(run_id)
    if run.info.run_id != run_id:
        raise MlflowException("another program responds at the address of the tracking store")
    owner = RunOwner.from_tags(run.data.tags)
    if owner is not None and owner.id not in ids:
        raise TakenOverError(f"run {run_id} was taken over by {owner}; this process delivers no more and stops")


def _locked(path: Path, *, create: bool = True) -> int:
    descriptor = os.open(path, os.O_RDWR | (os.O_CREAT if create else 0), 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(descriptor).st_ino != path.stat().st_ino:  # the former holder has deleted the folder
            raise FileNotFoundError(path)
    except (BlockingIOError, FileNotFoundError):
        os.close(descriptor)
        raise
    except OSError as error:
        os.close(descriptor)
        raise UserError(f"run_dir={path.parents[1]}: its file system has no file locks; use another folder") from error
    return descriptor


def set_status_of_ended(run_id: str, status: str, pid: str, *owner_ids: str) -> None:
    """Wait for a launcher to end and set the status of its run, if it has this owner; see ``set_status_after``."""
    with suppress(psutil.Error):  # it has ended already, or does not end in time
        psutil.Process(int(pid)).wait(LONGEST_WAIT_S)
    client = MlflowClient()
    if owner_ids:
        check_owner(client, run_id, owner_ids)
    client.set_terminated(run_id, status)
