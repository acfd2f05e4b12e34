"""Comparison of trainings: differing parameters, significance, and trainings that cannot be compared."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import mlflow
import pandas as pd
import pytest
from mlflow import MlflowClient

from freqfilter.config import resolve
from freqfilter.errors import UserError
from freqfilter.pipelines.compare import ComparedTraining, ComparisonResult, distinct_names
from freqfilter.tracked_names import BEST_HOLDOUT_MSE, HOLDOUT_MSE, VAL_MSE
from freqfilter.tracking.queries import Training, split_list, trainings
from freqfilter.tracking.ui_views import RunRef
from tests.conftest import SMALL, Typed, all_runs, artifacts, download, options, say

pytestmark = pytest.mark.slow

SETTING = SMALL | {"noise_std": "0.2", "learning_rate": "0.02", "epochs": "6"}


def train(typed: Typed, *arguments: str, **given: str) -> str:
    """Train and return the run's ID."""
    assert typed("train", *options(SETTING | given), *arguments) == (0, "")
    return str(all_runs()[-1].info.run_id)


def test_a_comparison_is_a_page_and_a_run(
    typed: Typed, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    good = train(typed)
    poor = train(typed, epochs="1", cell="gru")
    other = train(typed, bidirectional="true", test_noise_seed="7")
    arguments = ["compare", "--runs", f"{good}, {poor}, {other}", "--realizations", "8"]
    code, stdout, stderr = say(arguments, capsys, monkeypatch)
    assert (code, stderr) == (0, "")

    names = [f"default epochs=6 {good[:6]}", "default epochs=1", f"default epochs=6 {other[:6]}"]
    rows = dict(re.findall(r"^(\w+) {2,}(\S.*)$", stdout, re.MULTILINE))
    assert rows["cell"].split() == ["lstm", "gru", "lstm"]
    assert rows["epochs"].split()[:3] == ["6", "1", "6"]
    assert "hidden_size" not in rows, "equal in all trainings"
    assert "run_dir" not in rows
    assert rows["bidirectional"].split() == ["false", "false", "true"]
    assert f"{names[1]} compared with {names[0]} on 8 fresh realizations: worse by" in stdout
    assert f"{names[2]} cannot be compared with {names[0]}" in stdout
    assert "bidirectional=True and not False" in stdout

    page = (folder / "comparison.html").read_text()
    assert "data:image/png;base64," in page
    assert not re.findall(r"(?:src|href)=\"(?!data:)", page), "the page is not self-contained"
    assert all(name in page for name in names)
    run = all_runs()[-1]
    assert run.info.status == "FINISHED"
    assert {f"comparison/{name}" for name in ("report.html", "side_by_side.png", "figures.csv", "parameters.csv")} <= (
        artifacts(run)
    )
    assert download(run, "comparison/report.html", folder).read_text() == page
    assert "| test MSE" in run.data.tags["mlflow.note.content"]


def test_identical_weights_do_not_differ_significantly(
    typed: Typed, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(2):
        train(typed)
    code, stdout, _ = say(["compare", "--realizations", "6"], capsys, monkeypatch)
    assert code == 0
    assert "Their parameters are the same." in stdout
    assert "not significant: +0.00 %" in stdout
    code, _, stderr = say(["compare", "--realizations", "5"], capsys, monkeypatch)
    assert (code, stderr.count("\n")) == (2, 1)
    assert "set at least 6, or 0 for none" in stderr


def test_a_training_is_selected_by_id_name_version_alias_filter_or_parent(typed: Typed) -> None:
    first = train(typed)
    second = train(typed, cell="gru")
    tracking = resolve(SETTING).tracking

    def ids(runs: str | None) -> list[str]:
        return [training.run_id for training in trainings(runs, tracking)]

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
    with mlflow.start_run(experiment_id="0", tags={"workflow": "train"}) as run:
        mlflow.log_metrics({"audit/mse": 0.3, "best/audit_mse": 0.2, "test/mse": 0.25}, step=1)
        mlflow.log_text(stored, "params.yaml")
    (training,) = trainings(run.info.run_id, params.tracking)
    assert training.params == params
    assert training.metrics == {HOLDOUT_MSE: 0.3, BEST_HOLDOUT_MSE: 0.2, "test/mse": 0.25}
    assert training.curves[HOLDOUT_MSE].to_dict() == {1: 0.3}


def compared(
    name: str,
    *,
    status: str = "FINISHED",
    test_digest: str = "1",
    run_id: str = "0" * 32,
    metrics: dict[str, float] | None = None,
    **given: str,
) -> ComparedTraining:
    """Create a training that is not in a store."""
    training = Training(
        run_id=run_id,
        experiment_id="1",
        name=name,
        status=status,
        started_ms=0,
        params=resolve(SMALL | given),
        metrics=metrics or {},
        tags={},
        curves={VAL_MSE: pd.Series([0.3, 0.2], index=[1, 2])},
        test_digest=test_digest,
        has_model=False,
    )
    return ComparedTraining(name, training, None)


def test_remarks_state_what_cannot_be_compared() -> None:
    file = {"data_file": "/data/a.npz", "split": "file", "noise": "fixed", "holdout_every": "0"}
    trainings = [
        compared("first", test_digest="", status="FAILED"),
        compared("like it"),
        compared("other test", test_digest="2"),
        compared("two-sided", bidirectional="true", test_digest="3"),
        compared("two-sided too", bidirectional="true", test_digest="3"),
        compared("of a file", test_digest="4", **file),
    ]
    assert ComparisonResult(RunRef("1" * 32, "e", "1", ""), trainings).remarks == [
        "first is FAILED: its figures are those of its last epoch.",
        "other test has other test data than like it: their test scores are not comparable.",
        *(
            f"{name} cannot be compared with first: it has another task (bidirectional=True and not False) and "
            "another limit. Compare their errors over the limit instead."
            for name in ("two-sided", "two-sided too")
        ),
        "of a file cannot be compared with first: it has another task (data_file=/data/a.npz and not None).",
    ]


def test_names_are_short_and_unique_even_with_lists() -> None:
    names = ["default epochs=6 frequencies_hz=[2,5,9]", "default epochs=6 cell=gru frequencies_hz=[2,5,9]", "original"]
    assert distinct_names([compared(name).training for name in names[:2]]) == ["default", "default cell=gru"]
    both = [compared(names[0], run_id=run_id).training for run_id in ("0" * 32, "1" * 32)]
    assert distinct_names(both) == ["default 000000", "default 111111"]
    assert split_list(", ".join(names)) == names
    assert split_list(json.dumps(names)) == names


STRANGE_NAMES = [
    "limit", "model", "mean", "all", "limit", "a, b", "pipe | pipe", "two\nlines", "<script>alert(1)</script>", "  ",
    "$\\frac{", "_hidden", "**bold** `x` [y](z)", "x" * 200, "x" * 201, "limit 000004", "ünïcode",
]  # fmt: skip


def test_any_name_of_a_run_is_shown_as_it_is() -> None:
    trainings = [compared(name, run_id=f"{number:032}") for number, name in enumerate(STRANGE_NAMES)]
    names = distinct_names([item.training for item in trainings])
    assert len(set(names)) == len(STRANGE_NAMES)
    assert not [name for name in names if "\n" in name or not name.strip()]
    named = [replace(item, name=name) for item, name in zip(trainings, names, strict=True)]
    result = ComparisonResult(RunRef("1" * 32, "e", "1", ""), named)
    assert list(result.figures.columns) == names
    table = [line for line in result.markdown.splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in table} == {len(names) + 2}, "a name splits a row"
    assert "<script>" not in result.markdown
    drawn = result.figure()
    page = result.page()
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert len(drawn.axes[0].get_legend_handles_labels()[1]) == len(names), "a name is not in the legend"


def test_runs_named_as_estimators_are_compared(
    typed: Typed, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = [train(typed, epochs=epochs) for epochs in ("6", "1", "2")]
    for run_id, name in zip(ids, ("limit", "model", "mean"), strict=True):
        MlflowClient().set_tag(run_id, "mlflow.runName", name)
    code, stdout, stderr = say(["compare", "--runs", ",".join(ids), "--realizations", "7"], capsys, monkeypatch)
    assert (code, stderr) == (0, "")
    for name in ("model", "mean"):
        assert f"{name} compared with limit on 7 fresh realizations: " in stdout
    (ratios,) = re.findall(r"^fresh MSE over the limit +(.*)$", stdout, re.MULTILINE)
    assert ratios.split()[0] != "1.000", "scored as the limit"


def test_remarks_state_unknown_intervals_and_limits_of_zero() -> None:
    short = compared("short", metrics={"test/mse_over_limit": 1.1, "test/limit_mse": 0.2})
    clean = compared("clean", metrics={"test/limit_mse": 1e-71})
    known = {"test/mse_over_limit_low": 1.0, "test/mse_over_limit_high": 1.2}
    whole = compared("whole", metrics=short.training.metrics | known)
    assert ComparisonResult(RunRef("1" * 32, "e", "1", ""), [short, clean, whole]).remarks == [
        "short has too little test data for an interval of its MSE over the limit.",
        "The limit of clean is zero: there is no ratio to it.",
    ]


REJECTED = {
    " ": "runs is empty",
    "absent": "no run id, run name or version",
    "0" * 32: "not found",
    "7": "version=7",
    "@absent": "no version has the alias absent, or it was deleted",
    "metrics.": "cannot read the store's runs",
    "[1": "not valid YAML",
    "evaluate models:/frequency-filter/1": "is of `evaluate`, not a training",
}


def test_missing_runs_and_other_jobs_are_rejected(typed: Typed) -> None:
    train(typed)
    assert typed("evaluate") == (0, "")
    for runs, line in REJECTED.items():
        with pytest.raises(UserError, match=re.escape(line)):
            trainings(runs, resolve(SETTING).tracking)


def test_a_single_training_is_rejected_without_a_run(typed: Typed, folder: Path) -> None:
    train(typed)
    code, line = typed("compare")
    assert (code, len(line.splitlines())) == (2, 1)
    assert "give at least two trainings" in line
    assert len(all_runs()) == 1
    assert not (folder / "comparison.html").exists()
