"""One model in a process of its own, which answers questions about it: ``python -m freqfilter.workflows.witness URI``.

Whatever a model's code or weights do, they do it there, with unpickling forbidden.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from freqfilter.errors import UserError
from freqfilter.evaluation.fresh import score_realizations
from freqfilter.evaluation.scores import MODEL
from freqfilter.filters.compute import use_deterministic_algorithms
from freqfilter.filters.loaded import Filter

TIMED = 20  # calls, whose median is the latency
GOLDEN_TOLERANCE = 1e-5  # other processors sum in other orders


def of_itself(found: Filter, files: Path) -> dict[str, Any]:
    """What a model says of itself, and shows."""
    window = np.zeros((1, found.facts["window_length"], 1 + len(found.facts["frequencies_hz"])), dtype=np.float32)
    times = []
    for _ in range(TIMED):
        started = time.perf_counter()
        found.predict(window)
        times.append(time.perf_counter() - started)
    weights = hashlib.sha256()
    for name, weight in found.module.state_dict().items():
        weights.update(name.encode() + weight.numpy().tobytes())
    return {
        "params": found.params.model_dump(mode="json"),
        "megabytes": sum(path.stat().st_size for path in files.rglob("*") if path.is_file()) / 1e6,
        "milliseconds": 1000 * float(np.median(times)),
        "weights_sha256": weights.hexdigest(),
        "golden_difference": golden_difference(found),
    }


def golden_difference(found: Filter) -> float | None:
    """How far a model is from what it gave when it was registered; None of an old version, which does not say."""
    if found.golden is None:
        return None
    inputs, estimates = found.golden
    return float(np.abs(found.predict(inputs) - estimates).max())


def errors_on(found: Filter, noise_seeds: list[int] | None) -> Iterator[dict[str, Any]]:
    """Mean squared error on each realization, or, of a user's data, on each part of its test windows."""
    extractor = {MODEL: lambda inputs: torch.from_numpy(found.predict(inputs.numpy()))}
    for name, errors in score_realizations(extractor, found.params, noise_seeds, device=torch.device("cpu")):
        yield {"name": name, "mse": errors.loc[MODEL].to_dict()}


def _main(uri: str) -> None:
    from freqfilter.tracking.loading import checked_files, load_files

    answers = sys.stdout
    sys.stdout = sys.stderr  # what a model prints is no answer

    def answer(content: dict[str, Any]) -> None:
        answers.write(json.dumps(content) + "\n")
        answers.flush()

    torch.set_num_threads(1)  # the same bits wherever it is asked
    use_deterministic_algorithms(True)
    try:
        with tempfile.TemporaryDirectory() as folder:
            files = checked_files(uri, Path(folder))
            found = load_files(uri, files)
            answer(of_itself(found, files))
        for line in sys.stdin:
            for scored in errors_on(found, json.loads(line)):
                answer(scored)
    except UserError as error:
        answer({"refused": str(error)})


if __name__ == "__main__":
    _main(sys.argv[1])
