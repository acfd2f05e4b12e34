"""Commit and uncommitted patch of the code, in real repositories."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

import freqfilter
from freqfilter.config import resolve
from freqfilter.tracking import provenance
from freqfilter.tracking.lifecycle import Job, open_run

CODE = "\n\n".join(f"def f{number}():\n    a = {number}\n\n    return a" for number in range(12)) + "\n"
# Lines on which the algorithms of git differ.
MOVED = "\n".join("aaabbbccxyaabbccddaabb"), "\n".join("bbccxaabcaabbyccddzbbaa")
BLOCKS = tuple(f"\ntry:\n    {name}()\n" for name in "abc")  # the second is new; its first line is that of the third


def git(root: Path, *words: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    return subprocess.run(["git", *identity, *words], cwd=root, capture_output=True, text=True, check=True).stdout


def write_project(root: Path) -> None:
    (root / "freqfilter").mkdir(parents=True)
    for name in ("MLproject", "freqfilter/__init__.py", "params.yaml"):
        (root / name).write_text("old\n")
    (root / "freqfilter/filtör.py").write_text(CODE + MOVED[0] + BLOCKS[0] + "\n" + BLOCKS[2])
    (root / "freqfilter/moved.py").write_text(CODE)
    (root / "picture.png").write_bytes(bytes(range(256)))
    (root / ".gitattributes").write_text("*.png diff=shown\n")


def change_project(root: Path) -> None:
    """Change, add, move and delete files, of text and binary."""
    code = CODE.replace("a = 2", "a = 20").replace("a = 4", "a = 40") + MOVED[1]
    code += "\n".join(BLOCKS)
    (root / "freqfilter/filtör.py").write_text(code)
    (root / "freqfilter/moved.py").rename(root / "freqfilter/renamed.py")
    (root / "freqfilter/renamed.py").chmod(0o755)
    (root / "picture.png").write_bytes(bytes(range(255, -1, -1)))
    (root / "params.yaml").unlink()


def tree(root: Path) -> dict[str, tuple[bytes, bool]]:
    files = [path for path in root.rglob("*") if path.is_file() and ".git" not in path.parts]
    return {str(path.relative_to(root)): (path.read_bytes(), os.access(path, os.X_OK)) for path in files}


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's settings of git: an empty file."""
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)
    path = tmp_path / "gitconfig"
    path.touch()
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(path))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    return path


