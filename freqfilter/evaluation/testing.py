"""The test: a network beside the baselines, on windows that nothing was trained on or chosen by."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import pandas as pd
import torch
from torch import nn

from freqfilter.evaluation.scores import MODEL, Extractor, compare
from freqfilter.filters.network import estimate
from freqfilter.signals.constants import Mean, zero
from freqfilter.signals.splits import Splits


def score_test_set(
    network: nn.Module, splits: Splits, *, frequencies_hz: Sequence[float], device: torch.device
) -> pd.DataFrame:
    """Score a network, in evaluation mode and on ``device``, beside zero and the training targets' mean.

    Returns:
        Rows (extractor, component), a column for each measure, as ``scores.compare`` gives them.
    """
    extractors: dict[str, Extractor] = {
        MODEL: partial(estimate, network),
        "zero": zero,
        "mean": Mean(splits.train(1)),
    }
    return compare(extractors, splits.test, frequencies_hz=frequencies_hz, device=device)
