"""All commands and all Python code of the pages are executed.

Of trainings that differ in numbers only, the first is executed; the arguments of the others are parsed. `make` is run
with `-n`.
"""

from __future__ import annotations

import fnmatch
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
from freqfilter.cli.main import load_commands
from freqfilter.config.ablation import ablation_variants, seed_variants
from freqfilter.config.load import DEFAULT_RECIPE, fields, resolve
from freqfilter.plots import catalog
from tests import conftest
from tests.conftest import (
    ROOT,
    SMALL,
    SMALL_RECORDINGS,
    all_runs,
    draw_nothing,
    fork_model_workers,
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

# Placeholders in commands, and their values.
PLACEHOLDERS = {
    "NAME=VALUE": "epochs=1",
    "NAME": "epochs",
    "VALUE": "1",
    "RUN_ID": "{interrupted}",
    "https://production.example.org": "{registry}",
    "URI": "{registry}",
    "URL": str(ROOT),
}
# Commands that are not executed here, and the test that covers them.
SERVED = "test_concurrent_clients_get_predictions_and_bad_requests_a_reason"
ELSEWHERE = {
    ".venv/bin/pip install -c constraints.txt -e '.[onnx]'": "test_constraints_hold_a_version_in_every_range",
    ".venv/bin/pip install -c constraints.txt -e '.[tensorboard]'": "test_constraints_hold_a_version_in_every_range",
    "tensorboard --logdir board": "test_tensorboard_gets_the_same_scalars_and_parameters",
    "curl -s http://127.0.0.1:5001/ping": SERVED,
    "curl -s http://127.0.0.1:5001/invocations -H 'Content-Type: application/json' "
    "-d '{\"inputs\": [[[0.1, 0, 0, 1, 0], [0.2, 0, 0, 1, 0]]]}'": SERVED,
    "python -m benchmarks.gate": "test_the_filters_have_the_stated_ratios",
    "python -m freqfilter ui": "test_the_ui_command_prints_reachable_addresses",
    "mlflow ui": "test_the_ui_command_prints_reachable_addresses",
    "python3.11 -m venv .venv": "test_constraints_hold_a_version_in_every_range",
    "source .venv/bin/activate": "test_constraints_hold_a_version_in_every_range",
    "pip install -c constraints.txt -e .": "test_constraints_hold_a_version_in_every_range",
}
PYTHON_ELSEWHERE = {"urllib.request": SERVED}

# Parameters whose values on a page are replaced, so that trainings are short.
SIZES = ("n_samples", "duration_s", "window_length", "hidden_size", "windows_per_epoch", "epochs")
SMALLEST = SMALL | {"epochs": "1", "hidden_size": "8", "recordings_per_epoch": "16", "test_recordings": "8"}
REFUSED = {"promote": 1}  # the exit status of a refusal, which so small a filter may get
TRAINING = {"train", "original", "ablate"}
# Parameters that change what a command does, not only its numbers.
OTHER_WORK = {"recipe", "data_file", "start_from", *resolve().tracking.model_dump()}
DONE: set[frozenset[str] | tuple[str, ...]] = set()


def fences(language: str) -> list[str]:
    """Content of all code fences of a language, on all pages."""
    found = [fence for page in PAGES for fence in FENCE.findall(page.read_text())]
    return [content for name, content in found if name == language]


def shown() -> list[str]:
    """Commands of all pages in order, without duplicates."""
    whole = [re.sub(r"\\\n\s*", "", content) for content in fences("sh")]
    lines = [line.strip() for content in whole for line in content.splitlines()]
    lines += mlproject.examples()
    inline = [command for page in PAGES for command in INLINE.findall(FENCE.sub("", page.read_text()))]
    return [command for command in dict.fromkeys([*lines, *inline]) if command not in ("", "python -m freqfilter")]


def written_tests() -> list[str]:
    """``FILE::TEST`` of every test, without its parameters."""
    paths = sorted((ROOT / "tests").rglob("test_*.py"))
    return [f"{path.name}::{name}" for path in paths for name in re.findall(r"def (test_\w+)", path.read_text())]


def interrupted_run() -> str:
    """Interrupt a training after its first epoch; return the run's id."""
    with interrupt_after_an_epoch(signal.SIGTERM):
        assert start("train", *options(SMALLEST | {"epochs": "2"})) == 143
    return str(all_runs()[-1].info.run_id)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> Iterator[Path]:
    """A working directory as the pages assume it: three versions, a champion, a previous champion, a data file."""
    folder = tmp_path_factory.mktemp("reader")
    shutil.copy(empty_store, folder / "mlflow.db")
    shutil.copy(empty_store, folder / "elsewhere.db")
    shutil.copy(ROOT / "params.yaml", folder)
    with pytest.MonkeyPatch.context() as patch:
        work_in(folder, folder / "mlflow.db", patch, cache=empty_store.parent / "cache")
        # These take most of a small run's time, and are tested elsewhere.
        draw_nothing(patch)
        fork_model_workers(patch)
        patch.setattr(catalog, "evaluation_figures", lambda *arguments, **settings: iter(()))
        patch.setattr("freqfilter.pipelines.prepare.MAX_WORK_PER_LENGTH", 1e6)  # of the curve only
        for seed in ("1", "2", "3"):
            assert start("train", *options(SMALLEST | {"seed": seed})) == 0
        for alias, version in (("previous", "1"), ("champion", "2")):
            MlflowClient().set_registered_model_alias("frequency-filter", alias, version)
        signals = {name: SMALL[name] for name in ("n_samples", "duration_s", "window_length")}
        assert start("prepare", *options(signals)) == 0
        assert start("export") == 0
        yield folder


def filled_in(command: str, folder: Path) -> list[str]:
    """Split a command into words, with its placeholders replaced."""
    for placeholder, meant in PLACEHOLDERS.items():
        if re.search(rf"\b{re.escape(placeholder)}\b", command):
            real = interrupted_run() if meant == "{interrupted}" else meant
            command = re.sub(rf"\b{re.escape(placeholder)}\b", real, command)
    return shlex.split(command.replace("{registry}", f"sqlite:///{folder}/elsewhere.db"))


def shortened(words: list[str]) -> list[str]:
    """Add the small setting's values to a command's words, if it has those options and the page does not set them.

    The page's words are parsed first, so that invalid names and values are found.
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
    """Key of commands that do the same with other numbers; all words of a command that does not train."""
    if words[0] not in TRAINING:
        return tuple(words)
    numbers = {name for _, name, _ in fields()} - OTHER_WORK
    return frozenset(word for word in words if word[:2] == "--" and word[2:] not in numbers) | {words[0]}


def run_freqfilter(words: list[str]) -> None:
    """Run ``python -m freqfilter WORD…`` in the small setting; only parse it if its kind has been run."""
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
    """Run ``mlflow run WORD…`` in this process, with MLflow's parser and command."""
    arguments = mlflow.cli.run.make_context("mlflow run", words).params
    assert arguments["env_manager"] in (None, "local", "conda", "virtualenv", "uv")
    given = dict(pair.split("=", 1) for pair in arguments["param_list"])
    entry_point = load_project(str(ROOT)).get_entry_point(arguments["entry_point"])
    if arguments["run_id"]:
        monkeypatch.setenv("MLFLOW_RUN_ID", arguments["run_id"])
        assert start(*shlex.split(entry_point.compute_command(given, None))[3:]) == 0
        return
    run_freqfilter(shlex.split(entry_point.compute_command(given, None))[3:])


def but_elsewhere(shown: list[str], elsewhere: dict[str, str]) -> list[object]:
    """Parameters of a test; a text with a key of ``elsewhere`` is skipped with the name of the test that covers it."""
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
        raise AssertionError(f"no way to execute: {command}")


def test_commands_that_other_tests_cover_are_on_a_page_and_those_tests_exist() -> None:
    written = {name.rpartition("::")[2] for name in written_tests()}
    assert set(ELSEWHERE) - set(shown()) == set()
    assert {*ELSEWHERE.values(), *PYTHON_ELSEWHERE.values()} - written == set()


def test_every_fence_names_its_language() -> None:
    languages = {name for page in PAGES for name, _ in FENCE.findall(page.read_text())}
    assert languages == {"sh", "text", "python", "math"}


@pytest.mark.parametrize("code", but_elsewhere(fences("python"), PYTHON_ELSEWHERE))
def test_python_that_a_page_shows_works(code: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Parameters that a page does not set are small.
    monkeypatch.setattr(api, "resolve", lambda given, **rest: resolve(SMALLEST | given, **rest))
    monkeypatch.setattr(
        api, "ablation_variants", lambda values, given, **rest: ablation_variants(values, SMALLEST | given, **rest)
    )
    code = code.replace("128", SMALLEST["hidden_size"])  # the width of the original's network
    x = np.concatenate([np.zeros((2, 20, 1)), np.tile([1, 0, 0, 0], (2, 20, 1))], axis=2).astype(np.float32)
    exec(code, {"x": x, "signal": np.zeros(100)})  # noqa: S102 (our own pages)


def test_every_metric_has_a_description_and_vice_versa(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # `limit` records a run only under `mlflow run`, whose run has to be in the active experiment.
    launched = MlflowClient().create_run(all_runs()[-1].info.experiment_id)
    monkeypatch.setenv("MLFLOW_RUN_ID", launched.info.run_id)
    assert (
        start("limit", *options({name: SMALLEST[name] for name in ("n_samples", "duration_s", "window_length")})) == 0
    )
    launched = MlflowClient().create_run(all_runs()[-1].info.experiment_id)
    monkeypatch.setenv("MLFLOW_RUN_ID", launched.info.run_id)
    assert start("limit", "--recipe", "random_phases", "--n_samples", "300", "--duration_s", "0.3") == 0
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
    assert start("train", *options(SMALLEST | SMALL_RECORDINGS | {"n_samples": "2001", "duration_s": "2"})) == 0
    assert start("evaluate", "--realizations", "2") == 0
    assert start("find_learning_rate", *options(SMALLEST)) == 0
    # Long enough for blocks of a second, which an interval needs.
    assert start("train", "--seeds", "[1, 2]", *options(SMALLEST | {"duration_s": "4"})) == 0
    found = {name for run in all_runs() for name in run.data.metrics}
    described = {name for group in reference.METRICS.values() for name in group}
    assert [name for name in found if not any(fnmatch.fnmatchcase(name, known) for known in described)] == []
    assert [known for known in described if not fnmatch.filter(found, known)] == []
