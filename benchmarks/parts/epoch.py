"""An epoch of the original's recipe: the reference script, this program, and this program's fastest safe setting."""

from __future__ import annotations

import json
import sys
import time
from contextlib import closing

from benchmarks.measure import Row, in_turns, say, side
from benchmarks.reference import Training
from freqfilter.config import Params, resolve
from freqfilter.data.splits import Splits
from freqfilter.training.device import Accelerator
from freqfilter.training.loop import epoch_order, train, training_step
from freqfilter.training.reports import EpochReport
from freqfilter.training.state import TrainingState

ROUNDS = 5
REFERENCE, SAME, FAST = "reference script", "original recipe", "original recipe, bf16, batch 256"
# What stays out of the clock on both sides, and nothing else.
QUIET = {"holdout_every": "0", "checkpoint_every": "0"}
SETTINGS = {SAME: {}, FAST: {"precision": "auto", "batch_size": "256"}}
STEPS_COMPARED = 50


def begin(params: Params) -> tuple[TrainingState, Splits]:
    """A training as it begins, without a tracker."""
    accelerator = Accelerator.open(params.training)
    n_components = len(params.signals.frequencies_hz)
    state = TrainingState(
        n_components=n_components, model=params.model, training=params.training, accelerator=accelerator
    )
    return state, Splits.from_params(params)


def show_equal() -> float:
    """The largest relative difference of the losses of both sides, over the first steps of the same training."""
    params = resolve(QUIET | {"dropout": "0"}, recipe="original")
    state, splits = begin(params)
    windows = splits.epoch(1).to(state.accelerator.device)
    reference = Training.begin(seed=0)
    reference.model.lstm.dropout = 0.0
    reference.model.dropout.p = 0.0
    reference.model.lstm.load_state_dict(state.network.recurrent.state_dict())
    reference.model.fc.load_state_dict(state.network.fc.state_dict())
    reference.model.train()
    largest = 0.0
    for positions in epoch_order(42, 1, len(windows)).split(params.training.batch_size)[:STEPS_COMPARED]:
        lesson = windows.training_batch(positions.to(state.accelerator.device))
        ours = float(training_step(state, lesson, params.training)[0])
        theirs = reference.step(lesson.inputs, lesson.targets)
        largest = max(largest, abs(ours / theirs - 1))
    return largest


def timed(name: str) -> float:
    """Seconds of a second epoch, training and validation."""
    if name == REFERENCE:
        training = Training.begin(seed=42)
        training.epoch()
        started = time.perf_counter()
        training.epoch()
        return time.perf_counter() - started
    params = resolve(QUIET | {"epochs": "2"} | SETTINGS[name], recipe="original")
    state, splits = begin(params)
    steps = train(state, training_windows=splits.epoch, validation=splits.validation, params=params.training)
    with closing(steps):
        reports = [report for report in steps if isinstance(report, EpochReport)]
    return reports[-1].seconds


def measure() -> list[Row]:
    """First shown equal, then timed."""
    difference = show_equal()
    say(f"  losses of {STEPS_COMPARED} steps on the same batches differ by {difference:.1e} at most")
    sides = {name: side("parts.epoch", name=name) for name in (REFERENCE, SAME, FAST)}
    ended = in_turns(sides, rounds=ROUNDS)
    rows = [Row("both sides", "largest relative difference of a loss", "", [difference])]
    return rows + [Row(name, "epoch", "s", [each.answer for each in ended[name]], against=REFERENCE) for name in sides]


if __name__ == "__main__":
    print(json.dumps(timed(**json.loads(sys.argv[1]))))
