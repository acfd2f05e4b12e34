"""Provenance of a run: commit, uncommitted patch, machine and package versions."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from functools import cache
from importlib.metadata import distributions, version
from pathlib import Path

import freqfilter
from freqfilter.training.device import Accelerator

MAX_PATCH_BYTES = 5_000_000  # of a larger patch, only the digest is logged


@dataclass(frozen=True)
class Source:
    """State of the git checkout that the package runs from.

    Attributes:
        commit: Hash of the commit; None outside a git checkout.
        patch: Uncommitted changes of tracked files, and new code and recipes; empty if there are none.
    """

    commit: str | None
    patch: bytes

    @property
    def tags(self) -> dict[str, str]:
        """``git_commit``, and ``git_patch_sha256`` where there are uncommitted changes."""
        tags = {"git_commit": self.commit} if self.commit else {}
        if self.patch:
            tags["git_patch_sha256"] = hashlib.sha256(self.patch).hexdigest()
        return tags


def source() -> Source:
    """Read commit and patch of the checkout that the package runs from, if it is one."""
    root = Path(freqfilter.__file__).resolve().parents[1]
    # An installed package may lie inside another project's checkout; this project's contains MLproject.
    if not shutil.which("git") or not (root / "MLproject").exists() or not (root / ".git").exists():
        return Source(None, b"")
    try:
        commit = _git(root, "rev-parse", "HEAD").decode().strip()
    except subprocess.CalledProcessError:  # no commit yet, or git does not trust the folder's owner
        return Source(None, b"")
    try:
        return Source(commit, _patch(root))
    except subprocess.CalledProcessError:  # a file was deleted in between
        return Source(commit, b"")


def machine_tags(accelerator: Accelerator) -> dict[str, str]:
    """Device, processor, threads and versions, which determine a result bit for bit."""
    packages = ("torch", "numpy", "mlflow")
    return {
        "device": accelerator.describe(),
        "processor": _processor(),
        "threads": str(accelerator.threads),
        "freqfilter_version": freqfilter.__version__,
        "python_version": platform.python_version(),
        **{f"{package}_version": version(package) for package in packages},
        "distributions_sha256": _distributions_digest(),
    }


@cache
def _distributions_digest() -> str:
    """SHA-256 of names and versions of all installed packages; cached, as imported modules are."""
    installed = [distribution.metadata for distribution in distributions()]
    names = sorted(f"{metadata['Name']}=={metadata['Version']}" for metadata in installed)
    return hashlib.sha256("\n".join(names).encode()).hexdigest()


def _patch(root: Path) -> bytes:
    """Diff of all uncommitted changes, through a copy of the index, so that the user's stays unchanged."""
    index = Path(_git(root, "rev-parse", "--git-path", "index").decode().strip())
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "index"
        if (root / index).exists():
            shutil.copy(root / index, copy)
        # Only new files that a run can depend on: others may hold data or secrets.
        new = [name for name in ("freqfilter", "recipes") if (root / name).exists()]
        _git(root, "add", "--intent-to-add", "--", *new, index=copy)
        return _git(root, "diff", "--binary", "--no-ext-diff", "--no-color", "HEAD", index=copy)


def _git(root: Path, *arguments: str, index: Path | None = None) -> bytes:
    environment = os.environ | ({"GIT_INDEX_FILE": str(index)} if index else {})
    done = subprocess.run(["git", *arguments], cwd=root, env=environment, capture_output=True, check=True)
    return done.stdout


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
