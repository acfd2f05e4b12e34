"""Promotions, refusals and rollbacks in a registry, as in docs/promotion.md."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path

import mlflow
import pytest
import torch
from mlflow import MlflowClient

import freqfilter
from freqfilter.config import resolve
from freqfilter.pipelines.sandbox import ModelWorker
from tests.conftest import Program, Typed, all_runs, artifacts, call, download, options, say
from tests.promotion.making import (
    BOUNDS,
    NAME,
    SETTING,
    aliases,
    confusing_the_last_component,
    module_of,
    register,
    setting,
    version,
    zero,
)

pytestmark = pytest.mark.slow


@pytest.fixture
def promote(registry: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> object:
    """Run ``freqfilter promote``; return exit status and output."""

    def run_promote(*words: str) -> tuple[object, str]:
        code, printed, last_words = say(["promote", *BOUNDS, *words], capsys, monkeypatch)
        return code, printed + last_words

    return run_promote


def last_decision() -> dict[str, str]:
    run = [run for run in all_runs() if run.data.tags.get("workflow") in ("promote", "rollback")][-1]
    assert run.info.status == "FINISHED"
    return run.data.tags


def test_promotions_refusals_and_rollback_in_one_registry(
    promote, registry: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:  # type: ignore[no-untyped-def]
    assert aliases() == {"candidate": 2}
    # The first champion.
    code, output = promote("--version", "1")
    assert (code, "PROMOTED: frequency-filter version 1" in output) == (0, True), output
    assert aliases() == {"candidate": 2, "champion": 1}
    # A better one, which is the newest.
    code, output = promote()
    assert code == 0, output
    assert "better than the champion" in output
    assert aliases() == {"candidate": 2, "champion": 2, "previous": 1}
    decision = [run for run in all_runs() if run.data.tags.get("workflow") == "promote"][-1]
    assert {"decision/report.md", "decision/errors.png", "decision/errors.csv"} <= artifacts(decision)
    report = download(decision, "decision/report.md", tmp_path).read_text()
    for words in (
        "# PROMOTED: frequency-filter version 2",
        "| near the limit, 7hz",
        "| champion",
        "| limit",
        "| loads",
    ):
        assert words in report
    tags = version(2).tags
    assert (tags["decision"], tags["decision_run"], tags["decided_against"]) == (
        "PROMOTED",
        decision.info.run_id,
        "1",
    )
    # An equal one.
    equal = register(module_of(2), setting())
    code, output = promote()
    assert (code, last_decision()["decision"]) == (0, "NOT_BETTER"), output
    assert "identical weights" in output
    # The champion itself, and one that is worse.
    assert (promote("--version", "2")[0], last_decision()["decision"]) == (0, "NOT_BETTER")
    code, output = promote("--version", "1")
    assert (code, last_decision()["decision"]) == (0, "NOT_BETTER"), output
    # Each refused for its own reason.
    corrupt, pickled = register(module_of(2), setting()), pickled_version(tmp_path)
    source = MlflowClient().get_logged_model(version(corrupt).source.removeprefix("models:/")).artifact_location
    weights = Path(source.removeprefix("file://")) / "artifacts" / "weights.pt"
    weights.write_bytes(weights.read_bytes()[:-200])
    refused = {
        register(zero(2), setting()): "beats zero",
        register(module_of(2), setting(), diagnoses="overfitting leak"): "no leak",
        register(confusing_the_last_component(2), setting()): "near the limit, 7hz",
        register(module_of(2), setting(noise_std="0.3")): "its task differs from the champion's: noise_std=0.3",
        corrupt: "checksum mismatch",
        pickled: "not a filter of freqfilter",
    }
    for number, reason in refused.items():
        code, output = promote("--version", str(number))
        assert (code, last_decision()["decision"]) == (1, "REJECTED"), output
        assert reason in last_decision()["reason"]
        assert version(number).tags["decision"] == "REJECTED"
        assert aliases()["champion"] == 2
    # --force needs a reason, and does not promote a version that cannot be loaded.
    code, output = promote("--version", str(corrupt), "--force", "I insist")
    assert (code, last_decision()["decision"]) == (1, "REJECTED")
    code, output = promote("--version", str(equal), "--force", "the same, trained anew")
    assert (code, last_decision()["decision"]) == (0, "PROMOTED"), output
    assert "forced: the same, trained anew" in last_decision()["reason"]
    assert (aliases()["champion"], aliases()["previous"]) == (equal, 2)
    # Rollback, and history.
    assert call(["rollback", "--reason", "the new one hums"], capsys, monkeypatch) == (0, "")
    assert (aliases()["champion"], aliases()["previous"]) == (2, equal)
    rows = list(csv.DictReader(io.StringIO(say(["history", "--csv"], capsys, monkeypatch)[1])))
    events = [(row["event"], row["version"], row["champion_after"]) for row in rows if row["event"] != "registered"]
    assert events[:2] == [("PROMOTED", "1", "1"), ("PROMOTED", "2", "2")]
    assert events[2:4] == [("NOT_BETTER", str(equal), "2"), ("NOT_BETTER", "2", "2")]
    assert events[-1] == ("ROLLED BACK", "2", "2")
    assert rows[-1]["why"] == "the new one hums"
    assert sum(row["event"] == "registered" for row in rows) == len(refused) + 3
    assert all(row["evidence"] for row in rows if row["event"] != "registered")
    assert freqfilter.load(NAME, alias="champion").facts["window_length"] == 20


def pickled_version(tmp_path: Path) -> int:
    class Pickled(mlflow.pyfunc.PythonModel):
        def predict(self, context, model_input):  # type: ignore[no-untyped-def]
            return model_input

    with mlflow.start_run():
        info = mlflow.pyfunc.log_model(
            name="m", python_model=Pickled(), registered_model_name=NAME, pip_requirements=[]
        )
    return int(info.registered_model_version)


@pytest.mark.parametrize("number", [1, 2])
def test_a_killed_model_process_is_not_a_refusal(
    number: int, registry_with: Callable[[int | None], Path], typed: Typed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system may kill the champion's or the candidate's process when memory is short."""
    registry_with(1)
    read, pids = ModelWorker.read, []

    def killed(self: ModelWorker, inputs: torch.Tensor) -> torch.Tensor:
        if self._uri == version(number).uri and not pids:
            pids.append(self.pid)
            os.kill(pids[0], signal.SIGKILL)
        return read(self, inputs)

    monkeypatch.setattr(ModelWorker, "read", killed)
    code, line = typed("promote", "--version", "2", *BOUNDS)
    assert (code, line.count("\n")) == (2, 1)
    assert "ended by SIGKILL from outside" in line
    assert "decision" not in version(2).tags
    assert aliases()["champion"] == 1


