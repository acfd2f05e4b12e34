"""Figures of training: losses over epochs, and runs side by side."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter, StrMethodFormatter

from freqfilter.evaluation.figures.style import BLUE, GREEN, GREY, ORANGE, dress, new_figure
from freqfilter.filters.state import EpochReport


def training_loss(history: Sequence[EpochReport], *, loss: str = "mse", best_epoch: int | None = None) -> Figure:
    """Losses against epoch, 12 × 6 inches.

    The axis is logarithmic, but linear where a loss can be negative (``snr``, dB). The audit is a mean squared
    error, and drawn where the losses are one too.

    Args:
        history: A report for each epoch.
        loss: Name of the loss that training and validation are in.
        best_epoch: Marked by a line, if any.
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
    if lowest > 0:
        axes.set_yscale("log")
        plain = StrMethodFormatter("{x:.3g}")
        axes.yaxis.set_major_formatter(plain)
        bottom, top = axes.get_ylim()
        # Within a decade or so the minor ticks are all there is to read; over several they would overlap.
        axes.yaxis.set_minor_formatter(plain if top < 30 * bottom else NullFormatter())
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    ylabel = "loss: SNR, negative (dB)" if loss == "snr" else f"loss ({loss.upper()})"
    dress(axes, xlabel="epoch", ylabel=ylabel, title="Training and validation loss", legend=True)
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
