"""Trainings are held against each other: what differs, whether it is more than chance, and what cannot be compared."""

from __future__ import annotations

import json
import re
from pathlib import Path

import mlflow
import pytest

from freqfilter.config import resolve
from freqfilter.errors import UserError
from freqfilter.pipelines.compare import ComparedTraining, distinct_names, remarks
from freqfilter.tracked_names import BEST_HOLDOUT_MSE, HOLDOUT_MSE
from freqfilter.tracking.queries import Training, split_list, trainings
from tests.conftest import SMALL, Typed, all_runs, artifacts, download, options, say

pytestmark = pytest.mark.slow

SETTING = SMALL | {"noise_std": "0.2", "learning_rate": "0.02", "epochs": "6"}


def train(typed: Typed, *words: str, **given: str) -> str:
    """Train; the run's id."""
    assert typed("train", *options(SETTING | given), *words) == (0, "")
    return str(all_runs()[-1].info.run_id)


def test_trainings_are_compared_on_a_page_of_its_own_and_in_the_experiment(
    typed: Typed, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    good = train(typed)
    poor = train(typed, epochs="1", cell="gru")
    other = train(typed, bidirectional="true", test_noise_seed="7")
    words = ["compare", "--runs", f"{good}, {poor}, {other}", "--realizations", "8"]
    code, said, complaint = say(words, capsys, monkeypatch)
    assert (code, complaint) == (0, "")

    names = [f"default epochs=6 {good[:6]}", "default epochs=1", f"default epochs=6 {other[:6]}"]
    rows = dict(re.findall(r"^(\w+) {2,}(\S.*)$", said, re.MULTILINE))
    assert rows["cell"].split() == ["lstm", "gru", "lstm"]
    assert rows["epochs"].split()[:3] == ["6", "1", "6"]
    assert "hidden_size" not in rows, "a parameter in which they do not differ"
    assert "run_dir" not in rows
    assert rows["bidirectional"].split() == ["false", "false", "true"]
    assert f"{names[1]}, beside {names[0]} on 8 fresh realizations: worse by" in said
    assert f"{names[2]} cannot be held against {names[0]}" in said
    assert "bidirectional=True and not False" in said

    page = (folder / "comparison.html").read_text()
    assert "data:image/png;base64," in page
    assert not re.findall(r"(?:src|href)=\"(?!data:)", page), "it needs nothing beside it"
    assert all(name in page for name in names)
    run = all_runs()[-1]
    assert run.info.status == "FINISHED"
    assert {f"comparison/{name}" for name in ("report.html", "side_by_side.png", "figures.csv", "parameters.csv")} <= (
        artifacts(run)
    )
    assert download(run, "comparison/report.html", folder).read_text() == page
    assert "| test MSE" in run.data.tags["mlflow.note.content"]


def test_the_same_weights_differ_by_no_more_than_chance(
    typed: Typed, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(2):
        train(typed)
    code, said, _ = say(["compare", "--realizations", "6"], capsys, monkeypatch)
    assert code == 0
    assert "Their parameters are the same." in said
    assert "no more than chance: +0.00 %" in said
    code, _, complaint = say(["compare", "--realizations", "5"], capsys, monkeypatch)
    assert (code, complaint.count("\n")) == (2, 1)
    assert "6 at least, or 0 for none" in complaint


def test_a_training_is_named_by_id_name_version_alias_filter_or_what_it_belongs_to(typed: Typed) -> None:
    first = train(typed)
    second = train(typed, cell="gru")
    tracking = resolve(SETTING).tracking

    def ids(words: str | None) -> list[str]:
        return [training.run_id for training in trainings(words, tracking)]

    assert ids(None) == [second, first]
    assert ids(f"{second},{first}") == [second, first]
    name = str(all_runs()[1].info.run_name)
    assert ids(json.dumps([name])) == [second]
    assert ids("1, frequency-filter/2, @candidate") == [first, second]
    assert ids("params.cell = 'gru'") == [second]
    assert ids('metrics."test/mse" > 0') == [second, first]
    assert typed("train", *options(SETTING), "--seeds", "[1, 2]") == (0, "")
    both = [run.info.run_id for run in all_runs() if "mlflow.parentRunId" in run.data.tags]
    assert ids(str(all_runs()[2].info.run_id)) == both
    assert trainings("1", tracking)[0].params == resolve(SETTING).with_tracking(
        run_dir=trainings("1", tracking)[0].params.tracking.run_dir
    )


def test_a_run_with_former_names_of_metrics_and_parameters_is_read(folder: Path) -> None:
    """Its params.yaml is a recipe of before, and its metrics are those that were logged then."""
    params = resolve(SMALL | {"holdout_every": "2"})
    stored = params.to_yaml().replace("holdout_", "audit_")
    assert "audit_every: 2" in stored
    with mlflow.start_run(tags={"workflow": "train"}) as run:
        mlflow.log_metrics({"audit/mse": 0.3, "best/audit_mse": 0.2, "test/mse": 0.25}, step=1)
        mlflow.log_text(stored, "params.yaml")
    (training,) = trainings(run.info.run_id, params.tracking)
    assert training.params == params
    assert training.metrics == {HOLDOUT_MSE: 0.3, BEST_HOLDOUT_MSE: 0.2, "test/mse": 0.25}
    assert training.curves[HOLDOUT_MSE].to_dict() == {1: 0.3}


def compared(name: str, *, status: str = "FINISHED", test_digest: str = "1", **given: str) -> ComparedTraining:
    """A training that nobody has made."""
    training = Training(
        run_id="0" * 32,
        name=name,
        status=status,
        params=resolve(SMALL | given),
        metrics={},
        tags={},
        curves={},
        test_digest=test_digest,
        has_model=False,
    )
    return ComparedTraining(name, training, None)


def test_what_cannot_be_held_against_the_first_is_said_of_each() -> None:
    file = {"data_file": "/data/a.npz", "split": "file", "noise": "fixed", "holdout_every": "0"}
    lines = remarks(
        [
            compared("first", test_digest="", status="FAILED"),
            compared("like it"),
            compared("tested elsewhere", test_digest="2"),
            compared("two-sided", bidirectional="true", test_digest="3"),
            compared("two-sided too", bidirectional="true", test_digest="3"),
            compared("of a file", test_digest="4", **file),
        ]
    )
    assert lines == [
        "first is FAILED: its figures are those of its last epoch.",
        "tested elsewhere was tested on other data than like it: their test figures do not compare.",
        *(
            f"{name} cannot be held against first: it is for another task (bidirectional=True and not False), and has "
            "another limit. Only their errors over the limit can be set side by side."
            for name in ("two-sided", "two-sided too")
        ),
        "of a file cannot be held against first: it is for another task (data_file=/data/a.npz and not None).",
    ]


def test_names_are_short_and_all_different_though_they_have_lists_in_them() -> None:
    names = ["default epochs=6 frequencies_hz=[2,5,9]", "default epochs=6 cell=gru frequencies_hz=[2,5,9]", "original"]
    assert distinct_names([compared(name).training for name in names[:2]]) == ["default", "default cell=gru"]
    assert distinct_names([compared(names[0]).training] * 2) == ["default 000000"] * 2
    assert split_list(", ".join(names)) == names
    assert split_list(json.dumps(names)) == names


REFUSED = {
    " ": "runs is empty",
    "nobody": "no run id, run name or version",
    "0" * 32: "not found",
    "7": "version=7",
    "@nobody": "no version of frequency-filter has the alias nobody",
    "metrics.": "cannot read the store's runs",
    "[1": "not valid YAML",
    "evaluate models:/frequency-filter/latest": "is of `evaluate`, not a training",
}


def test_what_is_not_there_or_no_training_is_refused(typed: Typed) -> None:
    train(typed)
    assert typed("evaluate") == (0, "")
    for words, line in REFUSED.items():
        with pytest.raises(UserError, match=re.escape(line)):
            trainings(words, resolve(SETTING).tracking)


def test_one_training_alone_is_not_compared_and_leaves_nothing(typed: Typed, folder: Path) -> None:
    train(typed)
    code, line = typed("compare")
    assert (code, len(line.splitlines())) == (2, 1)
    assert "to compare takes two" in line
    assert len(all_runs()) == 1
    assert not (folder / "comparison.html").exists()
