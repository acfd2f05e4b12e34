"""Figures of recordings: the limit, errors over the number of samples, and the estimates of a recording."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import StrMethodFormatter

from freqfilter.data.recordings import Recordings
from freqfilter.evaluation.limits import LIMIT, LimitEstimates
from freqfilter.evaluation.metrics import MODEL, Estimator
from freqfilter.plots.data import Samples
from freqfilter.plots.limit import SIDES
from freqfilter.plots.style import (
    BLUE,
    GREY,
    MAX_PANELS,
    ORANGE,
    add_legend,
    default_style,
    label_axes,
    line_style,
    log_scale,
    new_figure,
)

SECONDS_SHOWN = 3.0
POINTS = 60  # of a curve over the number of samples, evenly spaced on its logarithmic axis


@default_style()
def limit_over_samples(scores: LimitEstimates, by_component: Samples, *, frequencies_hz: Sequence[float]) -> Figure:
    """Draw the limit over the number of samples: of both views, and the causal one of each component.

    ``by_component`` are the expected squared errors of the causal filter, (n_samples, n_components).
    """
    figure = new_figure(12, 5)
    both, components = figure.subplots(1, 2, sharey=True)
    samples = np.arange(1, len(scores.causal.per_step) + 1)
    for side, (colour, linestyle, label) in SIDES.items():
        label = label.replace("window", "recording")
        both.plot(samples, getattr(scores, side).per_step, color=colour, linestyle=linestyle, label=label)
    for number, (frequency_hz, values) in enumerate(zip(frequencies_hz, by_component.T, strict=True)):
        if number < MAX_PANELS:
            components.plot(samples, values, label=f"{frequency_hz:g} Hz", **line_style(number))
    for axes, title in ((both, "Mean over the components"), (components, "Each component, from the samples so far")):
        _over_samples(axes)
        label_axes(axes, "samples", "least mean squared error", title, legend=True)
    return figure


@default_style()
def mse_over_samples(per_step: pd.DataFrame) -> Figure:
    """Draw the mean squared error (``Comparison.per_step``) of each estimator over the number of samples.

    Each point is the mean over the samples around it, since single samples of few recordings vary.
    """
    figure = new_figure(12, 6)
    axes = figure.subplots()
    n_samples = per_step.shape[1]
    edges = np.unique(np.geomspace(1, n_samples + 1, POINTS + 1).round().astype(int))
    centres = np.sqrt(edges[:-1] * (edges[1:] - 1))
    # The limit is drawn wider, so that it stays visible under a model that reaches it.
    emphasis = {LIMIT: {"linewidth": 5, "zorder": 2}, MODEL: {"linewidth": 2, "zorder": 4}}
    for number, (estimator, values) in enumerate(per_step.iterrows()):
        means = np.add.reduceat(values.to_numpy(), edges[:-1] - 1) / np.diff(edges)
        style = line_style(number) | emphasis.get(str(estimator), {"linewidth": 1.2, "zorder": 3})
        axes.plot(centres, means, label=str(estimator), **style)
    _over_samples(axes)
    label_axes(axes, "samples", "mean squared error", "Error on the test recordings")
    add_legend(figure, axes, 6)
    return figure


def _over_samples(axes: Axes) -> None:
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    log_scale(axes)


@default_style()
def recording(
    mixture: Samples, targets: Samples, estimates: Samples, *, frequencies_hz: Sequence[float], sample_rate_hz: float
) -> Figure:
    """Draw the start of a recording: its mixture, and each component with its estimate.

    Args:
        mixture: (n_samples,).
        targets: The clean components, (n_samples, n_components), as ``estimates``.
        estimates: Estimates of the components.
        frequencies_hz: Frequency of each component.
        sample_rate_hz: Samples per second.
    """
    n_panels, shown = min(len(frequencies_hz), MAX_PANELS), slice(0, round(SECONDS_SHOWN * sample_rate_hz))
    figure = new_figure(12, 2 * (n_panels + 1) + 0.6)
    first, *others = figure.subplots(n_panels + 1, 1, sharex=True, squeeze=False).flatten()
    time_s = np.arange(len(mixture[shown])) / sample_rate_hz
    first.plot(time_s, mixture[shown], color=GREY, linewidth=0.7)
    label_axes(first, "", "amplitude", "Mixture")
    for number, axes in enumerate(others):
        axes.plot(time_s, targets[shown, number], color=BLUE, linewidth=2, label="component (truth)")
        axes.plot(time_s, estimates[shown, number], color=ORANGE, linewidth=1.2, label="estimate")
        label_axes(axes, "", "amplitude", f"{frequencies_hz[number]:g} Hz")
    others[-1].set_xlabel("time (s)")
    add_legend(figure, others[0], 2)
    return figure


@torch.inference_mode()
def estimated_recording(estimator: Estimator, recordings: Recordings) -> tuple[Samples, Samples, Samples]:
    """Mixture (n_samples,), components and estimates (n_samples, n_components) of the first recording."""
    mixture, components = recordings.batch(torch.zeros(1, dtype=torch.int64))
    return mixture[0].numpy(), components[0].numpy(), estimator(mixture)[0].float().cpu().numpy()
