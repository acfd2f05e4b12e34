"""Six trainings and two promotion decisions, for tests and pictures of MLflow's UI.

``python -m tests.ui.six_runs`` trains them in full size in the working directory, on the store of the environment.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Run

from tests.conftest import all_runs, options, start

# Recipe and overrides.
TRAININGS: dict[str, tuple[str, dict[str, str]]] = {
    "default": ("default", {}),
    "original": ("original", {}),
    "bidirectional": ("default", {"bidirectional": "true"}),
    "gru": ("default", {"cell": "gru"}),
    "short": ("default", {"epochs": "1"}),
    "failed": ("default", {"learning_rate": "1e+30"}),
}


def known() -> dict[str, Run]:
    """The store's trainings by their keys in ``TRAININGS``."""

    def kind(run: Run) -> str:
        params = run.data.params
        recipe = Path(params["recipe"]).stem
        kinds = [
            kind for kind, (name, given) in TRAININGS.items() if name == recipe and given.items() <= params.items()
        ]
        return kinds[-1]  # the default has no overrides, so that every run of its recipe matches

    return {kind(run): run for run in all_runs() if run.data.tags["workflow"] == "train"}


def version(run: Run) -> str:
    """Version that a training has registered."""
    return str(run.data.tags["model_version"])


def champion() -> str:
    """Key of the champion's training: the default recipe, or the GRU that was compared with it."""
    number = MlflowClient().get_model_version_by_alias("frequency-filter", "champion").version
    return next(kind for kind, run in known().items() if run.data.tags.get("model_version") == str(number))


def one_by_one(jobs: Iterable[list[str]]) -> list[object]:
    """Run commands in this process; return their exit statuses."""
    return [start(*words) for words in jobs]


def make(
    bounds: dict[str, str], *, files: str = "", do: Callable[[Iterable[list[str]]], list[object]] = one_by_one
) -> None:
    """Train, and promote the default recipe and then the GRU.

    Args:
        bounds: Bounds of the promotion.
        files: Suffix that makes a recipe's name a file name; empty: recipes of the package.
        do: Runs commands and returns their exit statuses.
    """
    codes = do(["train", *options({"recipe": recipe + files} | typed)] for recipe, typed in TRAININGS.values())
    assert codes == [2 if kind == "failed" else 0 for kind in TRAININGS], codes
    trained = known()
    for kind, right in (("default", (0,)), ("gru", (0, 1))):
        (code,) = do([["promote", *options({"version": version(trained[kind])} | bounds)]])
        assert code in right, code


def _at_once(jobs: Iterable[list[str]]) -> list[object]:
    """Run each command in a process of one thread, as many at once as there are cores."""

    def run(words: list[str]) -> object:
        return subprocess.run([sys.executable, "-m", "freqfilter", *words], check=False).returncode

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(run, jobs))


if __name__ == "__main__":
    make({}, do=_at_once)
