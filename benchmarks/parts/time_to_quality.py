"""Wall time until a filter is so near the limit, on windows that neither side has seen."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import torch

from benchmarks.heldout import HeldOut
from benchmarks.measure import Row, in_turns, process, say, side
from benchmarks.parts.epoch import begin
from benchmarks.reference import Training
from freqfilter.config import resolve
from freqfilter.data.splits import Splits
from freqfilter.evaluation import limits
from freqfilter.training.loop import train

SEEDS = (42, 43, 44)
BOUNDS = (1.15, 1.10, 1.01)
REFERENCE = "reference script, 20 epochs"
REFERENCE_EPOCHS = 20
# A schedule that decays has to know its length beforehand; all else is the default recipe.
LENGTHS = {"default recipe, 3 epochs": 3, "default recipe, 9 epochs": 9}
SCORED_EVERY_S = 4.0  # on the clock
HELD_OUT = Path(tempfile.gettempdir()) / "freqfilter_bench_held_out.pt"


def reference_steps(seed: int) -> Iterator[Any]:
    """The reference script, a step at a time; yields what answers, in evaluation mode."""
    training = Training.begin(seed)
    for _ in range(REFERENCE_EPOCHS):
        training.model.train()
        for x, y in training.training:
            training.step(x, y)
            yield training.model
        training.validate()
    yield training.model


def our_steps(seed: int, epochs: int) -> Iterator[Any]:
    """This program without a tracker, a step at a time."""
    params = resolve({"seed": str(seed), "holdout_every": "0", "epochs": str(epochs)})
    state, splits = begin(params)
    limits.validation_limit(params, splits.validation)  # as a run states it before it trains
    steps = train(state, training_windows=splits.epoch, validation=splits.validation, params=params.training)
    with closing(steps):
        for _ in steps:
            yield state.network


def reach(name: str, seed: int) -> dict[str, Any]:
    """Seconds until each bound, the whole training's, and the ratio at its end."""
    held_out = HeldOut(*torch.load(HELD_OUT, weights_only=True))
    reached: dict[str, float] = {}
    clock, scored, ratio = 0.0, 0.0, float("inf")
    network: Any = None
    steps = reference_steps(seed) if name == REFERENCE else our_steps(seed, LENGTHS[name])
    ended = False
    while not ended:
        started = time.perf_counter()
        following = next(steps, None)
        clock += time.perf_counter() - started
        ended = following is None
        network = network if ended else following
        if ended or clock - scored >= SCORED_EVERY_S:
            scored, training = clock, network.training
            network.eval()
            ratio = held_out.ratio(network)
            network.train(training)
            for bound in BOUNDS:
                if ratio <= bound:
                    reached.setdefault(str(bound), clock)
    return {"reached": reached, "seconds": clock, "ratio": ratio}


def measure() -> list[Row]:
    """Three seeds of each side, in turns."""
    held_out = HeldOut.make()
    torch.save((held_out.inputs, held_out.targets, held_out.limit_mse), HELD_OUT)
    cold = cold_limit_seconds()
    say(f"  limit on the validation windows, when it is not cached: {cold:.1f} s")
    params = resolve()
    limits.validation_limit(params, Splits.from_params(params).validation)  # now it is
    names = [REFERENCE, *LENGTHS]
    ended: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for seed in SEEDS:
        turn = in_turns({name: side("parts.time_to_quality", name=name, seed=seed) for name in names}, rounds=1)
        for name in names:
            ended[name].append(turn[name][0].answer)
            say(f"  seed {seed}: {name} {ended[name][-1]}")
    HELD_OUT.unlink()
    rows = [Row("limit on the validation windows", "when it is not cached", "s", [cold])]
    for name in names:
        answers = ended[name]
        for bound in BOUNDS:
            times = [answer["reached"].get(str(bound)) for answer in answers]
            rows.append(Row(name, f"to {bound:g} × the limit", "s", times, against=REFERENCE))
        rows.append(Row(name, "whole training", "s", [answer["seconds"] for answer in answers], against=REFERENCE))
        rows.append(Row(name, "at the end, × the limit", "", [answer["ratio"] for answer in answers]))
    return rows


def cold_limit_seconds() -> float:
    """What the limit costs a run of a signal model that nobody has trained on before."""
    with tempfile.TemporaryDirectory() as folder:
        code = (
            "import time\n"
            "from freqfilter.evaluation import limits\n"
            "from freqfilter.config import resolve\n"
            "from freqfilter.data.splits import Splits\n"
            "params = resolve(); splits = Splits.from_params(params)\n"
            "started = time.perf_counter()\n"
            "limits.validation_limit(params, splits.validation)\n"
            "print(time.perf_counter() - started)\n"
        )
        return float(process([sys.executable, "-c", code], environment={"XDG_CACHE_HOME": folder}).answer)


if __name__ == "__main__":
    print(json.dumps(reach(**json.loads(sys.argv[1]))))
