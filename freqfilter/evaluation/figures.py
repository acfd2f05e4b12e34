"""Figures: pure functions from data to a Matplotlib figure."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter, StrMethodFormatter
from numpy.typing import NDArray

from freqfilter.filters.state import EpochReport

# Okabe and Ito, "Color Universal Design", 2008: told apart by colour-blind readers too.
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#7F7F7F"


def training_loss(history: Sequence[EpochReport], *, loss: str = "mse", best_epoch: int | None = None) -> Figure:
    """Losses against epoch, 12 × 6 inches.

    The axis is logarithmic, but linear where a loss can be negative (``snr``, dB). The audit is a mean squared
    error, and drawn where the losses are one too.

    Args:
        history: A report for each epoch.
        loss: Name of the loss that training and validation are in.
        best_epoch: Marked by a line, if any.
    """
    figure = Figure(figsize=(12, 6), layout="constrained")
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
    axes.set(
        xlabel="epoch",
        ylabel="loss: SNR, negative (dB)" if loss == "snr" else f"loss ({loss.upper()})",
        title="Training and validation loss",
    )
    axes.grid(visible=True, which="both", alpha=0.3)
    axes.legend()
    return figure


def window(
    *,
    time_s: NDArray[np.floating],
    mixture: NDArray[np.floating],
    target: NDArray[np.floating],
    estimate: NDArray[np.floating],
    title: str,
) -> Figure:
    """One window: the mixture, the clean component and its estimate, each (n_samples,), against time in seconds."""
    figure = Figure(figsize=(9, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.plot(time_s, mixture, label="mixture", color=GREY, linewidth=1)
    axes.plot(time_s, target, label="component (truth)", color=BLUE, linewidth=2)
    axes.plot(time_s, estimate, label="estimate", color=ORANGE, linewidth=2, linestyle="--")
    axes.set(xlabel="time (s)", ylabel="amplitude", title=title)
    axes.grid(visible=True, alpha=0.3)
    axes.legend()
    return figure
