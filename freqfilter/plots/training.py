"""Figures of training: loss curves, learning-rate range tests, comparisons of runs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from freqfilter.evaluation.metrics import ZERO_MSE
from freqfilter.plots.style import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    colour,
    default_style,
    label_axes,
    line_style,
    log_scale,
    new_figure,
    verbatim,
)
from freqfilter.training.reports import EpochReport

HOLDOUT = "holdout: new data, not used for selection"


@default_style()
def training_loss(
    history: Sequence[EpochReport],
    *,
    loss: str = "mse",
    best_epoch: int | None = None,
    val_limit_mse: float | None = None,
) -> Figure:
    """Draw training and validation loss over epochs, 12 × 6 inches, with lines at best epoch and limit, if given.

    The axis is logarithmic, but linear if the loss can be negative (``snr``, dB). The holdout and the limit are mean
    squared errors, drawn if ``loss`` is ``mse``.
    """
    figure = new_figure(12, 6)
    axes = figure.subplots()
    curves = {"training": (BLUE, "train_loss"), "validation": (ORANGE, "val_loss")}
    if loss == "mse":  # val_mse is a mean over samples, as the limit beside it is
        curves |= {"validation": (ORANGE, "val_mse"), HOLDOUT: (GREEN, "holdout_mse")}
    lowest = math.inf
    for label, (line_colour, measure) in curves.items():
        points = {report.epoch: value for report in history if (value := getattr(report, measure)) is not None}
        if points:
            axes.plot(list(points), list(points.values()), label=label, color=line_colour, marker="o", markersize=3)
            lowest = min(lowest, *points.values())
    if best_epoch:
        axes.axvline(best_epoch, label=f"best validation, epoch {best_epoch}", color=GREY, linestyle=":")
    if val_limit_mse is not None and loss == "mse":
        lowest = min(lowest, _draw_limit(axes, val_limit_mse, "black"))
    if lowest > 0:
        log_scale(axes)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    label_axes(axes, "epoch", _loss_label(loss), "Training and validation loss", legend=True)
    return figure


@default_style()
def comparison(table: pd.DataFrame) -> Figure:
    """Draw the mean squared errors of runs, each with its best weights by validation.

    Args:
        table: A row for each run, with columns ``val_mse`` and, if they were measured, ``holdout_mse`` and
            ``test_mse``.
    """
    figure = new_figure(10, 1.6 + 0.32 * len(table))
    axes = figure.subplots()
    measures = {
        "val_mse": (ORANGE, "o", "validation"),
        "holdout_mse": (GREEN, "D", HOLDOUT),
        "test_mse": (BLUE, "s", "test"),
    }
    rows = range(len(table))
    for column, (marker_colour, marker, label) in measures.items():
        if column in table and table[column].notna().any():
            axes.plot(table[column].astype(float), rows, marker, color=marker_colour, label=label)
    axes.set_yticks(rows, [verbatim(str(name)) for name in table.index])
    axes.invert_yaxis()
    label_axes(axes, "mean squared error", "", "Each run with its best weights", legend=True)
    return figure


@default_style()
def learning_rate_range(
    learning_rates: NDArray[np.floating],
    losses: NDArray[np.floating],
    smoothed: NDArray[np.floating],
    *,
    suggested: float | None,
    current: float,
    loss: str,
) -> Figure:
    """Draw the loss over the learning rate in a range test, with the suggested and the current rate marked.

    ``learning_rates``, ``losses`` and ``smoothed`` losses have a value for each step, (n_steps,).
    """
    figure = new_figure(12, 6)
    axes = figure.subplots()
    axes.plot(learning_rates, losses, color=GREY, linewidth=0.8, label="loss of each step")
    axes.plot(learning_rates, smoothed, color=BLUE, linewidth=2, label="smoothed")
    if suggested is not None:
        label = f"suggestion: {suggested:.2g}, at the steepest descent"
        axes.axvline(suggested, color=ORANGE, linestyle="--", label=label)
    axes.axvline(current, color=GREEN, linestyle=":", label=f"learning_rate now: {current:.2g}")
    axes.set_xscale("log")
    low, high = float(smoothed.min()), float(smoothed[: int(smoothed.argmin()) + 1].max())
    height = max(high - low, 0.1 * abs(high), 1e-9)
    axes.set_ylim(low - 0.5 * height, high + 0.5 * height)  # a diverging end would flatten the rest
    label_axes(axes, "learning rate", _loss_label(loss), "Learning-rate range test", legend=True)
    return figure


def _loss_label(loss: str) -> str:
    if loss == "snr":
        return "loss: SNR, negative (dB)"
    name, *unit = loss.split(" ", maxsplit=1)
    return f"loss ({' '.join([name.upper(), *unit])})"


@dataclass(frozen=True)
class Curves:
    """Curves of a training.

    Attributes:
        validation: Validation MSE by epoch, if measured.
        holdout: Holdout MSE by epoch, if measured.
        limit_mse: The limit on the validation windows, if known.
        over_limit: Ratio of MSE to limit on fresh realizations, and the ends of its interval, if known.
    """

    validation: pd.Series | None = None
    holdout: pd.Series | None = None
    limit_mse: float | None = None
    over_limit: tuple[float, float, float] | None = None


@default_style()
def side_by_side(trainings: Mapping[str, Curves]) -> Figure:
    """Draw validation and holdout of trainings over epochs with the limits and, if known, ratios of error to limit."""
    has_ratios = any(curves.over_limit for curves in trainings.values())
    figure = new_figure(14 if has_ratios else 9, 5 + 0.15 * max(0, len(trainings) - 6))
    widths = (3, 2) if has_ratios else (1,)
    losses, *rest = figure.subplots(1, len(widths), width_ratios=widths, squeeze=False)[0]
    _draw_losses(losses, trainings)
    for axes in rest:
        _draw_ratios(axes, trainings)
    handles, labels = losses.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(labels)), fontsize="small")
    return figure


def _draw_losses(axes: Axes, trainings: Mapping[str, Curves]) -> None:
    limits: dict[str, int] = {}
    lowest = math.inf
    for number, (name, curves) in enumerate(trainings.items()):
        if curves.validation is not None:
            style = line_style(number) | {"marker": "o", "markersize": 3, "label": verbatim(name)}
            axes.plot(curves.validation.index, curves.validation, **style)
            lowest = min(lowest, curves.validation.min())
        if curves.holdout is not None:
            axes.plot(curves.holdout.index, curves.holdout, color=colour(number), linestyle=":", linewidth=1)
        if curves.limit_mse is not None:
            limits.setdefault(f"{curves.limit_mse:.4g}", number)
    if any(curves.holdout is not None for curves in trainings.values()):
        axes.plot([], [], color=GREY, linestyle=":", linewidth=1, label=HOLDOUT)
    for limit_mse, number in limits.items():
        # Each of several limits has the colour of its first training.
        _draw_limit(axes, float(limit_mse), colour(number) if len(limits) > 1 else "black")
    if lowest > 0:
        log_scale(axes)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    label_axes(axes, "epoch", "mean squared error", "Validation")


def _draw_limit(axes: Axes, limit_mse: float, line_colour: str) -> float:
    """Draw the limit and return it; a limit of zero, for which a logarithmic axis has no place, is only named."""
    if limit_mse < ZERO_MSE:
        axes.plot([], [], color=line_colour, linestyle="--", linewidth=1, label="limit on validation: zero")
        return math.inf
    label = f"limit on validation: {limit_mse:.4f}"
    axes.axhline(limit_mse, color=line_colour, linestyle="--", linewidth=1, label=label)
    return limit_mse


def _draw_ratios(axes: Axes, trainings: Mapping[str, Curves]) -> None:
    names: list[str] = []
    for number, (name, curves) in enumerate(trainings.items()):
        if curves.over_limit:
            ratio, low, high = curves.over_limit
            errors = [[ratio - low], [high - ratio]]
            axes.errorbar([ratio], [len(names)], xerr=errors, fmt="o", color=colour(number), capsize=4)
            names.append(verbatim(name))
    axes.axvline(1, color="black", linestyle="--", linewidth=1)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.margins(x=0.15)
    label_axes(axes, "ratio of mean squared error to limit", "", "On fresh realizations, 95 % intervals")
