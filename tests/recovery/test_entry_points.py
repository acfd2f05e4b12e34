"""Each entry point, given the id of a run in each state by ``mlflow run --run-id``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest
from mlflow import MlflowClient

from freqfilter.tracking.owner import RunLock
from tests.conftest import SMALL, Typed, many, options

pytestmark = [pytest.mark.slow, pytest.mark.soak]

TRAINED = options(SMALL | {"epochs": "1"})
JOBS = {
    "prepare": ("prepare", "--output", "data.npz", *options({"n_samples": "400", "duration_s": "0.4"})),
    "limit": ("limit", *options({"n_samples": "400", "duration_s": "0.4", "window_length": "20"})),
    "find_learning_rate": ("find_learning_rate", "--n_steps", "5", *TRAINED),
    "evaluate": ("evaluate", "--version", "1"),
    "compare": ("compare", "--runs", "frequency-filter/1, frequency-filter/2", "--realizations", "0"),
    "export": ("export", "--version", "1"),
    "promote": ("promote", "--version", "2", "--force", "test"),
    "rollback": ("rollback", "--version", "1", "--reason", "test"),
    "seeds": ("train", "--seeds", "[1, 2]", *TRAINED),
    "ablate": ("ablate", "--values", "{cell: gru}", *TRAINED),
    "train": ("train", "--seed", "3", *TRAINED),
}
REPEATABLE = {"prepare", "limit", "find_learning_rate", "evaluate", "compare", "export"}
STATES = ("RUNNING", "KILLED", "FAILED", "FINISHED", "deleted")


@pytest.mark.parametrize("job", list(JOBS)[: many(1, len(JOBS))])
def test_an_entry_point_takes_a_new_run_or_its_own_unfinished_one(
    job: str, folder: Path, typed: Typed, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = MlflowClient()
    if job in ("evaluate", "compare", "export", "promote", "rollback"):
        assert typed("train", *TRAINED)[0] == typed("train", "--seed", "2", *TRAINED)[0] == 0
    if job == "rollback":
        client.set_registered_model_alias("frequency-filter", "champion", "2")
    training, own = _interrupted_training(folder), str(client.create_run("0").info.run_id)
    before = client.get_run(training).to_dictionary()

    def start_on(run_id: str) -> tuple[object, str]:
        with monkeypatch.context() as patch:
            patch.setenv("MLFLOW_RUN_ID", run_id)
            return typed(*JOBS[job])

    code, lines = start_on(own)
    assert (code, client.get_run(own).info.status) == (0, "FINISHED"), lines
    for state in STATES:
        for run_id in (training, own):
            with _in_state(client, run_id, state, folder):
                code, lines = start_on(run_id)
                if run_id == own and job in REPEATABLE and state in ("KILLED", "FAILED"):
                    assert (code, client.get_run(run_id).info.status) == (0, "FINISHED"), (state, lines)
                    _assert_each_point_once(client, run_id)
                else:
                    assert code == 2, (state, lines)
                    # After its first rollback, the version is the champion.
                    said = "version=1: it is" if job == "rollback" else f"run {run_id} "
                    assert lines.splitlines()[-1].startswith(f"freqfilter: {said}"), (state, lines)
    client.update_run(training, "KILLED")
    after = client.get_run(training).to_dictionary()
    assert after["data"] == before["data"]
    assert after["inputs"] == before["inputs"]
    assert (folder / "runs" / training / "checkpoints" / "epoch_0001.pt").exists()


def _interrupted_training(folder: Path) -> str:
    """A run of another job: a training that was interrupted."""
    client = MlflowClient()
    run_id = str(client.create_run("0", tags={"workflow": "train", "params_digest": "0"}).info.run_id)
    client.log_metric(run_id, "train/loss", 0.5, step=1)
    checkpoints = folder / "runs" / run_id / "checkpoints"
    checkpoints.mkdir(parents=True)
    (checkpoints / "epoch_0001.pt").touch()
    client.set_terminated(run_id, "KILLED")
    return run_id


@contextmanager
def _in_state(client: MlflowClient, run_id: str, state: str, folder: Path) -> Iterator[None]:
    """Put a run into a state: a status, or ``deleted``; a running one is locked."""
    if state == "deleted":
        client.delete_run(run_id)
        yield
        client.restore_run(run_id)
        return
    client.update_run(run_id, state)
    with RunLock(folder / "runs" / run_id) if state == "RUNNING" else nullcontext():
        yield


def _assert_each_point_once(client: MlflowClient, run_id: str) -> None:
    for name in client.get_run(run_id).data.metrics:
        steps = [point.step for point in client.get_metric_history(run_id, name)]
        assert len(steps) == len(set(steps)), name
