"""The test: a network beside all references, on windows that nothing was trained on or chosen by."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn

from freqfilter.evaluation.references import references
from freqfilter.evaluation.scores import MODEL, Comparison, compare
from freqfilter.filters.network import estimate
from freqfilter.params import Params
from freqfilter.signals.splits import Splits


def score_test_set(network: nn.Module, splits: Splits, params: Params, *, device: torch.device) -> Comparison:
    """Score a network, in evaluation mode and on ``device``, beside what it is held against.

    Args:
        network: The network.
        splits: The data.
        params: The parameters that it was trained with.
        device: Where it computes.
    """
    extractors = {MODEL: partial(estimate, network)} | references(params, splits)
    return compare(extractors, splits.test, frequencies_hz=params.signals.frequencies_hz, device=device)
