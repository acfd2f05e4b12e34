"""A registry with a good filter and a better one, made once."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import draw_nothing, fork_model_workers, in_store, made_once, options, start, work_in
from tests.promotion.making import BOUNDS, SETTING


@pytest.fixture(autouse=True)
def forked_witnesses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Load models in forked processes."""
    fork_model_workers(monkeypatch)


@pytest.fixture(scope="session")
def registries(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> Path:
    """Folder of stores whose versions 1 and 2 are a good and a better filter; in two of them one is champion."""

    def make(folder: Path) -> None:
        store, cache = folder / "mlflow.db", empty_store.parent / "cache"
        shutil.copy(empty_store, store)
        for epochs in ("6", "25"):
            in_store(store, cache, "train", *options(SETTING | {"epochs": epochs}))
        shutil.copy(store, folder / "without_champion.db")
        with pytest.MonkeyPatch.context() as patch:
            work_in(folder, store, patch, cache=cache)
            draw_nothing(patch)
            fork_model_workers(patch)
            for number in ("1", "2"):
                assert start("promote", "--version", number, *BOUNDS) == 0
                shutil.copy(store, folder / f"champion_{number}.db")

    return made_once("registries", make, tmp_path_factory)


@pytest.fixture
def registry_with(registries: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int | None], Path]:
    """Function that copies such a store to the working folder; the models' files are shared."""

    def copied(champion: int | None) -> Path:
        name = f"champion_{champion}.db" if champion else "without_champion.db"
        shutil.copy(registries / name, folder / "mlflow.db")
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
        return folder

    return copied


@pytest.fixture
def registry(registry_with: Callable[[int | None], Path]) -> Path:
    """A registry without a champion."""
    return registry_with(None)
