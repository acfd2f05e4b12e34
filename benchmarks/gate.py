"""Errors of some filters and of the limit on many fresh realizations: ``python -m benchmarks.gate VERSION VERSION…``.

tests/evaluation/test_paired.py resamples them to measure the gate's error rates. Written to
tests/data/gate_errors.csv: a row for each realization, a column for the limit and each version.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from tqdm import tqdm

import freqfilter
from freqfilter.evaluation.heldout import score_realizations
from freqfilter.evaluation.limits import LIMIT, limit_estimators
from freqfilter.evaluation.metrics import OVERALL
from freqfilter.models.network import estimate

REALIZATIONS = 200
FIRST = 50_000_000
OUTPUT = Path(__file__).parents[1] / "tests" / "data" / "gate_errors.csv"


def main(versions: list[str]) -> None:
    """Score each version, and the limit, on the same windows."""
    filters = {f"version_{version}": freqfilter.load("frequency-filter", version=version) for version in versions}
    params = next(iter(filters.values())).params
    estimators = {name: partial(estimate, found.module) for name, found in filters.items()}
    estimators[LIMIT] = limit_estimators(params)[LIMIT]
    noise_seeds = tqdm(range(FIRST, FIRST + REALIZATIONS))
    scored = score_realizations(estimators, params, noise_seeds, device=torch.device("cpu"))
    rows = {seed: errors[OVERALL] for seed, errors in scored}
    pd.DataFrame(rows).T.rename_axis("noise_seed").round(8).to_csv(OUTPUT)


if __name__ == "__main__":
    main(sys.argv[1:])
