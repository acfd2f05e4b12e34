"""A registry with a good filter and a better one, made once."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import ROOT, options
from tests.promotion.making import BOUNDS, SETTING


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> Path:
    """A folder with stores whose versions 1 and 2 are a good and a better filter; in two of them one is champion."""
    folder = tmp_path_factory.mktemp("registry")
    shutil.copy(empty_store, folder / "mlflow.db")
    environment = os.environ | {
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db",
        "XDG_CACHE_HOME": str(empty_store.parent / "cache"),
        "PYTHONPATH": str(ROOT),
    }
    for epochs in ("6", "25"):
        command = [sys.executable, "-m", "freqfilter", "train", *options(SETTING | {"epochs": epochs})]
        subprocess.run(command, cwd=folder, check=True, env=environment)
    shutil.copy(folder / "mlflow.db", folder / "without_champion.db")
    for number in (1, 2):
        command = [sys.executable, "-m", "freqfilter", "promote", "--version", str(number), *BOUNDS]
        subprocess.run(command, cwd=folder, check=True, env=environment)
        shutil.copy(folder / "mlflow.db", folder / f"champion_{number}.db")
    return folder


@pytest.fixture
def registry_with(made_once: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int | None], Path]:
    """The working folder with a copy of such a store, to be changed; its models' files are shared, and are not."""

    def copied(champion: int | None) -> Path:
        name = f"champion_{champion}.db" if champion else "without_champion.db"
        shutil.copy(made_once / name, folder / "mlflow.db")
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
        return folder

    return copied


@pytest.fixture
def registry(registry_with: Callable[[int | None], Path]) -> Path:
    """A registry without a champion."""
    return registry_with(None)
