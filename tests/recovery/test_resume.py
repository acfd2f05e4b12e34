"""A resumed training continues in its run, with the results of an uninterrupted one."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient

from tests import zygote
from tests.conftest import SMALL, Program, Typed, all_runs, artifacts, interrupt_after_an_epoch, options, wait_for_line
from tests.malicious import Malicious
from tests.recovery.comparing import RICH, Outcome, end_by

pytestmark = pytest.mark.slow


def train(*words: str) -> list[str]:
    return [sys.executable, "-m", "freqfilter", "train", *options(RICH), *words]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_an_interrupted_run_resumes_to_the_same_results_in_the_same_run(
    number: signal.Signals, code: int, whole: Outcome, folder: Path, freqfilter: Program
) -> None:
    process = wait_for_line("epoch  5/12", train(), folder)
    assert process.poll() is None
    output = end_by(process, number)
    assert process.returncode == code, output
    run = all_runs()[-1]
    assert output.splitlines()[-1] == (
        f"freqfilter: stopped by {number.name}; resume with: python -m freqfilter resume {run.info.run_id}"
    )
    assert run.info.status == "KILLED"
    done = freqfilter("resume", run.info.run_id)
    assert done.returncode == 0, done.stderr
    assert "resuming after epoch" in done.stdout
    resumed = MlflowClient().get_run(run.info.run_id)
    assert len(all_runs()) == 1
    whole.assert_same(resumed)
    assert "ended_because" not in resumed.data.tags
    assert not (folder / "runs" / run.info.run_id).exists()
    again = freqfilter("resume", run.info.run_id)
    assert (again.returncode, "has finished" in again.stderr) == (2, True)


def test_auto_resumes_the_newest_unfinished_run_and_overrides_have_to_agree(folder: Path, typed: Typed) -> None:
    end_by(wait_for_line("epoch  3/12", train(), folder), signal.SIGKILL)
    (run,) = all_runs()
    run_id = run.info.run_id
    assert run.info.status == "RUNNING"  # a killed process cannot change it
    for words, part in [
        ((run_id, "--epochs", "13"), "epochs=13 (it has 12)"),
        ((run_id, "--recipe", "original"), "recipe=original (it has default)"),
        ((run_id, "--learning_rate", "fast"), "learning_rate=fast"),
        (("auto",), "no unfinished run of these parameters"),
        (("../" + run_id,), "Invalid value"),
        (("0" * 32,), "not found"),
    ]:
        code, line = typed("resume", *words)
        assert code == 2
        assert part in line
        assert line.count("\n") == 1
    assert all_runs()[0].info.status == "RUNNING"
    assert typed("resume", "auto", *options(RICH)) == (0, "")
    assert [run.info.status for run in all_runs()] == ["FINISHED"]


def test_resuming_with_other_data_is_refused(folder: Path, typed: Typed) -> None:
    made = {name: SMALL[name] for name in ("n_samples", "duration_s", "window_length")}
    assert typed("prepare", "--output", "mine.npz", *options(made))[0] == 0
    of_file = {"data_file": "mine.npz", "epochs": "500"}
    end_by(wait_for_line("epoch   2/500", train(*options(of_file)), folder), signal.SIGTERM)
    assert typed("prepare", "--output", "mine.npz", "--train_noise_seed", "7", *options(made))[0] == 0
    run = next(run for run in all_runs() if run.data.tags["workflow"] == "train")
    code, line = typed("resume", run.info.run_id)
    assert code == 2
    assert "mine.npz: its train data differs from that of the checkpoint" in line


def test_a_killed_training_with_augmentation_resumes_to_the_same_results(folder: Path, typed: Typed) -> None:
    made = {name: SMALL[name] for name in ("n_samples", "duration_s", "window_length")}
    assert typed("prepare", "--output", "mine.npz", *options(made))[0] == 0
    augmented = {"data_file": "mine.npz", "augment_noise_std": "0.1", "augment_gain_db": "3"}
    within_epochs = {"checkpoint_minutes": "0.0001"}
    assert typed("train", *options(RICH | augmented)) == (0, "")
    whole = Outcome.of(all_runs()[-1])
    end_by(wait_for_line("epoch  5/12", train(*options(augmented | within_epochs)), folder), signal.SIGKILL)
    run_id = all_runs()[-1].info.run_id
    assert typed("resume", run_id) == (0, "")
    whole.assert_same(MlflowClient().get_run(run_id))


def test_a_running_run_is_not_resumed_and_one_of_another_machine_only_with_force(folder: Path, typed: Typed) -> None:
    process = wait_for_line("epoch      2/", train("--epochs", "100000"), folder)
    run_id = all_runs()[0].info.run_id
    code, line = typed("resume", run_id)
    assert code == 2
    assert f"is running in process {process.pid}" in line
    end_by(process, signal.SIGKILL)
    client, tag = MlflowClient(), all_runs()[0].data.tags["process"]
    client.set_tag(run_id, "process", tag.replace('"host": "', '"host": "another-'))
    code, line = typed("resume", run_id)
    assert code == 2
    assert "if its process is gone, add --force" in line
    with interrupt_after_an_epoch(signal.SIGTERM):
        assert typed("resume", run_id, "--force")[0] == 143
    assert [run.info.status for run in all_runs()] == ["KILLED"]


def test_mlflow_run_with_a_run_id_resumes_it(whole: Outcome, folder: Path, mlflow_run: Program) -> None:
    end_by(wait_for_line("epoch  5/12", train(), folder), signal.SIGKILL)
    run_id = all_runs()[-1].info.run_id
    done = mlflow_run("--run-id", run_id)
    assert done.returncode == 0, done.stderr
    assert len(all_runs()) == 1
    whole.assert_same(MlflowClient().get_run(run_id))
    again = mlflow_run("--run-id", run_id)
    assert again.returncode == 1
    assert "has finished; start a new run" in again.stderr


def test_a_corrupt_checkpoint_is_skipped_with_a_warning_and_lost_ones_are_downloaded(
    whole: Outcome, folder: Path, freqfilter: Program
) -> None:
    words = ["--checkpoint_minutes", "0.0001", "--checkpoints_kept", "5"]
    end_by(wait_for_line("epoch  7/12", train(*words), folder), signal.SIGKILL)
    run_id = all_runs()[-1].info.run_id
    kept = sorted((folder / "runs" / run_id / "checkpoints").glob("*.pt"))
    newest = max(kept, key=lambda path: path.stat().st_mtime_ns)
    newest.write_bytes(newest.read_bytes()[:-1000])
    done = freqfilter("resume", run_id, "--epochs", "12")
    assert done.returncode == 0, done.stderr
    assert f"skipped: {newest}: corrupt" in done.stdout
    whole.assert_same(MlflowClient().get_run(run_id))

    end_by(wait_for_line("epoch  7/12", train(), folder), signal.SIGTERM)
    run = all_runs()[-1]
    assert "checkpoints/epoch_0004.pt" in artifacts(run)
    subprocess.run(["rm", "-r", str(folder / "runs" / run.info.run_id)], check=True)
    done = freqfilter("resume", run.info.run_id)
    assert done.returncode == 0, done.stderr
    assert "resuming after epoch 4" in done.stdout
    whole.assert_same(MlflowClient().get_run(run.info.run_id))


def test_a_crash_is_a_failed_run_with_the_reason(folder: Path) -> None:
    code = (
        "import freqfilter.pipelines.train as t, freqfilter.cli.main as c\n"
        "t.epoch_metrics = lambda *a, **k: 1 / 0\n"
        "c.main()\n"
    )
    command = [sys.executable, "-c", code, "train", *options(RICH)]
    done = zygote.run(command, cwd=folder)
    assert done.returncode == 1
    assert "ZeroDivisionError" in done.stderr
    (run,) = all_runs()
    assert run.info.status == "FAILED"
    assert run.data.tags["ended_because"].startswith("ZeroDivisionError")


def test_checkpoints_of_another_network_are_refused_and_nothing_is_unpickled(folder: Path, typed: Typed) -> None:
    end_by(wait_for_line("epoch  3/12", train(), folder), signal.SIGTERM)
    (run,) = all_runs()
    kept = folder / "runs" / run.info.run_id / "checkpoints"
    newest = max(kept.glob("*.pt"), key=lambda path: path.stat().st_mtime_ns)
    content = torch.load(newest, weights_only=True)
    for path in kept.glob("*.pt"):
        path.unlink()
    content["params"]["model"]["hidden_size"] = 16
    torch.save(content, newest)
    code, line = typed("resume", run.info.run_id)
    assert code == 2
    assert "does not match its parameters" in line
    torch.save({"schema": 4, "params": Malicious(folder / "touched")}, newest)
    code, line = typed("resume", run.info.run_id)
    assert code == 2
    assert "has no checkpoint" in line
    assert not (folder / "touched").exists()
    assert all_runs()[0].info.status == "KILLED"