def test_a_repeated_promotion_has_the_same_errors_and_reports_a_given_seed(promote, registry: Path) -> None:  # type: ignore[no-untyped-def]
    assert promote("--version", "1")[0] == 0
    errors = []
    for seed in ((), (), ("--noise_seed", "123")):
        MlflowClient().set_registered_model_alias(NAME, "champion", "1")
        assert promote("--version", "2", *seed)[0] == 0
        run = [run for run in all_runs() if run.data.tags.get("workflow") == "promote"][-1]
        errors.append(download(run, "decision/errors.csv", registry / str(len(errors))).read_text())
        assert ("(user-specified)" in run.data.tags["mlflow.note.content"]) == bool(seed)
    assert errors[0] == errors[1] != errors[2]


def test_a_refusal_under_mlflow_run_is_a_finished_run(promote, registry: Path, mlflow_run: Program) -> None:  # type: ignore[no-untyped-def]
    done = mlflow_run("-e", "promote", version="1", max_mse_ratio="1.0001")
    assert done.returncode == 1
    assert "REJECTED: frequency-filter version 1" in done.stdout
    deadline = time.monotonic() + 60
    while (run := all_runs()[-1]).info.status != "FINISHED":
        assert time.monotonic() < deadline, run.info.status
        time.sleep(0.3)
    assert run.data.tags["decision"] == "REJECTED"


