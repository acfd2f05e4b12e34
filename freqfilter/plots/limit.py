"""Figures of the limit and of a promotion decision."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import StrMethodFormatter

from freqfilter.evaluation.limits import LimitEstimate, LimitEstimates
from freqfilter.evaluation.significance import PairedTest
from freqfilter.plots.data import Samples
from freqfilter.plots.style import (
    BLUE,
    GREY,
    MAX_PANELS,
    ORANGE,
    add_legend,
    default_style,
    label_axes,
    new_figure,
    panels,
)

SIDES = {"causal": (BLUE, "-", "samples so far"), "two_sided": (ORANGE, "--", "whole window")}
COLOURS = {"candidate": BLUE, "champion": ORANGE, "limit": GREY}


@default_style()
def limit_curves(scores: LimitEstimates, by_length: Mapping[int, LimitEstimates]) -> Figure:
    """Draw the limit over positions in the window, and over ascending window lengths with that of ``scores`` marked."""
    figure = new_figure(12, 5)
    positions, lengths = figure.subplots(1, 2)
    window_length = len(scores.causal.per_step)
    for side, (colour, linestyle, label) in SIDES.items():
        style = {"color": colour, "linestyle": linestyle, "label": label}
        limit: LimitEstimate = getattr(scores, side)
        marker = "o" if window_length == 1 else None
        positions.plot(np.arange(1, window_length + 1), limit.per_step, marker=marker, **style)
        limits: list[LimitEstimate] = [getattr(estimates, side) for estimates in by_length.values()]
        errors = [2 * limit.standard_error for limit in limits]
        mse = [limit.mse for limit in limits]
        lengths.errorbar(list(by_length), mse, yerr=errors, marker="o", markersize=4, capsize=3, **style)
    title = f"Over the window of {window_length} samples"
    label_axes(positions, "sample in the window", "least mean squared error", title, legend=True)
    positions.set_ylim(bottom=0)
    lengths.axvline(window_length, color=GREY, linestyle=":", label=f"{window_length} samples")
    lengths.set_xscale("log")
    lengths.xaxis.set_major_formatter(StrMethodFormatter("{x:.0f}"))
    lengths.set_ylim(bottom=0)
    ylabel, title = "least mean squared error, mean over the window", "Over window lengths, ± 2 standard errors"
    label_axes(lengths, "window length (samples)", ylabel, title, legend=True)
    return figure


@default_style()
def posterior(
    mixture: Samples, targets: Samples, means: Samples, variances: Samples, *, frequencies_hz: Sequence[float]
) -> Figure:
    """Draw the posterior mean and standard deviation of each component in one window.

    Args:
        mixture: (n_samples,).
        targets: The clean components, (n_components, n_samples), as ``means`` and ``variances``.
        means: Posterior means.
        variances: Posterior variances.
        frequencies_hz: Frequency of each component.
    """
    figure, all_axes = panels(min(len(targets), MAX_PANELS))
    sample = np.arange(1, len(mixture) + 1)
    marker = "o" if len(mixture) == 1 else None
    for number, axes in enumerate(all_axes):
        mean, spread = means[number], np.sqrt(variances[number])
        axes.plot(sample, mixture, color=GREY, linewidth=1, marker=marker, label="mixture")
        axes.fill_between(sample, mean - spread, mean + spread, color=ORANGE, alpha=0.2, label="± 1 standard deviation")
        axes.plot(sample, targets[number], color=BLUE, linewidth=2, marker=marker, label="target")
        axes.plot(sample, mean, color=ORANGE, linewidth=2, linestyle="--", marker=marker, label="posterior mean")
        label_axes(axes, "sample in the window", "amplitude", f"{frequencies_hz[number]:g} Hz")
    add_legend(figure, all_axes[0], 4)
    return figure


@default_style()
def decision(errors: dict[str, pd.DataFrame], test: PairedTest | None) -> Figure:
    """Draw mean squared errors of each component and the interval of the difference from the champion.

    Args:
        errors: Errors of ``candidate`` and, if known, ``champion`` and ``limit``: a row for each realization, a
            column for each component.
        test: The paired comparison with the champion; None if there is no champion.
    """
    figure = new_figure(10, 4.2)
    bars, interval = figure.subplots(1, 2, width_ratios=(3, 2))
    components = list(errors["candidate"].columns)
    sides = [side for side in COLOURS if side in errors]
    width = 0.8 / len(sides)
    for number, side in enumerate(sides):
        positions = np.arange(len(components)) + (number - (len(sides) - 1) / 2) * width
        bars.bar(positions, errors[side].mean(), width, label=side, color=COLOURS[side])
    bars.set_xticks(range(len(components)), [name.replace("hz", " Hz").replace("_", " ") for name in components])
    label_axes(bars, "component", "mean squared error", "on the same fresh realizations")
    figure.legend(*bars.get_legend_handles_labels(), loc="outside lower left", ncols=len(sides))
    interval.axvline(0, color=GREY, linewidth=1)
    if test is None:
        interval.text(0.5, 0.5, "not compared with a champion", transform=interval.transAxes, ha="center", va="center")
    else:
        low, middle, high = (100 * value for value in (test.low, test.difference, test.high))
        known = math.isfinite(low) and math.isfinite(high)
        spans = [[middle - low], [high - middle]] if known else None
        interval.errorbar([middle], [0], xerr=spans, fmt="o", color=BLUE, capsize=6)
        if test.margin:
            interval.axvline(100 * test.margin, color=ORANGE, linestyle="--", label="margin")
            interval.legend()
        interval.margins(x=0.3)
    interval.set_yticks([])
    label_axes(interval, "candidate − champion (% of champion MSE)", "", "left of zero: better")
    return figure
