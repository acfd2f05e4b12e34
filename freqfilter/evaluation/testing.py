"""The test: a network beside the baselines, on windows that nothing was trained on or chosen by."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import pandas as pd
import torch
from torch import nn

from freqfilter.evaluation.scores import MODEL, Extractor, compare
from freqfilter.filters.network import estimate
from freqfilter.signals.blind import Mean, Random, TargetMoments, zero
from freqfilter.signals.splits import Splits


def score_test_set(
    network: nn.Module, splits: Splits, *, frequencies_hz: Sequence[float], device: torch.device
) -> pd.DataFrame:
    """Score a network, in evaluation mode and on ``device``, beside what looks at nothing of the mixture.

    Returns:
        Rows (extractor, component), a column for each measure, as ``scores.compare`` gives them.
    """
    moments = TargetMoments.of(splits.train(1))
    extractors: dict[str, Extractor] = {
        MODEL: partial(estimate, network),
        "zero": zero,
        "mean": Mean(moments),
        "random": Random(moments, torch.Generator().manual_seed(0)),
    }
    return compare(extractors, splits.test, frequencies_hz=frequencies_hz, device=device)
