"""Every command and every piece of Python that a page shows is executed.

Of trainings that differ in numbers alone the first is executed; the words of the others are read as the program reads
them. `make` is asked what it would do.
"""

from __future__ import annotations

import fnmatch
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import click
import mlflow.cli
import numpy as np
import pytest
from mlflow import MlflowClient
from mlflow.projects.utils import load_project

from docs import mlproject, reference
from freqfilter import api
from freqfilter.atomic_io import HOST
from freqfilter.cli.main import load_commands
from freqfilter.config.ablation import ablation_variants, seed_variants
from freqfilter.config.load import DEFAULT_RECIPE, fields, resolve
from freqfilter.plots import catalog
from freqfilter.tracking.owner import RunOwner
from tests import conftest
from tests.conftest import (
    ROOT,
    SMALL,
    all_runs,
    draw_nothing,
    fork_witnesses,
    interrupt_after_an_epoch,
    options,
    start,
    work_in,
)

pytestmark = pytest.mark.slow

OWN_TEST = {"your_model.md"}  # its commands need the changes that it shows: tests/test_your_model.py
EVERY = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
PAGES = [page for page in EVERY if page.name not in OWN_TEST]
FENCE = re.compile(r"^ *```(\w*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`((?:python -m|mlflow run|mlflow ui|make|\.venv/bin/\S+) [^`]+|make)`")

# What stands for something else in a command, and what it is here.
PLACEHOLDERS = {
    "NAME=VALUE": "epochs=1",
    "NAME": "epochs",
    "VALUE": "1",
    "RUN_ID": "{interrupted}",
    "https://production.example.org": "{registry}",
    "URI": "{registry}",
    "URL": str(ROOT),
}
# Commands that are not executed here, and the test that does what they do.
SERVED = "test_right_answers_to_many_and_a_reason_for_what_is_wrong"
ELSEWHERE = {
    ".venv/bin/pip install -c constraints.txt -e '.[onnx]'": "test_constraints_hold_the_same_versions",
    ".venv/bin/pip install -c constraints.txt -e '.[tensorboard]'": "test_constraints_hold_the_same_versions",
    "tensorboard --logdir board": "test_tensorboard_gets_the_same_scalars_and_parameters",
    "curl -s http://127.0.0.1:5001/ping": SERVED,
    "curl -s http://127.0.0.1:5001/invocations -H 'Content-Type: application/json' "
    "-d '{\"inputs\": [[[0.1, 0, 0, 1, 0], [0.2, 0, 0, 1, 0]]]}'": SERVED,
    "python -m benchmarks.gate": "test_the_filters_are_what_the_rates_speak_of",
    "python -m freqfilter ui": "test_the_ui_command_prints_addresses_that_answer",
    "mlflow ui": "test_the_ui_command_prints_addresses_that_answer",
    "python3.11 -m venv .venv": "test_constraints_hold_the_same_versions",
    "source .venv/bin/activate": "test_constraints_hold_the_same_versions",
    "pip install -c constraints.txt -e .": "test_constraints_hold_the_same_versions",
}
PYTHON_ELSEWHERE = {"urllib.request": SERVED}

# What a page's own values give way to, so that nothing trains for minutes.
SIZES = ("n_samples", "duration_s", "window_length", "hidden_size", "windows_per_epoch", "epochs")
SMALLEST = SMALL | {"epochs": "1", "hidden_size": "8"}
REFUSED = {"promote": 1}  # the exit code of a decision against so small a filter
TRAINING = {"train", "original", "ablate"}
# Parameters that change which work is done, and not only its numbers.
OTHER_WORK = {"recipe", "data_file", "start_from", *resolve().tracking.model_dump()}
DONE: set[frozenset[str] | tuple[str, ...]] = set()


def fences(language: str) -> list[str]:
    """The content of every fence of a language, on all pages."""
    found = [fence for page in PAGES for fence in FENCE.findall(page.read_text())]
    return [content for name, content in found if name == language]


def shown() -> list[str]:
    """Every command that a page shows, each once, in order."""
    whole = [re.sub(r"\\\n\s*", "", content) for content in fences("sh")]
    lines = [line.strip() for content in whole for line in content.splitlines()]
    lines += mlproject.examples()
    inline = [command for page in PAGES for command in INLINE.findall(FENCE.sub("", page.read_text()))]
    return [command for command in dict.fromkeys([*lines, *inline]) if command not in ("", "python -m freqfilter")]


