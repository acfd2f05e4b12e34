"""Six trainings of every kind and the decisions on two of them, for the tests of MLflow's UI and for its pictures.

``python -m tests.ui.six_runs`` trains them in full in the working folder, on the store that the environment names.
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

# Recipe, and what is typed beside it.
TRAININGS: dict[str, tuple[str, dict[str, str]]] = {
    "default": ("default", {}),
    "original": ("original", {}),
    "bidirectional": ("default", {"bidirectional": "true"}),
    "gru": ("default", {"cell": "gru"}),
    "short": ("default", {"epochs": "1"}),
    "failed": ("default", {"learning_rate": "1e+30"}),
}


def known() -> dict[str, Run]:
    """The store's trainings by what they are."""

    def kind(run: Run) -> str:
        params = run.data.params
        recipe = Path(params["recipe"]).stem
        kinds = [kind for kind, (of, typed) in TRAININGS.items() if of == recipe and typed.items() <= params.items()]
        return kinds[-1]  # the default, for which nothing is typed, is among those of every run of its recipe

    return {kind(run): run for run in all_runs() if run.data.tags["workflow"] == "train"}


def version(run: Run) -> str:
    """The version that a training has registered."""
    return str(run.data.tags["model_version"])


def champion() -> str:
    """Which of the trainings has won: the default recipe, or the GRU that was held against it."""
    won = MlflowClient().get_model_version_by_alias("frequency-filter", "champion").version
    return next(kind for kind, run in known().items() if run.data.tags.get("model_version") == str(won))


def one_by_one(jobs: Iterable[list[str]]) -> list[object]:
    """The command line in this process: exit codes."""
    return [start(*words) for words in jobs]


def make(
    bounds: dict[str, str], *, files: str = "", do: Callable[[Iterable[list[str]]], list[object]] = one_by_one
) -> None:
    """Train, and decide on the default recipe and then on the GRU.

    Args:
        bounds: What a version is held to.
        files: What makes a recipe's name that of a file; nothing: those that come with the program.
        do: Does what is typed, and gives the exit codes.
    """
    codes = do(["train", *options({"recipe": recipe + files} | typed)] for recipe, typed in TRAININGS.values())
    assert codes == [2 if kind == "failed" else 0 for kind in TRAININGS], codes
    trained = known()
    for kind, right in (("default", (0,)), ("gru", (0, 1))):
        (code,) = do([["promote", *options({"version": version(trained[kind])} | bounds)]])
        assert code in right, code


def _at_once(jobs: Iterable[list[str]]) -> list[object]:
    """A process of one thread for each, as many at once as there are cores."""

    def run(words: list[str]) -> object:
        return subprocess.run([sys.executable, "-m", "freqfilter", *words], check=False).returncode

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(run, jobs))


if __name__ == "__main__":
    make({}, do=_at_once)
