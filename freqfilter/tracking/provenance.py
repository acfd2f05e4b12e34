"""Provenance of a run: commit, uncommitted patch, machine and package versions."""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Container
from dataclasses import dataclass
from functools import cache
from importlib.metadata import distributions, version
from pathlib import Path

import freqfilter
from freqfilter.errors import one_line
from freqfilter.training.device import Accelerator

logger = logging.getLogger(__name__)

MAX_PATCH_BYTES = 5_000_000  # of a larger patch, only the digest is logged
# The user's settings that determine a patch but have no option of `git diff`.
SETTINGS = (
    *("core.attributesFile=/dev/null", "core.ignoreStat=false", "core.quotePath=false"),
    "diff.suppressBlankEmpty=false",
)
DIFF_OPTIONS = (
    *("--binary", "--full-index", "--src-prefix=a/", "--dst-prefix=b/", "--no-relative", "-O/dev/null"),
    *("--unified=3", "--inter-hunk-context=0", "--diff-algorithm=myers", "--indent-heuristic", "--no-renames"),
    *("--no-textconv", "--no-ext-diff", "--no-color"),
)
# Of git's variables, those that state where its settings are and how it searches for a repository.
KEPT = {
    *("GIT_CONFIG_GLOBAL", "GIT_CONFIG_SYSTEM", "GIT_CONFIG_NOSYSTEM", "GIT_EXEC_PATH"),
    *("GIT_CEILING_DIRECTORIES", "GIT_DISCOVERY_ACROSS_FILESYSTEM"),
}


@dataclass(frozen=True)
class Source:
    """State of the git checkout that the package runs from.

    Attributes:
        commit: Hash of the commit; None if it is unknown.
        patch: Uncommitted changes of tracked files, and new code and recipes; empty if there are none.
        path: Path of the project in its repository; empty if it is the repository's root.
        unknown: Why the commit, or if there is one, the patch is unknown; empty if both are known.
    """

    commit: str | None
    patch: bytes = b""
    path: str = ""
    unknown: str = ""

    @property
    def tags(self) -> dict[str, str]:
        """``git_commit``, and where there are such ``git_path`` and ``git_patch_sha256``; or why they are unknown."""
        if self.commit is None:
            return {"git_commit": f"unknown: {self.unknown}"}
        tags = {"git_commit": self.commit}
        if self.path:
            tags["git_path"] = self.path
        if self.unknown:
            tags["git_patch_sha256"] = f"unknown: {self.unknown}"
        elif self.patch:
            tags["git_patch_sha256"] = hashlib.sha256(self.patch).hexdigest()
        return tags


def source() -> Source:
    """Read commit and patch of the checkout that the package runs from; a warning states what is unknown."""
    root = Path(freqfilter.__file__).resolve().parents[1]
    # An installed package may lie inside another project's checkout; this project's contains MLproject.
    if not (root / "MLproject").exists():
        return Source(None, unknown="freqfilter is an installed package")
    found = _read_source(root) if shutil.which("git") else Source(None, unknown="git is not installed")
    if found.unknown:
        _warn(f"git {'patch' if found.commit else 'commit'} of {root} unknown: {found.unknown}")
    return found


def _read_source(root: Path) -> Source:
    commit, path = None, ""
    try:
        path = _git(root, "rev-parse", "--show-prefix").decode().rstrip("/\n")
        head = _git(root, "rev-parse", "--verify", "--quiet", "HEAD^{commit}", status={0, 1}).decode().strip()
        if not head:
            return Source(None, unknown="the repository has no commit")
        # A copy of the project may lie untracked in another repository.
        if not _git(root, "ls-tree", "--name-only", head, "MLproject"):
            return Source(None, unknown=f"the project is not in commit {head} of the repository around it")
        commit = head
        return Source(commit, _patch(root), path)
    except subprocess.CalledProcessError as error:  # such as: no repository, or one of an owner that git does not trust
        reason = one_line(error.stderr.decode(errors="replace").removeprefix("fatal: "), max_length=300)
    except OSError as error:  # of the temporary folder
        reason = one_line(error)
    return Source(commit, path=path, unknown=reason)


@cache
def _warn(line: str) -> None:
    """Log a warning, once for all runs of this process."""
    logger.warning("%s", line)


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
    """Diff of all uncommitted changes, through an index of its own, so that the user's stays unchanged.

    It does not depend on the user's settings, so that equal changes have equal digests, and ``git apply`` restores
    them.
    """
    # Written anew: a copy of the user's index would keep its marks for files whose changes git is to ignore.
    staged = _git(root, "ls-files", "--stage", "-z", "--full-name", ".")
    with tempfile.TemporaryDirectory() as folder:
        index = Path(folder) / "index"
        _git(root, "update-index", "-z", "--index-info", index=index, stdin=staged)
        # Only new files that a run can depend on: others may hold data or secrets.
        new = [name for name in ("freqfilter", "recipes") if (root / name).exists()]
        _git(root, "add", "--intent-to-add", "--", *new, index=index)
        return _git(root, "diff", *DIFF_OPTIONS, "HEAD", "--", ".", index=index)


def _git(
    root: Path, *arguments: str, index: Path | None = None, stdin: bytes = b"", status: Container[int] = (0,)
) -> bytes:
    """Run git in a folder, whatever repository and options the environment names; return its output.

    Raises:
        subprocess.CalledProcessError: If its exit status is not in ``status``.
    """
    environment = {name: value for name, value in os.environ.items() if name in KEPT or not name.startswith("GIT_")}
    environment |= {"LC_ALL": "C", "GIT_ATTR_NOSYSTEM": "1", "GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0"}
    if index:
        environment["GIT_INDEX_FILE"] = str(index)
    settings = [word for setting in SETTINGS for word in ("-c", setting)]
    done = subprocess.run(
        ["git", *settings, *arguments], cwd=root, env=environment, input=stdin, capture_output=True, check=False
    )
    if done.returncode not in status:
        raise subprocess.CalledProcessError(done.returncode, arguments, done.stdout, done.stderr)
    return done.stdout


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
