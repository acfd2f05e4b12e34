"""Limits that have been computed before, by a digest of all that they follow from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs
import torch

from freqfilter.errors import UserError
from freqfilter.evaluation import limits
from freqfilter.evaluation.leaks import KnownLimit
from freqfilter.evaluation.limits import LimitMse, LimitScores
from freqfilter.evaluation.references import LIMIT
from freqfilter.evaluation.references import limits as limits_of
from freqfilter.evaluation.scores import OVERALL, compare
from freqfilter.files import replacing
from freqfilter.params import Params
from freqfilter.signals.model import SignalModel
from freqfilter.signals.windows import CutWindows, WindowSet

VERSION = 3  # of the computation; whatever changes its results raises it


def expected(model: SignalModel, *, window_length: int, work: float = limits.MOST_WORK) -> LimitScores:
    """``limits.expected``, computed once for a signal model and a window length."""
    facts = {"model": asdict(model), "window_length": window_length, "work": work}
    return _once(facts, lambda: limits.expected(model, window_length=window_length, work=work))


def of_windows(model: SignalModel, windows: CutWindows) -> LimitScores:
    """``limits.of_windows``, computed once for a signal model and its windows."""
    facts = {"model": asdict(model), "windows": windows.digest()}
    return _once(facts, lambda: limits.of_windows(model, windows))


def on_validation(params: Params, validation: WindowSet) -> KnownLimit | None:
    """The limit on validation windows, for a filter like the one that is trained.

    Returns:
        None where nobody knows it: the signal model is unknown, the signal too long, or the windows do not cover the
        starts evenly, so that those which the filter has to expect are others.
    """
    if not (known := limits_of(params)) or params.data.split == "blocked":
        return None
    if isinstance(validation, CutWindows) and params.data.split == "independent":
        scores = of_windows(SignalModel.from_params(params.signals), validation)
        of_side = scores.two_sided if params.model.bidirectional else scores.causal
        return KnownLimit(of_side.mse, tuple(of_side.per_block.tolist()))
    frequencies_hz = params.signals.frequencies_hz
    found = compare({LIMIT: known[LIMIT]}, validation, frequencies_hz=frequencies_hz, device=torch.device("cpu"))
    blocks = () if found.per_block is None else tuple(float(value) for value in found.per_block.to_numpy()[0])
    return KnownLimit(float(found.table["mse"][LIMIT, OVERALL]), blocks)


def expected_mse(params: Params) -> float | None:
    """The least error that a filter like the one that is trained can expect; None where nobody knows it."""
    if params.data.data_file is not None:
        return None
    scores = expected(SignalModel.from_params(params.signals), window_length=params.data.window_length)
    if scores.start_step > 1:  # of so long a signal it is known between two bounds; `freqfilter limit` states them
        return None
    return (scores.two_sided if params.model.bidirectional else scores.causal).mse


def _once(facts: dict[str, Any], compute: Callable[[], LimitScores]) -> LimitScores:
    digest = hashlib.sha256(json.dumps({"version": VERSION, **facts}, sort_keys=True).encode()).hexdigest()
    path = Path(platformdirs.user_cache_dir("freqfilter")) / "limits" / f"{digest}.json"
    if (found := _read(path)) is not None:
        return found
    scores = compute()
    try:
        with replacing(path) as file:
            file.write(json.dumps(asdict(scores), default=np.ndarray.tolist).encode())
    except UserError:
        pass  # a cache that cannot be written costs time, nothing else
    return scores


def _read(path: Path) -> LimitScores | None:
    """What stands in a file; None where it is missing or damaged."""
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        for side in ("causal", "two_sided"):
            of_side = {field.name: stored[side][field.name] for field in fields(LimitMse)}
            for name in ("per_frequency", "per_step", "per_block"):
                of_side[name] = np.array(of_side[name], dtype=np.float64)
            stored[side] = LimitMse(**of_side)
        return LimitScores(**stored)
    except (OSError, ValueError, KeyError, TypeError):
        return None
