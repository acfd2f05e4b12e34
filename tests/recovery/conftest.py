"""An uninterrupted run, made once."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import all_runs, in_store, made_once, options
from tests.recovery.comparing import RICH, Outcome


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> Outcome:
    """Results of an uninterrupted run with the setting ``RICH``."""

    def make(folder: Path) -> None:
        shutil.copy(empty_store, folder)
        # In a new process, since forked processes are compared with it.
        in_store(folder / "mlflow.db", empty_store.parent / "cache", "train", *options(RICH), run=subprocess.run)

    folder = made_once("whole", make, tmp_path_factory)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
        return Outcome.of(all_runs()[-1])
