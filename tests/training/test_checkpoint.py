"""Checkpoints, and training resumed from them with identical results."""

from __future__ import annotations

from contextlib import closing
from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from freqfilter.config import Params
from freqfilter.data.splits import Splits
from freqfilter.errors import UserError
from freqfilter.training.checkpoint import (
    OLDEST_SCHEMA,
    SCHEMA,
    Checkpoints,
    TrainingSpec,
    read_checkpoint,
    write_checkpoint,
    write_weights,
)
from freqfilter.training.loop import train
from freqfilter.training.reports import EpochReport
from freqfilter.training.state import TrainingState
from tests.conftest import SMALL_RECORDINGS, fresh_state, many, network
from tests.malicious import Malicious
from tests.training.test_loop import EVERYTHING_RANDOM, figures, run, same_weights, small


def spec(params: Params) -> TrainingSpec:
    return TrainingSpec(params, "default", {"train": "0123"})


# With such small steps no epoch is an improvement, so the scheduler acts on every processor.
PLATEAU = {"scheduler_patience": "1", "learning_rate": "1e-7"}
COSINE = {"scheduler": "cosine", "optimizer": "muon", "windows_per_epoch": "1500", "targets": "posterior_mean"}
CARRIED = PLATEAU | SMALL_RECORDINGS | {"optimizer": "muon", "loss_weighting": "inverse_limit"}
AUGMENTED = PLATEAU | {"noise": "fixed", "augment_noise_std": "0.1", "augment_gain_db": "3"}


@cache
def uninterrupted_run(params: Params) -> TrainingState:
    """State after an uninterrupted training; read-only."""
    return run(params)


@pytest.mark.parametrize(
    "overrides",
    [PLATEAU, PLATEAU | {"optimizer": "muon", "scheduler_patience": "0"}, COSINE, AUGMENTED, CARRIED],
)
@pytest.mark.parametrize("stop_after", [1, 5, 11, 12, 13, 30, 50])
def test_a_resumed_run_equals_an_uninterrupted_one(stop_after: int, overrides: dict[str, str], tmp_path: Path) -> None:
    params = small(**EVERYTHING_RANDOM | overrides, epochs="6")
    whole = uninterrupted_run(params)
    assert len({report.learning_rate for report in whole.progress.history}) > 1  # the scheduler has acted

    path, stopped = tmp_path / "checkpoint.pt", fresh_state(params)
    run(params, stopped, stop_after=stop_after, at_each=lambda: write_checkpoint(path, stopped, spec(params)))
    checkpoint = read_checkpoint(path)
    assert checkpoint.spec == spec(params)
    assert not checkpoint.ended
    resumed = fresh_state(checkpoint.spec.params)
    resumed.load_state_dict(checkpoint.state)
    run(params, resumed)
    assert figures(resumed) == figures(whole)
    assert same_weights(resumed, whole)
    assert resumed.progress.best_epoch == whole.progress.best_epoch
    assert resumed.state_dict()["plateau"] == whole.state_dict()["plateau"]


def test_a_checkpoint_holds_epoch_model_optimizer_and_both_losses(tmp_path: Path) -> None:
    params = small(epochs="2", optimizer="muon")
    state = run(params)
    write_checkpoint(tmp_path / "checkpoint.pt", state, spec(params))
    content = read_checkpoint(tmp_path / "checkpoint.pt").state
    assert read_checkpoint(tmp_path / "checkpoint.pt").ended
    last = content["progress"]["history"][-1]
    assert (last["epoch"], last["train_loss"], last["val_loss"]) == (
        2,
        state.progress.history[-1].train_loss,
        state.progress.history[-1].val_loss,
    )
    assert content["network"].keys() == state.network.state_dict().keys()
    assert sum(len(stored["state"]) for stored in content["optimizers"]) == len(list(state.network.parameters()))


def test_weights_are_loaded_by_pytorch_alone(tmp_path: Path) -> None:
    state = fresh_state(small())
    write_weights(tmp_path / "best_model.pth", state.network.state_dict())
    other = network(n_components=4)
    other.load_state_dict(torch.load(tmp_path / "best_model.pth", weights_only=True))
    assert [p.name for p in tmp_path.iterdir()] == ["best_model.pth"]


