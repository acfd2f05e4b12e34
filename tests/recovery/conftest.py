"""An uninterrupted run, made once."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import all_runs, in_store, made_once, options
from tests.recovery.comparing import CARRIED, RICH, Outcome


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> Outcome:
    """Results of an uninterrupted run with the setting ``RICH``."""
    return uninterrupted("whole", RICH, tmp_path_factory, empty_store)


@pytest.fixture(scope="session")
def whole_carried(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> Outcome:
    """Results of an uninterrupted run with the setting ``CARRIED``."""
    return uninterrupted("whole_carried", CARRIED, tmp_path_factory, empty_store)


def uninterrupted(name: str, setting: dict[str, str], factory: pytest.TempPathFactory, empty_store: Path) -> Outcome:
    def make(folder: Path) -> None:
        shutil.copy(empty_store, folder)
        # In a new process, since forked processes are compared with it.
        in_store(folder / "mlflow.db", empty_store.parent / "cache", "train", *options(setting), run=subprocess.run)

    folder = made_once(name, make, factory)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
        return Outcome.of(all_runs()[-1])
