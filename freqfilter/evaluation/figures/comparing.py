"""Several trainings in one figure: their curves beside the limit, and how far each ends from it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from freqfilter.evaluation.figures.style import GREY, colour, dress, line, logarithmic, new_figure


@dataclass(frozen=True)
class Curves:
    """What is drawn of a training.

    Attributes:
        validation: Mean squared error by epoch, if there was a validation.
        audit: The same on a realization that chooses nothing, if there was one.
        limit_mse: The limit on the validation windows, if it is known.
        over_limit: Error over the limit on fresh realizations, and the ends of its interval, if they are known.
    """

    validation: pd.Series | None = None
    audit: pd.Series | None = None
    limit_mse: float | None = None
    over_limit: tuple[float, float, float] | None = None


def side_by_side(trainings: Mapping[str, Curves]) -> Figure:
    """Validation and audit over the epochs beside the limits and, where they are known, errors over the limit.

    Args:
        trainings: By name.
    """
    measured = {name: found.over_limit for name, found in trainings.items() if found.over_limit}
    figure = new_figure(14 if measured else 9, 5 + 0.15 * max(0, len(trainings) - 6))
    losses, *rest = figure.subplots(1, 1 + bool(measured), width_ratios=(3, 2)[: 1 + bool(measured)], squeeze=False)[0]
    _draw_losses(losses, trainings)
    for axes in rest:
        _draw_distances(axes, measured, list(trainings))
    handles, labels = losses.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(labels)), fontsize="small")
    return figure


def _draw_losses(axes: Axes, trainings: Mapping[str, Curves]) -> None:
    limits: dict[str, int] = {}
    lowest = math.inf
    for number, (name, found) in enumerate(trainings.items()):
        if found.validation is not None:
            (drawn,) = axes.plot(found.validation.index, found.validation, marker="o", markersize=3, label=name)
            drawn.set(color=colour(number), linestyle=line(number))
            lowest = min(lowest, found.validation.min())
        if found.audit is not None:
            axes.plot(found.audit.index, found.audit, color=colour(number), linestyle=":", linewidth=1)
        if found.limit_mse:
            limits.setdefault(f"{found.limit_mse:.4f}", number)
    if any(found.audit is not None for found in trainings.values()):
        axes.plot([], [], color=GREY, linestyle=":", linewidth=1, label="audit: new noise, chooses nothing")
    for limit_mse, number in limits.items():
        # Of several each has the colour of the first that it is the limit of.
        shade = colour(number) if len(limits) > 1 else "black"
        axes.axhline(
            float(limit_mse), color=shade, linestyle="--", linewidth=1, label=f"limit on validation: {limit_mse}"
        )
    if lowest > 0:
        logarithmic(axes)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    dress(axes, xlabel="epoch", ylabel="mean squared error", title="Validation")


def _draw_distances(axes: Axes, measured: Mapping[str, tuple[float, float, float]], order: list[str]) -> None:
    for place, (name, (ratio, low, high)) in enumerate(measured.items()):
        errors = [[ratio - low], [high - ratio]]
        axes.errorbar([ratio], [place], xerr=errors, fmt="o", color=colour(order.index(name)), capsize=4)
    axes.axvline(1, color="black", linestyle="--", linewidth=1)
    axes.set_yticks(range(len(measured)), list(measured))
    axes.set_ylim(len(measured) - 0.5, -0.5)
    axes.margins(x=0.15)
    dress(axes, xlabel="mean squared error over the limit", ylabel="", title="On fresh realizations, 95 % intervals")
