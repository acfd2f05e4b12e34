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

from freqfilter.plots.style import BLUE, GREEN, GREY, ORANGE, colour, label_axes, line, log_scale, new_figure
from freqfilter.training.reports import EpochReport


def training_loss(
    history: Sequence[EpochReport],
    *,
    loss: str = "mse",
    best_epoch: int | None = None,
    val_limit_mse: float | None = None,
) -> Figure:
    """Losses against epoch, 12 × 6 inches.

    The axis is logarithmic, but linear where a loss can be negative (``snr``, dB). The holdout is a mean squared
    error, and drawn where the losses are one too.

    Args:
        history: A report for each epoch.
        loss: Name of the loss that training and validation are in.
        best_epoch: Marked by a line, if any.
        val_limit_mse: The limit on the validation windows, drawn where the losses are a mean squared error.
    """
    figure = new_figure(12, 6)
    axes = figure.subplots()
    curves: dict[str, tuple[str, list[tuple[int, float | None]]]] = {
        "training": (BLUE, [(report.epoch, report.train_loss) for report in history]),
        "validation": (ORANGE, [(report.epoch, report.val_loss) for report in history]),
    }
    if loss == "mse":  # a mean over samples, as the limit beside it is
        curves["validation"] = (ORANGE, [(report.epoch, report.val_mse) for report in history])
        holdout = [(report.epoch, report.holdout_mse) for report in history]
        curves["holdout: new noise, chooses nothing"] = (GREEN, holdout)
    lowest = math.inf
    for label, (line_colour, points) in curves.items():
        measured = [(epoch, value) for epoch, value in points if value is not None]
        if measured:
            epochs, values = zip(*measured, strict=True)
            axes.plot(epochs, values, label=label, color=line_colour, marker="o", markersize=3)
            lowest = min(lowest, *values)
    if best_epoch:
        axes.axvline(best_epoch, label=f"best validation, epoch {best_epoch}", color=GREY, linestyle=":")
    if val_limit_mse and loss == "mse":
        label = f"limit on validation: {val_limit_mse:.4f}"
        axes.axhline(val_limit_mse, label=label, color="black", linestyle="--", linewidth=1)
        lowest = min(lowest, val_limit_mse)
    if lowest > 0:
        log_scale(axes)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    label_axes(axes, xlabel="epoch", ylabel=_loss_label(loss), title="Training and validation loss", legend=True)
    return figure


def comparison(table: pd.DataFrame) -> Figure:
    """Runs side by side, each at the best weights by validation: the lower, the better.

    Args:
        table: A row for each run, with columns ``val_mse`` and, where they were measured, ``holdout_mse`` and
            ``test_mse``.
    """
    figure = new_figure(10, 1.6 + 0.32 * len(table))
    axes = figure.subplots()
    measures = {
        "val_mse": (ORANGE, "o", "validation"),
        "holdout_mse": (GREEN, "D", "holdout: new noise, chooses nothing"),
        "test_mse": (BLUE, "s", "test"),
    }
    places = range(len(table))
    for column, (marker_colour, marker, label) in measures.items():
        if column in table and table[column].notna().any():
            axes.plot(table[column].astype(float), places, marker, color=marker_colour, label=label)
    axes.set_yticks(places, [str(name) for name in table.index])
    axes.invert_yaxis()
    label_axes(axes, xlabel="mean squared error", ylabel="", title="Each run with its best weights", legend=True)
    return figure


def learning_rate_range(
    learning_rates: NDArray[np.floating],
    losses: NDArray[np.floating],
    smoothed: NDArray[np.floating],
    *,
    suggested: float | None,
    current: float,
    loss: str,
) -> Figure:
    """Loss against learning rate in a range test.

    Args:
        learning_rates: (n_steps,), as the losses.
        losses: The training loss of each step.
        smoothed: The same, smoothed.
        suggested: Marked by a line, if any.
        current: The learning rate that training has now, marked too.
        loss: Name of the loss.
    """
    figure = new_figure(12, 6)
    axes = figure.subplots()
    axes.plot(learning_rates, losses, color=GREY, linewidth=0.8, label="loss of each step")
    axes.plot(learning_rates, smoothed, color=BLUE, linewidth=2, label="smoothed")
    if suggested is not None:
        label = f"suggestion: {suggested:.2g}, where it falls most steeply"
        axes.axvline(suggested, color=ORANGE, linestyle="--", label=label)
    axes.axvline(current, color=GREEN, linestyle=":", label=f"learning_rate now: {current:.2g}")
    axes.set_xscale("log")
    low, high = float(smoothed.min()), float(smoothed[: int(smoothed.argmin()) + 1].max())
    height = max(high - low, 0.1 * abs(high), 1e-9)
    axes.set_ylim(low - 0.5 * height, high + 0.5 * height)  # where it blows up, the rest would be a flat line
    label_axes(axes, xlabel="learning rate", ylabel=_loss_label(loss), title="Learning-rate range test", legend=True)
    return figure


def _loss_label(loss: str) -> str:
    return "loss: SNR, negative (dB)" if loss == "snr" else f"loss ({loss.upper()})"


@dataclass(frozen=True)
class Curves:
    """What is drawn of a training.

    Attributes:
        validation: Mean squared error by epoch, if there was a validation.
        holdout: The same on a realization that chooses nothing, if there was one.
        limit_mse: The limit on the validation windows, if it is known.
        over_limit: Error over the limit on fresh realizations, and the ends of its interval, if they are known.
    """

    validation: pd.Series | None = None
    holdout: pd.Series | None = None
    limit_mse: float | None = None
    over_limit: tuple[float, float, float] | None = None


def side_by_side(trainings: Mapping[str, Curves]) -> Figure:
    """Validation and holdout over the epochs beside the limits and, where they are known, errors over the limit.

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
        if found.holdout is not None:
            axes.plot(found.holdout.index, found.holdout, color=colour(number), linestyle=":", linewidth=1)
        if found.limit_mse:
            limits.setdefault(f"{found.limit_mse:.4f}", number)
    if any(found.holdout is not None for found in trainings.values()):
        axes.plot([], [], color=GREY, linestyle=":", linewidth=1, label="holdout: new noise, chooses nothing")
    for limit_mse, number in limits.items():
        # Of several each has the colour of the first that it is the limit of.
        shade = colour(number) if len(limits) > 1 else "black"
        axes.axhline(
            float(limit_mse), color=shade, linestyle="--", linewidth=1, label=f"limit on validation: {limit_mse}"
        )
    if lowest > 0:
        log_scale(axes)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    label_axes(axes, xlabel="epoch", ylabel="mean squared error", title="Validation")


def _draw_distances(axes: Axes, measured: Mapping[str, tuple[float, float, float]], order: list[str]) -> None:
    for place, (name, (ratio, low, high)) in enumerate(measured.items()):
        errors = [[ratio - low], [high - ratio]]
        axes.errorbar([ratio], [place], xerr=errors, fmt="o", color=colour(order.index(name)), capsize=4)
    axes.axvline(1, color="black", linestyle="--", linewidth=1)
    axes.set_yticks(range(len(measured)), list(measured))
    axes.set_ylim(len(measured) - 0.5, -0.5)
    axes.margins(x=0.15)
    label_axes(
        axes, xlabel="mean squared error over the limit", ylabel="", title="On fresh realizations, 95 % intervals"
    )
