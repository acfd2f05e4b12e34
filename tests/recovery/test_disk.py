"""A full or read-only disk: an error of one line, and intact files."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from mlflow import MlflowClient

from freqfilter.training.checkpoint import Checkpoints
from tests.conftest import SEED, Program, all_runs, many, options, wait_for_line
from tests.recovery.comparing import RICH, Outcome
from tests.recovery.test_outage import HASTY

pytestmark = pytest.mark.slow

SIZE = 6_000_000


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of a few megabytes."""
    place = tmp_path / "small"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(place)], check=False)
    if mounted.returncode:
        pytest.skip("tests on a small disk: missing permission to mount a file system")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def fill(disk: Path, *, free: int) -> Path:
    """Use all space except ``free`` bytes."""
    filler, space = disk / "filler", os.statvfs(disk)
    left = space.f_bavail * space.f_frsize - free
    with filler.open("wb", buffering=0) as file, suppress(OSError):
        while left > 0:
            left -= file.write(b"\0" * min(left, 4096))
    return filler


FREE_KB = [40, 120, 400, *(random.Random(SEED + n).randrange(20, 1200) for n in range(many(0, 20)))]


@pytest.mark.soak
@pytest.mark.parametrize("free_kb", FREE_KB)
def test_a_full_disk_ends_the_run_with_one_line_and_it_can_be_resumed(
    free_kb: int, small_disk: Path, folder: Path, freqfilter: Program, whole: Outcome
) -> None:
    filler = fill(small_disk, free=free_kb * 1000)
    where = ["--run_dir", str(small_disk / "runs"), "--checkpoint_minutes", "0.001", "--checkpoints_kept", "30"]
    done = freqfilter("train", *options(RICH), *where)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1
    assert "No space left on device" in done.stderr
    assert str(small_disk / "runs") in done.stderr
    run = all_runs()[-1]
    assert run.info.status == "FAILED"
    kept = small_disk / "runs" / run.info.run_id / "checkpoints"
    warnings: list[str] = []
    assert (Checkpoints(kept, kept=1).latest(warnings.append) is not None) == bool(list(kept.glob("*.pt")))
    assert warnings == []
    assert list(small_disk.rglob("*.part")) == []

    filler.unlink()
    if list(kept.glob("*.pt")):
        assert f"resume with: python -m freqfilter resume {run.info.run_id}" in done.stderr
        again = freqfilter("resume", run.info.run_id, "--run_dir", str(small_disk / "runs"))
    else:
        again = freqfilter("train", *options(RICH))
    assert again.returncode == 0, again.stderr
    whole.assert_same(all_runs()[-1])


def test_a_store_on_a_full_disk_receives_everything_once_there_is_space(
    small_disk: Path, folder: Path, freqfilter: Program, whole: Outcome, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = small_disk / "mlflow.db"
    store.write_bytes((folder.parent / "store" / "mlflow.db").read_bytes())
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{store}")
    process = wait_for_line("epoch  2/12", [sys.executable, "-c", HASTY, "train", *options(RICH)], folder)
    filler = fill(small_disk, free=0)
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 2, output
    assert "Traceback" not in output
    assert "python -m freqfilter sync" in output.splitlines()[-1]
    filler.unlink()
    done = freqfilter("sync")
    assert done.returncode == 0, done.stderr
    whole.assert_same(all_runs()[-1])


def test_a_read_only_disk_is_reported_before_a_run_is_created(
    small_disk: Path, folder: Path, freqfilter: Program
) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    done = freqfilter("train", *options(RICH), "--run_dir", str(small_disk / "runs"))
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert f"{small_disk}/runs: cannot create this folder: Read-only file system" in done.stderr
    assert all_runs() == []


def test_a_file_that_does_not_fit_leaves_the_existing_one(small_disk: Path, folder: Path, freqfilter: Program) -> None:
    output = small_disk / "data.npz"
    output.write_text("precious")
    filler = fill(small_disk, free=100_000)
    done = freqfilter("prepare", "--output", str(output), "--n_samples", "2000", "--duration_s", "2")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "No space left on device" in done.stderr
    assert output.read_text() == "precious"
    assert {path.name for path in small_disk.iterdir()} == {"data.npz", filler.name}
    assert MlflowClient().search_runs(["0"]) == []
