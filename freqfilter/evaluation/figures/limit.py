"""Figures of the limit: what a window tells, and how the least error depends on position and length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import StrMethodFormatter
from numpy.typing import NDArray

from freqfilter.evaluation.figures.style import BLUE, GREY, MOST_PANELS, ORANGE, dress, hertz, new_figure, panels
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


def posterior(
    mixture: NDArray[np.floating],
    targets: NDArray[np.floating],
    means: NDArray[np.floating],
    variances: NDArray[np.floating],
    *,
    frequencies_hz: Sequence[float],
) -> Figure:
    """What one window tells of each component, sample by sample: the best estimate and the doubt that is left.

    Args:
        mixture: (n_samples,).
        targets: The clean components, (n_components, n_samples), as ``means`` and ``variances``.
        means: Of ``Posterior``, for this window.
        variances: Around them.
        frequencies_hz: Of each component.
    """
    n_panels = min(len(targets), MOST_PANELS)
    figure = new_figure(12, 3.2 * -(-n_panels // 2) + 0.6)
    every = panels(figure, n_panels)
    sample = np.arange(1, len(mixture) + 1)
    for number, axes in enumerate(every):
        mean, spread = means[number], np.sqrt(variances[number])
        marker = "o" if len(mixture) == 1 else None
        axes.plot(sample, mixture, color=GREY, linewidth=1, marker=marker, label="mixture")
        axes.fill_between(sample, mean - spread, mean + spread, color=ORANGE, alpha=0.2, label="± 1 standard deviation")
        axes.plot(sample, targets[number], color=BLUE, linewidth=2, marker=marker, label="target")
        axes.plot(sample, mean, color=ORANGE, linewidth=2, linestyle="--", marker=marker, label="best estimate")
        dress(axes, xlabel="sample in the window", ylabel="amplitude", title=hertz(frequencies_hz[number]))
    figure.legend(*every[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure
