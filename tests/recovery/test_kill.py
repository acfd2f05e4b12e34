"""A run that is killed at any moment and resumed has the results of an uninterrupted run."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests import zygote
from tests.conftest import SEED, SOAK, Typed, all_runs, options
from tests.recovery.comparing import CARRIED, RICH, Outcome

pytestmark = [pytest.mark.slow, pytest.mark.soak]

PHASES = ("start", "epoch", "checkpoint", "logging", "evaluation", "registration")
UNIFORM, PER_PHASE = (26, 4) if SOAK else (2, 1)
MOMENTS = [("any", n) for n in range(UNIFORM)] + [(phase, n) for phase in PHASES for n in range(PER_PHASE)]
# With many checkpoints by time.
SETTING = RICH | {"checkpoint_minutes": "0.002", "checkpoints_kept": "2"}


@dataclass(frozen=True)
class Announced:
    """An occurrence of a phase; times in seconds since the start of the process."""

    phase: str
    began_s: float
    lasted_s: float


class Started:
    """A process of the command line, and the phases that it announces."""

    def __init__(self, folder: Path, *words: str) -> None:
        reading, writing = os.pipe()
        command = [sys.executable, str(Path(__file__).with_name("announced.py")), str(writing), *words]
        self.began = time.monotonic()
        self.process = zygote.Popen(
            command, cwd=folder, pass_fds=[writing], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        os.close(writing)
        self._pipe = os.fdopen(reading, encoding="utf-8")
        self.output = ""
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout
        self.output = self.process.stdout.read()

    def begins(self, phase: str, number: int) -> None:
        """Wait until a phase begins for the n-th time, counted from 0, or the process ends."""
        for line in self._pipe:
            if line.startswith(f"{phase} begin"):
                if number == 0:
                    return
                number -= 1

    def occurrences(self) -> list[Announced]:
        """Return all phases, after the process has ended."""
        found, open_since = [], {}
        first_epoch = None
        for line in self._pipe:
            phase, event, stamp = line.split()
            at = float(stamp) - self.began
            if phase == "epoch" and first_epoch is None:
                first_epoch = at
            if event == "begin":
                open_since[phase] = at
            elif phase in open_since:
                began = open_since.pop(phase)
                found.append(Announced(phase, began, at - began))
        assert first_epoch
        return [Announced("start", open_since["start"], first_epoch - open_since["start"]), *found]

    def end(self) -> None:
        self.process.wait(timeout=120)
        self._reader.join()
        self._pipe.close()
        assert self.process.stdout
        self.process.stdout.close()

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.end()


@pytest.fixture(scope="module")
def life(tmp_path_factory: pytest.TempPathFactory, empty_store: Path, whole: Outcome) -> list[Announced]:
    """Phases of an uninterrupted run, with their durations."""
    folder = tmp_path_factory.mktemp("life")
    (folder / "mlflow.db").write_bytes(empty_store.read_bytes())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
        patch.setenv("XDG_CACHE_HOME", str(empty_store.parent / "cache"))
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
        patch.setenv(zygote.DRAW_NOTHING, "1")
        alone = Started(folder, "train", *options(SETTING))
        phases = alone.occurrences()
        alone.end()
        assert alone.process.returncode == 0, alone.output
        whole.assert_same(all_runs()[-1])
    assert set(PHASES) <= {occurrence.phase for occurrence in phases}
    return phases


def kill_somewhere(started: Started, moment: str, life: list[Announced], chance: random.Random) -> str:
    """Kill the process in a phase, or at any time, and return a description of the moment."""
    if moment == "any":
        ends = max(occurrence.began_s + occurrence.lasted_s for occurrence in life)
        after_s = chance.uniform(0, ends)
        time.sleep(max(0, started.began + after_s - time.monotonic()))
        where = f"{after_s:.2f} s after its start"
    else:
        of_phase = [occurrence for occurrence in life if occurrence.phase == moment]
        number = chance.randrange(len(of_phase))
        wait_s = chance.uniform(0, of_phase[number].lasted_s)
        started.begins(moment, number)
        time.sleep(wait_s)
        where = f"{wait_s:.3f} s into {moment} {number}"
    started.kill()
    return where


@pytest.mark.parametrize(("moment", "number"), MOMENTS)
def test_a_run_killed_at_any_moment_resumes_to_the_same_results(
    moment: str, number: int, folder: Path, typed: Typed, whole: Outcome, life: list[Announced]
) -> None:
    check_killed(SETTING, whole, moment, f"{SEED} {moment} {number}", folder, typed, life)


@pytest.mark.parametrize("number", range(10 if SOAK else 1))
def test_a_training_with_a_carried_state_killed_at_any_moment_resumes_to_the_same_results(
    number: int, folder: Path, typed: Typed, whole_carried: Outcome, life: list[Announced]
) -> None:
    setting = CARRIED | {"checkpoint_minutes": "0.002", "checkpoints_kept": "2"}
    check_killed(setting, whole_carried, "any", f"{SEED} carried {number}", folder, typed, life)


def check_killed(
    setting: dict[str, str],
    whole: Outcome,
    moment: str,
    seed: str,
    folder: Path,
    typed: Typed,
    life: list[Announced],
) -> None:
    chance = random.Random(seed)
    where = [kill_somewhere(Started(folder, "train", *options(setting)), moment, life, chance)]
    if chance.random() < 0.3 and (run := unfinished()):
        where.append(kill_somewhere(Started(folder, "resume", run), "any", life, chance))
    context = f"seed {seed!r}: killed {', then '.join(where)}"
    restarted = False
    if run := unfinished():
        code, line = typed("resume", run)
        if "has no checkpoint" in line:  # a new run is required
            restarted = True
            assert typed("doctor") == (0, ""), context
        else:
            assert code == 0, f"{context}: {line}"
    if restarted or not all_runs():
        assert typed("train", *options(setting)) == (0, ""), context
    try:
        whole.assert_same(all_runs()[-1])
    except AssertionError as error:
        raise AssertionError(context) from error
    statuses = Counter(run.info.status for run in all_runs())
    assert statuses == ({"KILLED": 1, "FINISHED": 1} if restarted else {"FINISHED": 1}), context
    assert typed("sync") == (0, ""), context
    finished = all_runs()[-1].info.run_id
    assert not (folder / "runs" / finished).exists(), context
    assert list(folder.rglob("*.part")) == [], context


def unfinished() -> str | None:
    """Id of the killed run; None if it was killed before it was created or after it had finished."""
    runs = [run for run in all_runs() if run.info.status == "RUNNING"]
    return runs[-1].info.run_id if runs else None
