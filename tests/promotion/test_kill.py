"""A promotion or rollback that is killed at any moment leaves a champion with evidence."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tests import zygote
from tests.conftest import SEED, Typed, artifacts, many
from tests.promotion.making import BOUNDS, aliases, version

pytestmark = [pytest.mark.slow, pytest.mark.soak]


def assert_a_champion_with_evidence() -> None:
    champion = version(aliases()["champion"])
    assert champion.tags["decision"] == "PROMOTED"
    decision = MlflowClient().get_run(champion.tags["decision_run"])
    assert decision.data.tags["decision"] == "PROMOTED"
    assert "decision/report.md" in artifacts(decision)


@pytest.fixture(scope="module")
def start_s(registries: Path) -> float:
    """Time to start a process that is not forked, such as the model server, seconds."""
    started = time.monotonic()
    subprocess.run([sys.executable, "-c", "import freqfilter.pipelines.promote"], cwd=registries, check=True)
    return time.monotonic() - started


@pytest.mark.parametrize("number", range(many(2, 20)))
def test_killed_while_the_champion_changes(
    number: int, registry_with: Callable[[int | None], Path], start_s: float, typed: Typed
) -> None:
    seed = f"{SEED} promotion {number}"
    chance, rolls_back = random.Random(seed), number % 2 == 1
    folder = registry_with(2 if rolls_back else 1)
    words = ["rollback", "--reason", "a test"] if rolls_back else ["promote", "--version", "2", *BOUNDS]
    before = aliases()["champion"]
    process = zygote.Popen(
        [sys.executable, "-m", "freqfilter", *words], cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    # Both start one process that imports everything; a promotion then scores the models. The program itself is forked.
    killed_s = chance.uniform(0, 1.5 if rolls_back else 2.5) * start_s
    time.sleep(killed_s)
    process.send_signal(signal.SIGKILL)
    process.wait()
    context = f"seed {seed!r}: killed after {killed_s:.2f} s"
    assert aliases()["champion"] in (1, 2), context
    assert_a_champion_with_evidence()
    assert typed("doctor") == (0, ""), context
    if not (rolls_back and aliases()["champion"] != before):  # a second rollback would restore the first champion
        assert typed(*words) == (0, ""), context
        assert aliases()["champion"] == (1 if rolls_back else 2), context
    assert_a_champion_with_evidence()


def test_a_decision_is_repeated_if_the_champion_changes_meanwhile(
    registry_with: Callable[[int | None], Path], typed: Typed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The decision is repeated against the new champion."""
    import freqfilter.pipelines.promote as workflow

    registry_with(1)
    run_checks, seen = workflow.run_checks, []

    def meanwhile(candidate, champion, *args, **named):  # type: ignore[no-untyped-def]
        seen.append(champion.version)
        if len(seen) == 1:
            client = MlflowClient()
            client.create_model_version("frequency-filter", version(1).source, tags=version(1).tags)
            client.set_registered_model_alias("frequency-filter", "champion", "3")
        return run_checks(candidate, champion, *args, **named)

    monkeypatch.setattr(workflow, "run_checks", meanwhile)
    assert typed("promote", "--version", "2", *BOUNDS) == (0, "")
    assert seen == [1, 3]
    assert (aliases()["champion"], aliases()["previous"]) == (2, 3)
    assert version(2).tags["decided_against"] == "3"


def test_two_promotions_at_once_leave_one_champion_with_evidence(
    registry_with: Callable[[int | None], Path],
) -> None:
    folder = registry_with(1)
    command = [sys.executable, "-m", "freqfilter", "promote", "--version", "2", *BOUNDS]
    both = [zygote.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [process.communicate(timeout=240)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert (aliases()["champion"], aliases()["previous"]) == (2, 1)
    assert_a_champion_with_evidence()