def test_a_filter_of_a_users_data_is_promoted_without_a_limit(
    promote, registry: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:  # type: ignore[no-untyped-def]
    made = {name: SETTING[name] for name in ("n_samples", "duration_s", "window_length")}
    assert call(["prepare", "--output", "mine.npz", *options(made)], capsys, monkeypatch)[0] == 0
    own = SETTING | {"data_file": "mine.npz", "model_name": "own", "noise_std": "0.1"}
    for epochs in ("2", "15"):
        assert call(["train", *options(own | {"epochs": epochs})], capsys, monkeypatch) == (0, "")
    assert promote("--model_name", "own", "--version", "1")[0] in (0, 1)
    code, output = promote("--model_name", "own", "--version", "2")
    assert "the limit of this data is unknown" in output
    assert "near the limit, 1hz" not in output
    assert code == 0, output


def test_errors_of_registry_commands_are_reported(promote, registry: Path, typed: Typed) -> None:  # type: ignore[no-untyped-def]
    for words, part in [
        (("--model_name", "absent"), "absent"),
        (("--version", "99"), "99"),
        (("--force", " "), "the reason is blank"),
        (("--version", "0"), "version"),
    ]:
        code, output = promote(*words)
        assert code == 2
        assert part in output
        assert "Traceback" not in output
    assert typed("rollback")[0] == 2
    assert typed("history", "--model_name", "absent")[0] == 2
    assert [run for run in all_runs() if run.data.tags.get("decision")] == []


def test_a_copy_in_another_registry_has_its_evidence_and_is_not_champion(
    promote, registry: Path, empty_store: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:  # type: ignore[no-untyped-def]
    assert promote("--version", "2")[0] == 0
    other = registry / "other.db"
    other.write_bytes(empty_store.read_bytes())
    words = ["copy", "--version", "2", "--to", f"sqlite:///{other}", "--to_name", "production"]
    assert call(words, capsys, monkeypatch) == (0, "")
    before = version(2).tags
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{other}")
    copied = MlflowClient().get_model_version("production", "1")
    assert copied.tags["model_sha256"] == before["model_sha256"]
    assert copied.tags["verdict_elsewhere"].startswith("PROMOTED in sqlite:///")
    assert copied.tags["copied_from"].endswith("frequency-filter version 2")
    assert "decision" not in copied.tags
    assert MlflowClient().get_registered_model("production").aliases == {"candidate": 1}
    (run,) = all_runs()
    assert "decision/report.md" in artifacts(run)
    loaded = freqfilter.load("production", version=1)
    assert torch.isfinite(torch.from_numpy(loaded.extract([0.1] * 30, 3.0))).all()
    assert resolve(loaded.params.flat()).data.window_length == 20
    assert loaded.pinned_uri == "models:/production/1"  # the logged model is in the former store
    assert call(["evaluate", "--model_name", "production"], capsys, monkeypatch) == (0, "")
    assert call(["promote", "--model_name", "production", *BOUNDS], capsys, monkeypatch)[0] == 0
    rows = json.loads(say(["history", "--model_name", "production", "--json"], capsys, monkeypatch)[1])
    assert "copied from sqlite:///" in rows[0]["why"]


@pytest.mark.parametrize(
    "after", ["freqfilter.tracking.registry.files_digest", "freqfilter.tracking.registry.set_candidate"]
)
def test_an_interrupted_copy_is_replaced_or_completed_by_the_next(
    after: str, registry: Path, empty_store: Path, typed: Typed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once interrupted before its version is created, once after; then a copy that finds it complete."""
    uri = f"sqlite:///{shutil.copy(empty_store, registry / 'other.db')}"
    with monkeypatch.context() as patch:
        patch.setattr(after, lambda *_: sys.exit("killed"))
        assert typed("copy", "--to", uri)[0] == "killed"
    for _ in range(2):
        assert typed("copy", "--to", uri) == (0, "")
        client = MlflowClient(uri, uri)
        (copy,) = client.search_model_versions()
        (run,) = client.search_runs(["0", "1"])
        assert (run.info.run_id, run.info.status) == (copy.run_id, "FINISHED")
        assert client.get_registered_model(NAME).aliases == {"candidate": 1}


def test_a_copy_with_another_checksum_is_deleted(
    registry: Path,
    empty_store: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    other = registry / "other.db"
    other.write_bytes(empty_store.read_bytes())
    digests = count()
    monkeypatch.setattr("freqfilter.tracking.registry.files_digest", lambda _: str(next(digests)))
    code, line = call(["copy", "--version", "2", "--to", f"sqlite:///{other}"], capsys, monkeypatch)
    assert code == 2
    assert "checksum mismatch after the copy" in line
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{other}")
    assert MlflowClient().search_model_versions() == []
    assert all_runs() == []