@pytest.fixture
def root(tmp_path: Path, settings: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A clean checkout of a project, from which the package runs."""
    root = tmp_path / "project"
    write_project(root)
    git(root, "init", "-q")
    git(root, "add", ".")
    git(root, "commit", "-qm", "first")
    run_from(root, monkeypatch)
    return root


def run_from(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(freqfilter, "__file__", str(root / "freqfilter/__init__.py"))


def test_the_patch_includes_new_files_and_leaves_the_index_unchanged(root: Path) -> None:
    clean = provenance.source()
    assert clean.tags == {"git_commit": git(root, "rev-parse", "HEAD").strip()}
    assert clean.patch == b""

    (root / "MLproject").write_text("new\n")
    (root / "freqfilter" / "added.py").write_text("x = 1\n")
    (root / ".env").write_text("PASSWORD=secret\n")
    before = git(root, "status", "--porcelain"), (root / ".git/index").read_bytes()
    dirty = provenance.source()
    assert b"+x = 1" in dirty.patch
    assert b"-old" in dirty.patch
    assert b"secret" not in dirty.patch
    assert set(dirty.tags) == {"git_commit", "git_patch_sha256"}
    assert (git(root, "status", "--porcelain"), (root / ".git/index").read_bytes()) == before


def test_git_apply_restores_the_tree_from_commit_and_patch(root: Path, tmp_path: Path) -> None:
    change_project(root)
    found = provenance.source()
    clone, patch = tmp_path / "clone", tmp_path / "uncommitted.patch"
    patch.write_bytes(found.patch)
    git(tmp_path, "clone", "-q", str(root), str(clone))
    git(clone, "checkout", "-q", found.tags["git_commit"])
    git(clone, "apply", str(patch))
    assert tree(clone) == tree(root)


SETTINGS = {
    "diff.algorithm": "patience",
    "diff.context": "0",
    "diff.external": "echo",
    "diff.interHunkContext": "9",
    "diff.indentHeuristic": "false",
    "diff.mnemonicPrefix": "true",
    "diff.noprefix": "true",
    "diff.orderFile": "ORDER",
    "diff.renames": "false",
    "diff.suppressBlankEmpty": "true",
    "color.ui": "always",
    "color.diff": "always",
    "core.abbrev": "40",
    "core.attributesFile": "ATTRIBUTES",
    "core.autocrlf": "input",
    "core.ignoreStat": "true",
    "core.quotePath": "false",
    "core.safecrlf": "true",
}
SPECIAL = {"ORDER": "*renamed*\n", "ATTRIBUTES": "*.py diff=shown\n"}


@pytest.mark.parametrize("name", SETTINGS)
def test_the_patch_is_the_same_under_every_setting(name: str, root: Path, settings: Path, tmp_path: Path) -> None:
    change_project(root)
    expected = provenance.source().patch
    for file, content in SPECIAL.items():
        (tmp_path / file).write_text(content)
    value = SETTINGS[name]
    git(root, "config", "--global", name, str(tmp_path / value) if value in SPECIAL else value)
    for driver, command in {"textconv": "rev", "command": "echo", "xfuncname": "^(.*a = .*)$"}.items():
        git(root, "config", "--global", f"diff.shown.{driver}", command)
    (root / "MLproject").write_text("old\n")  # the same content, newer than the index
    assert provenance.source().patch == expected


@pytest.mark.parametrize(
    ("name", "value"), [("GIT_DIFF_OPTS", "--unified=0"), ("GIT_EXTERNAL_DIFF", "echo"), ("GIT_LITERAL_PATHSPECS", "1")]
)
def test_the_patch_is_the_same_in_every_environment(
    name: str, value: str, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change_project(root)
    expected = provenance.source().patch
    monkeypatch.setenv(name, value)
    assert provenance.source().patch == expected


@pytest.mark.parametrize("variables", [["GIT_DIR"], ["GIT_DIR", "GIT_WORK_TREE"], ["GIT_INDEX_FILE"]])
def test_the_commit_is_that_of_the_code_whatever_repository_the_environment_names(
    variables: list[str], root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change_project(root)
    expected = provenance.source()
    other = tmp_path / "other"
    shutil.copytree(root / "freqfilter", other / "freqfilter")
    git(other, "init", "-q")
    git(other, "add", ".")
    git(other, "commit", "-qm", "of another project")
    values = {"GIT_DIR": other / ".git", "GIT_WORK_TREE": other, "GIT_INDEX_FILE": other / ".git/none"}
    for name in variables:
        monkeypatch.setenv(name, str(values[name]))
    assert provenance.source() == expected


@pytest.mark.parametrize("flag", ["--assume-unchanged", "--skip-worktree"])
def test_changes_that_the_index_marks_as_none_are_in_the_patch(flag: str, root: Path) -> None:
    git(root, "update-index", flag, "params.yaml")
    (root / "params.yaml").write_text("new\n")
    assert b"+new" in provenance.source().patch


def test_line_ends_that_git_converts_are_no_change(root: Path) -> None:
    git(root, "config", "core.autocrlf", "true")
    (root / "params.yaml").unlink()
    git(root, "checkout", "params.yaml")
    assert (root / "params.yaml").read_bytes() == b"old\r\n"
    os.utime(root / "params.yaml", (1, 1))
    assert provenance.source().patch == b""


def test_a_subfolder_of_a_repository_has_the_patch_of_its_files_alone(
    tmp_path: Path, settings: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tmp_path / "whole"
    root = whole / "tools" / "filter"
    write_project(root)
    (whole / "other.txt").write_text("old\n")
    git(whole, "init", "-q")
    git(whole, "add", ".")
    git(whole, "commit", "-qm", "first")
    change_project(root)
    (whole / "other.txt").write_text("a secret of another project\n")
    run_from(root, monkeypatch)
    git(whole, "config", "--global", "diff.relative", "true")
    found = provenance.source()
    assert found.tags["git_commit"] == git(whole, "rev-parse", "HEAD").strip()
    assert found.tags["git_path"] == "tools/filter"
    assert b"secret" not in found.patch
    clone, patch = tmp_path / "clone", tmp_path / "uncommitted.patch"
    patch.write_bytes(found.patch)
    git(tmp_path, "clone", "-q", str(whole), str(clone))
    git(clone, "apply", str(patch))
    assert tree(clone / "tools/filter") == tree(root)


def test_worktrees_and_submodules_have_commit_and_patch(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = git(root, "rev-parse", "HEAD").strip()
    git(root, "worktree", "add", "-q", str(tmp_path / "tree"))
    outer = tmp_path / "outer"
    outer.mkdir()
    git(outer, "init", "-q")
    git(outer, "-c", "protocol.file.allow=always", "submodule", "--quiet", "add", str(root), "inner")
    git(outer, "commit", "-qm", "with the project inside")
    for place in (tmp_path / "tree", outer / "inner"):
        run_from(place, monkeypatch)
        assert provenance.source().tags == {"git_commit": commit}
        change_project(place)
        assert b"+    a = 20" in provenance.source().patch


def without_git(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance.shutil, "which", lambda _: None)


def without_repository(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(root / ".git")


def without_commits(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(root / ".git")
    git(root, "init", "-q")


def of_another_owner(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if os.getuid():
        pytest.skip("needs the rights to give a folder to another user")
    for path in (root, root / ".git"):
        os.chown(path, 12345, 12345)


def unpacked_in_another_repository(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(root / ".git")
    (root.parent / "of_another_project").touch()
    git(root.parent, "init", "-q")
    git(root.parent, "add", "of_another_project")
    git(root.parent, "commit", "-qm", "first")


@pytest.mark.parametrize(
    ("happen", "reason"),
    [
        (without_git, "git is not installed"),
        (without_repository, "not a git repository"),
        (without_commits, "the repository has no commit"),
        (of_another_owner, "dubious ownership"),
        (unpacked_in_another_repository, "the project is not in commit"),
    ],
)
def test_an_unknown_commit_has_its_reason_in_the_tag_and_in_a_line(
    happen: object, reason: str, root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    happen(root, monkeypatch)  # type: ignore[operator]
    with caplog.at_level(logging.WARNING):
        tags = [provenance.source().tags for _ in range(2)]
    assert tags[0] == tags[1]
    assert list(tags[0]) == ["git_commit"]
    assert tags[0]["git_commit"].startswith("unknown: ")
    assert reason in tags[0]["git_commit"]
    (line,) = caplog.messages  # once for all runs of a process
    assert line.startswith(f"git commit of {root} unknown: ")
    assert "\n" not in line


def test_an_unknown_patch_is_not_recorded_as_none(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    (root / "params.yaml").write_text("new\n")
    (root / ".git/index").write_bytes(b"corrupt")
    found = provenance.source()
    assert found.tags["git_commit"] == git(root, "rev-parse", "HEAD").strip()
    assert found.tags["git_patch_sha256"].startswith("unknown: ")
    assert caplog.messages[0].startswith(f"git patch of {root} unknown: ")


def test_an_installed_package_has_no_commit_and_no_warning(
    root: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_from(root / "elsewhere", monkeypatch)
    assert provenance.source().tags == {"git_commit": "unknown: freqfilter is an installed package"}
    assert not caplog.messages


def test_the_patch_needs_no_space_for_temporary_files(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    used = []

    def source() -> provenance.Source:
        used.append(tempfile.gettempdir())
        return provenance.Source("commit")

    monkeypatch.setattr(provenance, "source", source)
    with open_run(resolve({"experiment": "e", "run_dir": str(folder / "runs")}).tracking, Job("test", "name")) as run:
        assert used == [str(run.folder)]
        assert tempfile.gettempdir() != str(run.folder)
