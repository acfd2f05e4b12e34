"""What a filter is held against: answers that ignore the mixture, the field's filters, and the limit."""

from __future__ import annotations

import torch

from freqfilter.evaluation.limits import MOST_STARTS
from freqfilter.evaluation.scores import Extractor
from freqfilter.params import Params
from freqfilter.signals.blind import Mean, Random, TargetMoments, zero
from freqfilter.signals.classical import band_pass, least_squares, linear_mmse
from freqfilter.signals.limit import Limit, LimitExtractor
from freqfilter.signals.model import SignalModel
from freqfilter.signals.splits import Splits

LIMIT = "limit"  # the least error for a filter that sees as much as the one that is judged


def references(params: Params, splits: Splits) -> dict[str, Extractor]:
    """Extractors by name, in the order of a table.

    The limit is there where the signal model is known and the realization is not too long for it. ``limit``,
    ``linear_mmse`` and ``band_pass`` see as much as the filter in question, causal or bidirectional; those that see
    more or less are named by their view.

    Args:
        params: The parameters of the filter that is judged.
        splits: Its data.
    """
    moments = TargetMoments.of(splits.train)
    blind: dict[str, Extractor] = {
        "zero": zero,
        "mean": Mean(moments),
        "random": Random(moments, torch.Generator().manual_seed(0)),
    }
    if params.data.data_file is not None:
        return blind
    model, n_samples = SignalModel.from_params(params.signals), params.data.window_length
    causal, other = not params.model.bidirectional, _other_view(params)
    classical: dict[str, Extractor] = {
        "linear_mmse": linear_mmse(model, n_samples=n_samples, causal=causal),
        f"linear_mmse_{other}": linear_mmse(model, n_samples=n_samples, causal=not causal),
        "band_pass": band_pass(model, n_samples=n_samples, zero_phase=not causal),
        f"band_pass_{other}": band_pass(model, n_samples=n_samples, zero_phase=causal),
        "least_squares": least_squares(model, n_samples=n_samples),
    }
    return limits(params) | classical | blind


def limits(params: Params) -> dict[str, Extractor]:
    """The limit, and that of the other view of the window; nothing where it is unknown or takes too long."""
    model, n_samples = SignalModel.from_params(params.signals), params.data.window_length
    if params.data.data_file is not None or model.n_samples - n_samples + 1 > MOST_STARTS:
        return {}
    limit = LimitExtractor(Limit.from_model(model, n_samples=n_samples), two_sided=params.model.bidirectional)
    return {LIMIT: limit, f"{LIMIT}_{_other_view(params)}": limit.other_side()}


def _other_view(params: Params) -> str:
    return "causal" if params.model.bidirectional else "two_sided"