def written_tests() -> list[str]:
    """``FILE::TEST`` of every test, without what stands in for its parameters."""
    paths = sorted((ROOT / "tests").rglob("test_*.py"))
    return [f"{path.name}::{name}" for path in paths for name in re.findall(r"def (test_\w+)", path.read_text())]


def interrupted_run() -> str:
    """The id of a run that was stopped after its first epoch."""
    with interrupt_after_an_epoch(signal.SIGTERM), pytest.MonkeyPatch.context() as patch:
        # That of a process that is gone: this one lives on.
        patch.setattr(RunOwner, "current", lambda run_dir: RunOwner(HOST, os.getpid(), started=0.0, run_dir=run_dir))
        assert start("train", *options(SMALLEST | {"epochs": "2"})) == 143
    return str(all_runs()[-1].info.run_id)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> Iterator[Path]:
    """A working folder as the pages take it for granted: three versions, a champion and one before, a data file."""
    folder = tmp_path_factory.mktemp("reader")
    shutil.copy(empty_store, folder / "mlflow.db")
    shutil.copy(empty_store, folder / "elsewhere.db")
    shutil.copy(ROOT / "params.yaml", folder)
    with pytest.MonkeyPatch.context() as patch:
        work_in(folder, folder / "mlflow.db", patch, cache=empty_store.parent / "cache")
        # Most of a small run's time goes into what is no matter here.
        draw_nothing(patch)
        fork_witnesses(patch)
        patch.setattr(catalog, "evaluation_figures", lambda *arguments, **settings: iter(()))
        patch.setattr("freqfilter.pipelines.limit.WORK_OF_A_LENGTH", 1e6)  # of the curve alone
        for seed in ("1", "2", "3"):
            assert start("train", *options(SMALLEST | {"seed": seed})) == 0
        for alias, version in (("previous", "1"), ("champion", "2")):
            MlflowClient().set_registered_model_alias("frequency-filter", alias, version)
        signals = {name: SMALL[name] for name in ("n_samples", "duration_s", "window_length")}
        assert start("prepare", *options(signals)) == 0
        assert start("export") == 0
        yield folder


def filled_in(command: str, folder: Path) -> list[str]:
    """The words of a command with something real in place of each placeholder."""
    for placeholder, meant in PLACEHOLDERS.items():
        if re.search(rf"\b{re.escape(placeholder)}\b", command):
            real = interrupted_run() if meant == "{interrupted}" else meant
            command = re.sub(rf"\b{re.escape(placeholder)}\b", real, command)
    return shlex.split(command.replace("{registry}", f"sqlite:///{folder}/elsewhere.db"))


def shortened(words: list[str]) -> list[str]:
    """A command's words with the small setting's values, as far as it has those options and a page leaves them open.

    What the page itself says is read first, so that a name or value that is not allowed is found.
    """
    name, *rest = words
    typed = {word.removeprefix("--"): value for word, value in pairwise(rest) if word[:2] == "--"}
    known = {name for _, name, _ in fields()}
    given = {key: value for key, value in typed.items() if key in known}
    recipe = typed.get("recipe", DEFAULT_RECIPE)
    resolve(given, recipe=recipe)
    for option, read in (("seeds", seed_variants), ("values", ablation_variants)):
        if option in typed:
            read(typed[option], given, recipe=recipe, folder=Path())
    command = load_commands().commands[name]
    taken = {str(option.name) for option in command.params if isinstance(option, click.Option)}
    if name == "resume" and "auto" not in rest:
        return words
    added = {key: value for key, value in SMALLEST.items() if key in taken and (key in SIZES or key not in typed)}
    if name == "resume":
        added["epochs"] = "2"  # those of the run
    return [*words, *options(added)]


def kind(words: list[str]) -> frozenset[str] | tuple[str, ...]:
    """What commands have in common that do the same with other numbers; of one that trains nothing all its words."""
    if words[0] not in TRAINING:
        return tuple(words)
    numbers = {name for _, name, _ in fields()} - OTHER_WORK
    return frozenset(word for word in words if word[:2] == "--" and word[2:] not in numbers) | {words[0]}


def run_freqfilter(words: list[str]) -> None:
    """``python -m freqfilter WORD…``, in the small setting; of a kind that has been run the words are only read."""
    if "auto" in words:
        interrupted_run()
    if {"--help", "--help-all"} & set(words):
        assert start(*words) == 0
        return
    short = shortened(words)
    if kind(words) in DONE:
        load_commands().commands[words[0]].make_context(words[0], short[1:])
        return
    assert start(*short) in (0, REFUSED.get(words[0], 0))
    DONE.add(kind(words))


