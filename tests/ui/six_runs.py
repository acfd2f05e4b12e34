"""Six trainings of every kind and the decisions on two of them, for the tests of MLflow's UI and for its pictures.

``python -m tests.ui.six_runs`` trains them in full in the working folder, on the store that the environment names.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable

from tests.conftest import options, start

TRAININGS: dict[str, dict[str, str]] = {
    "original": {"recipe": "original"},
    "default": {},
    "bidirectional": {"bidirectional": "true"},
    "gru": {"cell": "gru"},
    "short": {"epochs": "1"},
    "failed": {"learning_rate": "1e30"},
}
CHAMPION, LOSER = 2, 4  # versions: the default recipe's is promoted, the GRU's after it is not


def make(cut: dict[str, str], bounds: dict[str, str], run: Callable[..., object] = start) -> None:
    """Train and decide.

    Args:
        cut: Parameters that make each training short.
        bounds: What a version is held to.
        run: Runs the command line and gives its exit code.
    """
    jobs = [(["train", *options(cut | values)], {2} if name == "failed" else {0}) for name, values in TRAININGS.items()]
    for version, codes in ((CHAMPION, {0}), (LOSER, {0, 1})):
        jobs.append((["promote", *options({"version": str(version)} | bounds)], codes))
    for words, codes in jobs:
        code = run(*words)
        assert code in codes, f"{' '.join(words)}: exit code {code}"


def _in_a_process(*words: str) -> int:
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    return subprocess.run([sys.executable, "-m", "freqfilter", *words], env=environment, check=False).returncode


if __name__ == "__main__":
    make({}, {}, _in_a_process)
