"""Candidates that were compared before, versions of unknown training, and data files with few windows."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from mlflow import MlflowClient
from mlflow.entities import Run

from tests.conftest import Typed, all_runs, download, options, say
from tests.promotion.making import BOUNDS, NAME, SETTING, aliases, module_of, register, setting, version

pytestmark = pytest.mark.slow


def perturbed(number: int, size: float, *, seed: int = 0) -> int:
    """Register a version's network with noise of this size on its weights."""
    module, generator = module_of(number), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += size * torch.randn(parameter.shape, generator=generator)
    return register(module, setting())


def last_decision() -> Run:
    return [run for run in all_runs() if run.data.tags.get("workflow") == "promote"][-1]


def errors_of(run: Run, folder: Path) -> pd.DataFrame:
    return pd.read_csv(download(run, "decision/errors.csv", folder / run.info.run_id)).set_index(["side", "noise_seed"])


def test_the_same_candidate_trained_again_has_the_same_trial(
    registry_with: Callable[[int | None], Path], typed: Typed, tmp_path: Path
) -> None:
    registry_with(2)
    first = perturbed(2, 1e-2)
    assert typed("promote", *BOUNDS) == (0, "")
    decided = last_decision()
    assert (decided.data.tags["decision"], decided.data.tags["trial"]) == ("NOT_BETTER", "1")
    again = perturbed(2, 1e-2)
    with torch.no_grad():
        module = module_of(again)
        module.fc.bias += 1e-7
    nudged = register(module, setting())
    assert len({version(number).tags["model_sha256"] for number in (first, again, nudged)}) == 3
    for number in (first, again, nudged):
        assert typed("promote", "--version", str(number), *BOUNDS) == (0, "")
        repeated = last_decision()
        assert (repeated.data.tags["decision"], repeated.data.tags["trial"]) == ("NOT_BETTER", "1")
        assert repeated.data.tags["trial_version"] == str(first)
        before, after = (errors_of(run, tmp_path) for run in (decided, repeated))
        assert before.index.tolist() == after.index.tolist()
        np.testing.assert_allclose(before.to_numpy(), after.to_numpy(), rtol=1e-4)
    report = repeated.data.tags["mlflow.note.content"]
    assert f"Candidate 1 compared with this champion, with the same errors as version {first}" in report
    # Another candidate is the second; the first one counts although its runs are deleted.
    for run in all_runs():
        if run.data.tags.get("workflow") == "promote" and run.data.tags["version"] != "2":
            MlflowClient().delete_run(run.info.run_id)
    perturbed(2, 1e-2, seed=1)
    assert typed("promote", *BOUNDS) == (0, "")
    assert last_decision().data.tags["trial"] == "2"
    assert "it may spend 0.76 % of the false-promotion rate of 5 %" in last_decision().data.tags["mlflow.note.content"]
    # Noise that the user chooses is a new draw.
    for expected in ("3", "3"):
        assert typed("promote", "--noise_seed", "77", *BOUNDS) == (0, "")
        assert last_decision().data.tags["trial"] == expected


def test_a_version_registered_by_hand_has_an_unknown_training(
    registry_with: Callable[[int | None], Path],
    typed: Typed,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    registry_with(1)
    source = version(2)
    files = MlflowClient().get_logged_model(source.source.removeprefix("models:/")).artifact_location
    by_hand = MlflowClient().create_model_version(
        NAME, files, run_id=source.run_id
    )  # whether it is its model is unknown
    words = ["promote", "--version", by_hand.version, *BOUNDS]
    code, output, _ = say(words, capsys, monkeypatch)
    assert code == 1, output
    assert re.search("FAILED +no leak: not known.*allow_unknown_training=true", output)
    code, output, _ = say([*words, "--allow_unknown_training", "true"], capsys, monkeypatch)
    assert code == 0, output
    assert re.search("– +no leak: not known", output)
    assert last_decision().data.params["allow_unknown_training"] == "true"
    assert aliases()["champion"] == int(by_hand.version)
    # The model that a training logged has the record of that training.
    MlflowClient().set_registered_model_alias(NAME, "champion", "1")
    of_run = MlflowClient().create_model_version(NAME, source.source)
    code, output, _ = say(["promote", "--version", of_run.version, *BOUNDS], capsys, monkeypatch)
    assert (code, "passed   no leak: no leak alarm" in output) == (0, True), output


def test_windows_grouped_by_selector_or_few_are_no_failure_of_the_model(
    registry: Path, typed: Typed, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = {name: SETTING[name] for name in ("n_samples", "duration_s", "window_length")}
    assert typed("prepare", "--output", "mine.npz", *options(made)) == (0, "")
    own = SETTING | {"data_file": "mine.npz", "model_name": "own", "noise_std": "0.1"}
    for epochs in ("2", "15"):
        assert typed("train", *options(own | {"epochs": epochs})) == (0, "")
    arrays = dict(np.load("mine.npz"))
    selector = arrays["X_test"][:, 0, 1:].argmax(axis=1)
    grouped = np.argsort(selector, kind="stable")
    words = ["promote", "--model_name", "own", *BOUNDS]
    assert say([*words, "--version", "1", "--force", "a first champion"], capsys, monkeypatch)[0] == 0
    for chosen, expected in (
        (grouped, "PROMOTED: own version 2"),
        (np.arange(40), "predicts: all estimates are finite"),
        (np.arange(12), "too few test windows for a verdict"),
        (np.arange(4), "too few test windows for a verdict"),
    ):
        MlflowClient().set_registered_model_alias("own", "champion", "1")
        np.savez("mine.npz", **arrays | {f"{kind}_test": arrays[f"{kind}_test"][chosen] for kind in "Xy"})
        code, output, _ = say([*words, "--version", "2"], capsys, monkeypatch)
        assert (code, expected in output) == (0, True), output
    line = next(line for line in output.splitlines() if "too few" in line)
    assert "mine.npz has 1 of one of the components, and at least 9 of each are needed" in line
    assert "trial" not in last_decision().data.tags
