"""Figures of the limit: how the least error depends on the position in the window and on its length."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import StrMethodFormatter

from freqfilter.evaluation.figures.style import BLUE, GREY, ORANGE, dress, new_figure
from freqfilter.evaluation.limits import LimitMse, LimitScores

SIDES = {"causal": (BLUE, "-", "samples so far"), "two_sided": (ORANGE, "--", "whole window")}


def limit_curves(scores: LimitScores, of_lengths: Mapping[int, LimitScores]) -> Figure:
    """The limit over the window's positions, and over window lengths with the one in use marked.

    Args:
        scores: Of the window length in use.
        of_lengths: Scores by window length, ascending.
    """
    figure = new_figure(12, 5)
    positions, lengths = figure.subplots(1, 2)
    window_length = len(scores.causal.per_step)
    for side, (colour, style, label) in SIDES.items():
        of_side: LimitMse = getattr(scores, side)
        sample = np.arange(1, window_length + 1)
        marker = "o" if window_length == 1 else None
        positions.plot(sample, of_side.per_step, color=colour, linestyle=style, marker=marker, label=label)
        found: list[LimitMse] = [getattr(of_length, side) for of_length in of_lengths.values()]
        lengths.errorbar(
            list(of_lengths),
            [mse.mse for mse in found],
            yerr=[2 * mse.standard_error for mse in found],
            color=colour,
            linestyle=style,
            marker="o",
            markersize=4,
            capsize=3,
            label=label,
        )
    dress(
        positions,
        xlabel="sample in the window",
        ylabel="least mean squared error",
        title=f"Over the window of {window_length} samples",
        legend=True,
    )
    positions.set_ylim(bottom=0)
    lengths.axvline(window_length, color=GREY, linestyle=":", label=f"{window_length} samples")
    lengths.set_xscale("log")
    lengths.xaxis.set_major_formatter(StrMethodFormatter("{x:.0f}"))
    lengths.set_ylim(bottom=0)
    dress(
        lengths,
        xlabel="window length (samples)",
        ylabel="least mean squared error, mean over the window",
        title="Over window lengths, ± 2 standard errors",
        legend=True,
    )
    return figure
