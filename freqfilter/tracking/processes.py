"""Which process works on a run, as a tag that tells later whether it still does."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Self

import psutil

from freqfilter.files import HOST
from freqfilter.launch import running

PROCESS = "process"  # the tag


@dataclass(frozen=True)
class Worker:
    """The process that works on a run.

    Attributes:
        host: The machine's name.
        pid: The process's number there.
        started: Its start, seconds since 1970; with host and number no other process has it.
        run_dir: The folder in which it keeps a folder for the run.
    """

    host: str
    pid: int
    started: float
    run_dir: str

    @classmethod
    def this(cls, run_dir: str) -> Self:
        """This process."""
        process = psutil.Process()
        return cls(HOST, process.pid, process.create_time(), run_dir)

    @classmethod
    def named_in(cls, tags: Mapping[str, str]) -> Self | None:
        """The process that the tags of a run name; None where they name none."""
        try:
            named = json.loads(tags[PROCESS])
            return cls(str(named["host"]), int(named["pid"]), float(named["started"]), str(named["run_dir"]))
        except (KeyError, TypeError, ValueError):
            return None

    @property
    def tag(self) -> dict[str, str]:
        """The tag that names it."""
        return {PROCESS: json.dumps(asdict(self))}

    @property
    def is_here(self) -> bool:
        """Whether it is of this machine."""
        return self.host == HOST

    @property
    def is_alive(self) -> bool | None:
        """Whether it still works; None where nobody can tell from here."""
        if not self.is_here:
            return None
        try:
            process = psutil.Process(self.pid)
            return running(process) and abs(process.create_time() - self.started) < 1
        except psutil.Error:
            return False
