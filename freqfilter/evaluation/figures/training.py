"""Figures of training: losses over epochs, and runs side by side."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from freqfilter.evaluation.figures.style import BLUE, GREEN, GREY, ORANGE, dress, logarithmic, new_figure
from freqfilter.filters.reports import EpochReport


def training_loss(
    history: Sequence[EpochReport],
    *,
    loss: str = "mse",
    best_epoch: int | None = None,
    val_limit_mse: float | None = None,
) -> Figure:
    """Losses against epoch, 12 × 6 inches.

    The axis is logarithmic, but linear where a loss can be negative (``snr``, dB). The audit is a mean squared
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
    if loss == "mse":
        audit = [(report.epoch, report.audit_mse) for report in history]
        curves["audit: new noise, chooses nothing"] = (GREEN, audit)
    lowest = math.inf
    for label, (colour, points) in curves.items():
        measured = [(epoch, value) for epoch, value in points if value is not None]
        if measured:
            epochs, values = zip(*measured, strict=True)
            axes.plot(epochs, values, label=label, color=colour, marker="o", markersize=3)
            lowest = min(lowest, *values)
    if best_epoch:
        axes.axvline(best_epoch, label=f"best validation, epoch {best_epoch}", color=GREY, linestyle=":")
    if val_limit_mse and loss == "mse":
        label = f"limit on validation: {val_limit_mse:.4f}"
        axes.axhline(val_limit_mse, label=label, color="black", linestyle="--", linewidth=1)
        lowest = min(lowest, val_limit_mse)
    if lowest > 0:
        logarithmic(axes)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    dress(axes, xlabel="epoch", ylabel=_loss_label(loss), title="Training and validation loss", legend=True)
    return figure


def comparison(table: pd.DataFrame) -> Figure:
    """Runs side by side, each at the best weights by validation: the lower, the better.

    Args:
        table: A row for each run, with columns ``val_mse`` and, where there were audits or tests, ``audit_mse`` and
            ``test_mse``.
    """
    figure = new_figure(10, 1.6 + 0.32 * len(table))
    axes = figure.subplots()
    measures = {
        "val_mse": (ORANGE, "o", "validation"),
        "audit_mse": (GREEN, "D", "audit: new noise, chooses nothing"),
        "test_mse": (BLUE, "s", "test"),
    }
    places = range(len(table))
    for column, (colour, marker, label) in measures.items():
        if column in table and table[column].notna().any():
            axes.plot(table[column].astype(float), places, marker, color=colour, label=label)
    axes.set_yticks(places, [str(name) for name in table.index])
    axes.invert_yaxis()
    dress(axes, xlabel="mean squared error", ylabel="", title="Each run with its best weights", legend=True)
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
    dress(axes, xlabel="learning rate", ylabel=_loss_label(loss), title="Learning-rate range test", legend=True)
    return figure


def _loss_label(loss: str) -> str:
    return "loss: SNR, negative (dB)" if loss == "snr" else f"loss ({loss.upper()})"