def test_an_invalid_checkpoint_is_refused_and_not_executed(tmp_path: Path) -> None:
    params, path = small(), tmp_path / "checkpoint.pt"
    write_checkpoint(path, fresh_state(params), spec(params))
    valid = path.read_bytes()

    def assert_refused(message: str) -> None:
        with pytest.raises(UserError, match=message):
            read_checkpoint(path)

    for content in (b"", b"hello", valid[: len(valid) // 2]):
        path.write_bytes(content)
        assert_refused("corrupt, or not a checkpoint")
    torch.save({"schema": SCHEMA, "evil": Malicious(tmp_path / "touched")}, path)
    assert_refused("corrupt, or not a checkpoint")
    assert not (tmp_path / "touched").exists()
    torch.save({"weights": 1}, path)
    assert_refused("not a checkpoint of freqfilter")
    named: dict[str, object] = {"schema": SCHEMA, "recipe": "default", "data": {}, "state": {}}
    for content in ({"schema": "x"}, {"schema": SCHEMA}, named | {"params": {"training": 3}}, named | {"params": []}):
        torch.save(content, path)
        assert_refused("not a checkpoint|corrupt")
    torch.save({"schema": SCHEMA + 1}, path)
    assert_refused(f"newer than {SCHEMA}")
    torch.save({"schema": OLDEST_SCHEMA - 1}, path)
    assert_refused(f"older than {OLDEST_SCHEMA}")
    path.unlink()
    assert_refused("cannot be read")


def test_a_checkpoint_of_schema_4_with_other_layer_names_resumes_to_the_same_bits(tmp_path: Path) -> None:
    params = small(**EVERYTHING_RANDOM, **COSINE, epochs="3")
    whole, stopped, path = run(params), fresh_state(params), tmp_path / "checkpoint.pt"
    run(params, stopped, stop_after=13, at_each=lambda: write_checkpoint(path, stopped, spec(params)))
    content = torch.load(path, weights_only=True)
    content["schema"] = 4
    old = {"lstm": "recurrent", "fc": "output"}
    for name in ("network", "best_weights", "good_weights", "untried_weights"):
        weights = content["state"][name]
        content["state"][name] = {
            f"{old[layer]}.{rest}": tensor for (layer, rest), tensor in
            ((key.split(".", 1), tensor) for key, tensor in weights.items())
        }  # fmt: skip
    for report in content["state"]["progress"]["history"]:
        report["audit_mse"] = report.pop("holdout_mse")
    torch.save(content, path)
    resumed = fresh_state(params)
    resumed.load_state_dict(read_checkpoint(path).state)
    run(params, resumed)
    assert figures(resumed) == figures(whole)
    assert same_weights(resumed, whole)


@pytest.mark.soak
@given(where=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
@settings(max_examples=many(30, 1000), suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_flipped_bit_is_detected_or_changes_nothing(where: float, bit: int, whole_checkpoint: Path) -> None:
    """Checksums cover all bytes of tensors and values, but not all of the archive's directory."""
    content = bytearray(whole_checkpoint.read_bytes())
    content[int(where * len(content))] ^= 1 << bit
    path = whole_checkpoint.with_name("flipped.pt")
    path.write_bytes(content)
    expected = read_checkpoint(whole_checkpoint)
    try:
        found = read_checkpoint(path)
    except UserError:
        return
    assert found.spec == expected.spec
    assert all(torch.equal(found.state["network"][name], w) for name, w in expected.state["network"].items())


@pytest.fixture
def whole_checkpoint(tmp_path: Path) -> Path:
    params = small()
    write_checkpoint(tmp_path / "whole.pt", fresh_state(params), spec(params))
    return tmp_path / "whole.pt"


def test_the_newest_readable_checkpoint_is_found_and_older_ones_are_removed(tmp_path: Path) -> None:
    params, messages = small(epochs="3"), []
    state, splits = fresh_state(params), Splits.from_params(params)
    checkpoints = Checkpoints(tmp_path, kept=3)
    assert checkpoints.latest(messages.append) is None
    steps = train(state, training_windows=splits.epoch, validation=splits.validation, params=params.training)
    with closing(steps):
        for report in steps:
            if isinstance(report, EpochReport) or report.batch == 5:
                write_checkpoint(checkpoints.path(state.progress), state, spec(params))
    names = [path.name for path in checkpoints.files()]
    assert names == [
        "epoch_0003.pt", "epoch_0002_batch_000005.pt", "epoch_0002.pt", "epoch_0001_batch_000005.pt",
        "epoch_0001.pt", "epoch_0000_batch_000005.pt",
    ]  # fmt: skip
    checkpoints.remove_old(needed={tmp_path / "epoch_0001.pt"})
    assert [path.name for path in checkpoints.files()] == [*names[:3], "epoch_0001.pt"]
    for name in names[:2]:
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-100])
    found = checkpoints.latest(messages.append)
    assert found is not None
    assert (found.state["progress"]["epoch"], found.state["progress"]["batch"]) == (3, 0)
    assert [f"{tmp_path / name}: corrupt" in line for name, line in zip(names, messages, strict=False)] == [True, True]
