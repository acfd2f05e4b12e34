"""The Python interface, on a real store."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient

import freqfilter
from freqfilter.config import resolve
from tests import zygote
from tests.conftest import ROOT, SMALL, all_runs, fork_model_workers, interrupt_after_an_epoch

SETTING = {name: value for name, value in SMALL.items() if name != "epochs"} | {"epochs": 1, "progress": False}


def test_train_returns_metrics_history_scores_and_a_version_that_loads(folder: Path) -> None:
    result = freqfilter.train(**SETTING | {"epochs": 2}, run_name="mine", frequencies_hz=[20, 50])
    (run,) = all_runs()
    assert (result.run.run_id, run.info.run_name, run.info.status) == (run.info.run_id, "mine", "FINISHED")
    assert result.metrics["test/mse"] == run.data.metrics["test/mse"]
    assert result.history["val_loss"].tolist() == [
        point.value for point in MlflowClient().get_metric_history(run.info.run_id, "val/loss")
    ]
    assert result.scores.loc[("model", "all"), "mse"] == result.metrics["test/mse"]
    assert result.params == resolve(SMALL | {"epochs": 2, "frequencies_hz": [20, 50]})
    assert len(result.loss_figure().axes) >= 1
    assert (result.model_name, result.version) == ("frequency-filter", 1)
    signal = np.random.default_rng(0).normal(size=100)
    loaded = freqfilter.load("frequency-filter", version=1)
    assert np.array_equal(result.load().extract(signal, 20), loaded.extract(signal, 20))


def test_the_address_of_a_run_names_its_experiment_and_run(folder: Path) -> None:
    result = freqfilter.train(**SETTING, register=False)
    run = all_runs()[0].info
    page = f"http://127.0.0.1:5000/#/experiments/{run.experiment_id}/runs/{run.run_id}?"
    assert result.run.page("http://127.0.0.1:5000/").startswith(page)
    assert "viewStateShareKey=trainings" in result.run.view("http://127.0.0.1:5000", "trainings")


def test_ablate_compare_evaluate_promote_rollback_and_history(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fork_model_workers(monkeypatch)
    sweep = freqfilter.ablate({"cell": "gru"}, **SETTING, register=True)
    assert list(sweep.results) == list(sweep.table.index) == ["base", "cell=gru"]
    assert [result.version for result in sweep.results.values()] == [1, 2]

    compared = freqfilter.compare(list(sweep.results.values()), realizations=0, progress=False)
    assert compared.parameters.to_dict("index") == {"cell": {"base": "lstm", "cell=gru": "gru"}}
    assert compared.figures.shape[1] == 2
    assert len(compared.figure().axes) >= 1
    assert not (folder / "comparison.html").exists()

    evaluated = freqfilter.evaluate(version=1, progress=False)
    assert evaluated.metrics["test/mse"] == pytest.approx(sweep.results["base"].metrics["test/mse"])
    assert evaluated.fresh is None

    for version in (1, 2):
        decided = freqfilter.promote(version, force="a test", progress=False)
        assert decided.outcome == "PROMOTED"
    assert decided.checks.loc["loads", "passed"]
    assert decided.figure().axes
    undone = freqfilter.rollback(reason="it is only a test")
    assert (undone.before.version, undone.after.version) == (2, 1)
    assert freqfilter.load("frequency-filter", alias="champion").facts["network"]["cell"] == "lstm"
    assert freqfilter.history()["event"].tolist() == ["registered", "registered", "PROMOTED", "PROMOTED", "ROLLED BACK"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: freqfilter.train(learnin_rate=1), "did you mean 'learning_rate'"),
        (lambda: freqfilter.train(epochs=0), "epochs=0: .*greater than or equal to 1"),
        (lambda: freqfilter.train(recipe="absent"), "no such recipe or file"),
        (lambda: freqfilter.evaluate(version=1, run_id="x"), "give one"),
        (lambda: freqfilter.evaluate(hidden_size=3), "hidden_size: not a parameter of this function"),
        (lambda: freqfilter.promote(tracking="offline"), "possible only for a single training"),
        (lambda: freqfilter.promote(force=" "), "the reason is blank"),
        (lambda: freqfilter.compare([]), "give at least two trainings"),
        (lambda: freqfilter.ablate({}), "not a mapping with values to try"),
        (lambda: freqfilter.load(), "give a name"),
        (lambda: freqfilter.history(model_name="absent"), "name=absent not found"),
    ],
)
def test_a_wrong_call_is_a_user_error_of_one_line(call: object, message: str, folder: Path) -> None:
    with pytest.raises(freqfilter.UserError, match=message) as caught:
        call()  # type: ignore[operator]
    assert "\n" not in str(caught.value)
    assert [run.info.status for run in all_runs()] == []


def test_loading_an_offline_training_names_the_command_that_delivers_it(folder: Path) -> None:
    result = freqfilter.train(**SETTING, tracking="offline")
    assert result.version is None
    with pytest.raises(freqfilter.UserError, match="sync"):
        result.load()


def test_ctrl_c_is_a_keyboard_interrupt_with_the_command_that_resumes(folder: Path) -> None:
    import signal

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    with interrupt_after_an_epoch(signal.SIGINT):
        with pytest.raises(KeyboardInterrupt, match="freqfilter resume") as caught:
            freqfilter.train(**SETTING | {"epochs": 3, "progress": True})
        # Before the context manager, which restores them too, has ended.
        assert [signal.getsignal(number) for number in numbers] == before
    (run,) = all_runs()
    assert run.info.run_id in str(caught.value)
    assert run.info.status == "KILLED"


def test_training_works_in_a_thread(folder: Path) -> None:
    results = []
    thread = threading.Thread(target=lambda: results.append(freqfilter.train(**SETTING, register=False)))
    thread.start()
    thread.join()
    assert results[0].run.run_id == all_runs()[0].info.run_id


def test_mlflows_tracking_uri_is_used(folder: Path, empty_store: Path) -> None:
    other = folder / "other.db"
    other.write_bytes(empty_store.read_bytes())
    code = (
        f"import freqfilter, mlflow; mlflow.set_tracking_uri('sqlite:///{other}')\n"
        f"print(freqfilter.train(**{SETTING | {'register': False}}).run.tracking_uri)"
    )
    # In a new process, since MLflow keeps the address.
    assert zygote.run([sys.executable, "-c", code], cwd=folder, check=True).stdout == f"sqlite:///{other}\n"
    assert all_runs() == []
    experiments = MlflowClient(f"sqlite:///{other}").search_experiments()
    assert "freqfilter" in {experiment.name for experiment in experiments}


def test_the_package_is_imported_without_its_libraries_and_lists_its_functions() -> None:
    code = (
        "import sys, freqfilter\n"
        "assert set(freqfilter.__all__) <= set(dir(freqfilter))\n"
        "assert callable(freqfilter.train) and not hasattr(freqfilter, 'absent')\n"
        "print(sorted({'torch', 'mlflow', 'matplotlib', 'pandas', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"