def run_mlflow(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """``mlflow run WORD…``, as MLflow reads it and makes a command of it, in this process."""
    asked = mlflow.cli.run.make_context("mlflow run", words).params
    assert asked["env_manager"] in (None, "local", "conda", "virtualenv", "uv")
    given = dict(pair.split("=", 1) for pair in asked["param_list"])
    entry_point = load_project(str(ROOT)).get_entry_point(asked["entry_point"])
    if asked["run_id"]:
        monkeypatch.setenv("MLFLOW_RUN_ID", asked["run_id"])
        assert start(*shlex.split(entry_point.compute_command(given, None))[3:]) == 0
        return
    run_freqfilter(shlex.split(entry_point.compute_command(given, None))[3:])


def but_elsewhere(shown: list[str], elsewhere: dict[str, str]) -> list[object]:
    """What a page shows, with a mark on what contains a key of ``elsewhere``: the test that executes it."""
    found: list[object] = []
    for text in shown:
        test = next((test for part, test in elsewhere.items() if part in text), None)
        skip = pytest.mark.skip(reason=f"{conftest.ELSEWHERE}{test}")
        found.append(pytest.param(text, marks=skip) if test else text)
    return found


@pytest.mark.parametrize("command", but_elsewhere(shown(), ELSEWHERE))
def test_a_command_that_a_page_shows_works(command: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = filled_in(command, place)
    if words[:3] == ["python", "-m", "freqfilter"]:
        run_freqfilter(words[3:])
    elif words[:2] == ["mlflow", "run"]:
        run_mlflow(words[2:], monkeypatch)
    elif words[0] == ".venv/bin/pre-commit":
        repository = place / "repository"
        subprocess.run(["git", "init", "-q", str(repository)], check=True)
        subprocess.run([sys.executable, "-m", "pre_commit", *words[1:]], cwd=repository, check=True)
        assert (repository / ".git/hooks/pre-commit").exists()
    elif words[0] == "make":
        subprocess.run(["make", "-n", *words[1:]], cwd=ROOT, check=True, capture_output=True)
        for keyword in re.findall(r"-k (\w+)", command):
            assert keyword in PLACEHOLDERS or any(keyword in name for name in written_tests()), (
                f"{command} selects no test"
            )
    else:
        raise AssertionError(f"nobody has said how to execute: {command}")


def test_what_is_executed_elsewhere_is_shown_and_tested() -> None:
    written = {name.rpartition("::")[2] for name in written_tests()}
    assert set(ELSEWHERE) - set(shown()) == set()
    assert {*ELSEWHERE.values(), *PYTHON_ELSEWHERE.values()} - written == set()


def test_every_fence_says_what_it_holds() -> None:
    languages = {name for page in PAGES for name, _ in FENCE.findall(page.read_text())}
    assert languages == {"sh", "text", "python", "math"}


@pytest.mark.parametrize("code", but_elsewhere(fences("python"), PYTHON_ELSEWHERE))
def test_python_that_a_page_shows_works(code: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # What a page leaves open is small here.
    monkeypatch.setattr(api, "resolve", lambda given, **rest: resolve(SMALLEST | given, **rest))
    monkeypatch.setattr(
        api, "ablation_variants", lambda values, given, **rest: ablation_variants(values, SMALLEST | given, **rest)
    )
    code = code.replace("128", SMALLEST["hidden_size"])  # the width of the original's network
    x = np.zeros((2, 20, 5), dtype=np.float32)
    exec(code, {"x": x, "signal": np.zeros(100)})  # noqa: S102 (our own pages)


def test_every_metric_has_a_sentence_and_every_sentence_a_metric(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # `limit` records a run where `mlflow run` has made one, which has to be of the active experiment.
    launched = MlflowClient().create_run(all_runs()[-1].info.experiment_id)
    monkeypatch.setenv("MLFLOW_RUN_ID", launched.info.run_id)
    assert (
        start("limit", *options({name: SMALLEST[name] for name in ("n_samples", "duration_s", "window_length")})) == 0
    )
    assert start("evaluate", "--version", "1", "--realizations", "2") == 0
    assert start("find_learning_rate", *options(SMALLEST)) == 0
    # Long enough for blocks of a second, hence for an interval.
    assert start("train", "--seeds", "[1, 2]", *options(SMALLEST | {"duration_s": "4"})) == 0
    found = {name for run in all_runs() for name in run.data.metrics}
    described = {name for group in reference.METRICS.values() for name in group}
    assert [name for name in found if not any(fnmatch.fnmatchcase(name, known) for known in described)] == []
    assert [known for known in described if not fnmatch.filter(found, known)] == []
