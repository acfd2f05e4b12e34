"""Figures of the limit and of a promotion decision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import StrMethodFormatter
from numpy.typing import NDArray

from freqfilter.evaluation.limits import LimitEstimate, LimitEstimates
from freqfilter.evaluation.metrics import OVERALL
from freqfilter.evaluation.significance import PairedTest
from freqfilter.plots.style import BLUE, GREY, MAX_PANELS, ORANGE, format_hz, label_axes, new_figure, panels

SIDES = {"causal": (BLUE, "-", "samples so far"), "two_sided": (ORANGE, "--", "whole window")}


def limit_curves(scores: LimitEstimates, by_length: Mapping[int, LimitEstimates]) -> Figure:
    """Draw the limit over positions in the window and over window lengths.

    Args:
        scores: Limits for the current window length, which is marked.
        by_length: Limits by window length, ascending.
    """
    figure = new_figure(12, 5)
    positions, lengths = figure.subplots(1, 2)
    window_length = len(scores.causal.per_step)
    for side, (colour, style, label) in SIDES.items():
        limit: LimitEstimate = getattr(scores, side)
        sample = np.arange(1, window_length + 1)
        marker = "o" if window_length == 1 else None
        positions.plot(sample, limit.per_step, color=colour, linestyle=style, marker=marker, label=label)
        limits: list[LimitEstimate] = [getattr(estimates, side) for estimates in by_length.values()]
        lengths.errorbar(
            list(by_length),
            [limit.mse for limit in limits],
            yerr=[2 * limit.standard_error for limit in limits],
            color=colour,
            linestyle=style,
            marker="o",
            markersize=4,
            capsize=3,
            label=label,
        )
    label_axes(
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
    label_axes(
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
    """Draw the posterior mean and standard deviation of each component in one window.

    Args:
        mixture: (n_samples,).
        targets: The clean components, (n_components, n_samples), as ``means`` and ``variances``.
        means: Posterior means.
        variances: Posterior variances.
        frequencies_hz: Frequency of each component.
    """
    n_panels = min(len(targets), MAX_PANELS)
    figure = new_figure(12, 3.2 * -(-n_panels // 2) + 0.6)
    all_axes = panels(figure, n_panels)
    sample = np.arange(1, len(mixture) + 1)
    for number, axes in enumerate(all_axes):
        mean, spread = means[number], np.sqrt(variances[number])
        marker = "o" if len(mixture) == 1 else None
        axes.plot(sample, mixture, color=GREY, linewidth=1, marker=marker, label="mixture")
        axes.fill_between(sample, mean - spread, mean + spread, color=ORANGE, alpha=0.2, label="± 1 standard deviation")
        axes.plot(sample, targets[number], color=BLUE, linewidth=2, marker=marker, label="target")
        axes.plot(sample, mean, color=ORANGE, linewidth=2, linestyle="--", marker=marker, label="posterior mean")
        label_axes(axes, xlabel="sample in the window", ylabel="amplitude", title=format_hz(frequencies_hz[number]))
    figure.legend(*all_axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


COLOURS = {"candidate": BLUE, "champion": ORANGE, "limit": GREY}


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
    names = ["all" if name == OVERALL else name.replace("hz", " Hz") for name in components]
    bars.set_xticks(range(len(components)), names)
    label_axes(bars, xlabel="component", ylabel="mean squared error", title="on the same fresh realizations")
    figure.legend(*bars.get_legend_handles_labels(), loc="outside lower left", ncols=len(sides))
    interval.axvline(0, color=GREY, linewidth=1)
    if test is None:
        interval.text(0.5, 0.5, "no champion yet", transform=interval.transAxes, ha="center", va="center")
    else:
        low, middle, high = (100 * value for value in (test.low, test.difference, test.high))
        interval.errorbar([middle], [0], xerr=[[middle - low], [high - middle]], fmt="o", color=BLUE, capsize=6)
        if test.margin:
            interval.axvline(100 * test.margin, color=ORANGE, linestyle="--", label="margin")
            interval.legend()
        interval.margins(x=0.3)
    interval.set_yticks([])
    label_axes(interval, xlabel="candidate − champion (% of champion MSE)", ylabel="", title="left of zero: better")
    return figure
