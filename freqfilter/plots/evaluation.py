"""Predictions of an estimator, and figures of them: estimates, errors, scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

from freqfilter.data.windows import Dataset, SlidingWindows
from freqfilter.evaluation.limits import LIMIT
from freqfilter.evaluation.metrics import CHUNK_SIZE, MODEL, Estimator
from freqfilter.plots.data import BAND, PERIODS_SHOWN, Samples, amplitude_spectrum
from freqfilter.plots.style import (
    BLUE,
    COLOURS,
    GREY,
    MAX_PANELS,
    ORANGE,
    add_legend,
    colour,
    default_style,
    label_axes,
    line_style,
    new_figure,
    panels,
)

N_POINTS_SHOWN = 4000  # of a scatter plot; more would overlap completely
QUANTILES = 400
MAX_AXIS_RATIO = 2.2  # upper end of an axis over the median error
HATCHES = ("", "//", "..")
MAX_WINDOWS_SHOWN = 4000  # fewer if they have more than MAX_SAMPLES_SHOWN samples in total
MAX_SAMPLES_SHOWN = 2_000_000

Array = NDArray[np.float32]


@default_style()
def window(*, time_s: Samples, mixture: Samples, target: Samples, estimate: Samples, title: str) -> Figure:
    """Draw the mixture, the clean component and its estimate, each (n_samples,), over time in seconds."""
    figure = new_figure(9, 4.5)
    axes = figure.subplots()
    axes.plot(time_s, mixture, label="mixture", color=GREY, linewidth=1)
    axes.plot(time_s, target, label="component (truth)", color=BLUE, linewidth=2)
    axes.plot(time_s, estimate, label="estimate", color=ORANGE, linewidth=2, linestyle="--")
    label_axes(axes, "time (s)", "amplitude", title, legend=True)
    return figure


@default_style()
def prediction(estimates: WindowEstimates) -> Figure:
    """Draw the estimate and its target, for each component in the window of median error."""
    components = np.unique(estimates.component)[:MAX_PANELS]
    figure, all_axes = panels(len(components))
    for axes, component in zip(all_axes, components, strict=True):
        indices = np.flatnonzero(estimates.component == component)
        mse = ((estimates.estimate - estimates.target)[indices] ** 2).mean(axis=1)
        median = np.argsort(mse)[len(mse) // 2]
        position = indices[median]
        axes.plot(estimates.mixture[position], color=GREY, linewidth=1, label="mixture")
        axes.plot(estimates.target[position], color=BLUE, linewidth=2, label="target")
        axes.plot(estimates.estimate[position], color=ORANGE, linewidth=2, linestyle="--", label="estimate")
        title = f"{estimates.frequencies_hz[component]:g} Hz, window of median error, MSE {mse[median]:.3g}"
        label_axes(axes, "sample in the window", "amplitude", title)
    add_legend(figure, all_axes[0], 3)
    return figure


@default_style()
def errors(estimates: WindowEstimates) -> Figure:
    """Draw the distribution of the errors with the normal density of equal mean and variance, and a Q–Q plot."""
    error = (estimates.estimate - estimates.target).astype(np.float64).flatten()
    mean, std = float(error.mean()), float(error.std())
    figure = new_figure(12, 5)
    histogram, quantiles = figure.subplots(1, 2)
    histogram.hist(error, bins=80, density=True, color=BLUE, alpha=0.6, label="errors")
    grid = np.linspace(error.min(), error.max(), 300)
    if std > 0:
        histogram.plot(grid, stats.norm.pdf(grid, mean, std), color=ORANGE, label="normal, same mean and variance")
    title = f"{error.size:,} errors: mean {mean:.3g}, standard deviation {std:.3g}"
    label_axes(histogram, "estimate − target", "probability density", title, legend=True)
    levels = (np.arange(QUANTILES) + 0.5) / QUANTILES
    expected = stats.norm.ppf(levels)
    quantiles.plot(expected, np.quantile(error, levels), ".", color=BLUE, markersize=4, label="errors")
    quantiles.plot(expected, mean + std * expected, color=ORANGE, label="normal")
    xlabel, ylabel = "quantile of the standard normal", "quantile of the errors"
    label_axes(quantiles, xlabel, ylabel, "Normal Q–Q plot", legend=True)
    return figure


@default_style()
def scatter(estimates: WindowEstimates) -> Figure:
    """Draw estimates over targets, a panel for each component; perfect estimates lie on the diagonal."""
    components = np.unique(estimates.component)[:MAX_PANELS]
    figure, all_axes = panels(len(components), width=10, row_height=4.6, legend_height=0)
    limit = 1.05 * max(float(np.abs(estimates.target).max()), float(np.abs(estimates.estimate).max()), 1e-9)
    for axes, component in zip(all_axes, components, strict=True):
        selected = estimates.component == component
        target, estimate = estimates.target[selected].flatten(), estimates.estimate[selected].flatten()
        shown = np.linspace(0, len(target) - 1, min(N_POINTS_SHOWN, len(target))).round().astype(int)
        axes.plot(target[shown], estimate[shown], ".", color=BLUE, markersize=3, alpha=0.3)
        axes.plot([-limit, limit], [-limit, limit], color=ORANGE, label="perfect")
        axes.set(xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal")
        title = f"{estimates.frequencies_hz[component]:g} Hz"
        label_axes(axes, "target", "estimate", title, legend=True)
    return figure


@default_style()
def spectra(segment: SegmentEstimates) -> Figure:
    """Draw amplitude spectra of each component and of its estimate in consecutive windows."""
    figure, all_axes = panels(min(len(segment.targets), MAX_PANELS))
    for number, axes in enumerate(all_axes):
        lines = ((segment.targets, BLUE, "-", "target"), (segment.estimates, ORANGE, "--", "estimate"))
        for samples, ink, style, label in lines:
            grid_hz, amplitudes = amplitude_spectrum(samples[number], segment.sample_rate_hz)
            shown = (grid_hz > 0) & (grid_hz <= BAND * max(segment.frequencies_hz))
            axes.semilogy(grid_hz[shown], np.maximum(amplitudes[shown], 1e-6), color=ink, linestyle=style, label=label)
        label_axes(axes, "frequency (Hz)", "amplitude", f"selected: {segment.frequencies_hz[number]:g} Hz")
        axes.set_ylim(bottom=1e-4)
    add_legend(figure, all_axes[0], 2)
    return figure


@default_style()
def long_segment(segment: SegmentEstimates) -> Figure:
    """Draw estimates of consecutive windows and their targets; the state of the filter is reset at each window."""
    n_panels = min(len(segment.targets), MAX_PANELS)
    shown = min(segment.targets.shape[1], round(PERIODS_SHOWN / min(segment.frequencies_hz) * segment.sample_rate_hz))
    figure = new_figure(12, 2.3 * n_panels + 0.6)
    all_axes = figure.subplots(n_panels, 1, sharex=True, squeeze=False).flatten()
    time_s = np.arange(shown) / segment.sample_rate_hz
    for number, axes in enumerate(all_axes):
        for border in range(0, shown, segment.window_length):
            axes.axvline(time_s[border], color=GREY, linewidth=0.5, alpha=0.5)
        axes.plot(time_s, segment.targets[number, :shown], color=BLUE, linewidth=2, label="target")
        axes.plot(time_s, segment.estimates[number, :shown], color=ORANGE, linewidth=1, label="estimate")
        title = f"{segment.frequencies_hz[number]:g} Hz, windows of {segment.window_length} samples"
        axes.set(ylabel="amplitude", title=title)
    all_axes[-1].set_xlabel("time (s)")
    add_legend(figure, all_axes[0], 2)
    return figure


@default_style()
def mse_of_components(scores: pd.DataFrame) -> Figure:
    """Draw the mean squared error (``Comparison.table``) of each estimator, overall and for each component."""
    components = list(scores.index.get_level_values("component").unique())[: MAX_PANELS + 1]
    estimators = list(scores.index.get_level_values("estimator").unique())
    figure = new_figure(12, 6)
    axes = figure.subplots()
    width, top = 0.85 / len(estimators), _top(scores["mse"])
    for number, estimator in enumerate(estimators):
        values = [float(scores.loc[(estimator, component), "mse"]) for component in components]
        positions = np.arange(len(components)) + (number - (len(estimators) - 1) / 2) * width
        hatch = HATCHES[number // len(COLOURS) % len(HATCHES)]
        bars = axes.bar(positions, values, 0.9 * width, color=colour(number), hatch=hatch, label=estimator)
        if estimator in (MODEL, LIMIT):
            axes.bar_label(bars, fmt="%.3f", padding=2, rotation=90, fontsize="small")
        for position, value in zip(positions, values, strict=True):
            if value > top:
                box = {"facecolor": "white", "edgecolor": "none", "pad": 1}
                axes.text(position, 0.98 * top, f"{value:.2g}", rotation=90, ha="center", va="top", size=8, bbox=box)
    axes.set_xticks(range(len(components)), [name.replace("hz", " Hz") for name in components])
    axes.set_ylim(0, top)
    label_axes(axes, "component", "mean squared error", "Error on the test set")
    add_legend(figure, axes, 6)
    return figure


@default_style()
def mse_over_window(per_step: pd.DataFrame) -> Figure:
    """Draw the mean squared error (``Comparison.per_step``) of each estimator at each position in the window."""
    figure = new_figure(12, 6)
    axes = figure.subplots()
    top = _top(pd.Series(per_step.to_numpy().flatten()))
    # The limit is drawn wider, so that it stays visible under a model that reaches it.
    emphasis = {LIMIT: {"linewidth": 5, "zorder": 2}, MODEL: {"linewidth": 2, "zorder": 4}}
    for number, (estimator, values) in enumerate(per_step.iterrows()):
        style = line_style(number) | {"marker": "o" if len(values) == 1 else None}
        style |= emphasis.get(str(estimator), {"linewidth": 1.2, "zorder": 3})
        label = str(estimator) if values.min() <= top else f"{estimator}: above {values.min():.2g}"
        axes.plot(values.index, values.to_numpy(), label=label, **style)
    axes.set_ylim(0, top)
    label_axes(axes, "sample in the window", "mean squared error", "Error on the test set")
    add_legend(figure, axes, 6)
    return figure


def _top(errors: pd.Series) -> float:
    """Upper end of an error axis; least squares in a short window may be off by orders of magnitude."""
    return 1.15 * float(min(errors.max(), MAX_AXIS_RATIO * errors.median()))


@dataclass(frozen=True)
class WindowEstimates:
    """Estimates of windows sampled from a set.

    Attributes:
        mixture: (n_windows, n_samples), as ``target`` and ``estimate``.
        component: Index of the selected component, (n_windows,).
        frequencies_hz: Frequency of each component.
    """

    mixture: Array
    component: NDArray[np.int64]
    target: Array
    estimate: Array
    frequencies_hz: Sequence[float]


@dataclass(frozen=True)
class SegmentEstimates:
    """Estimates of the consecutive windows of a realization.

    Attributes:
        targets: The clean components, (n_components, n_samples), as ``estimates``.
        sample_rate_hz: Sample rate of both.
        window_length: Samples of a window.
        frequencies_hz: Frequency of each component.
    """

    targets: Array
    estimates: Array
    sample_rate_hz: float
    window_length: int
    frequencies_hz: Sequence[float]


@torch.inference_mode()
def window_estimates(
    estimator: Estimator, windows: Dataset, *, frequencies_hz: Sequence[float], device: torch.device
) -> WindowEstimates:
    """Estimate at most ``MAX_WINDOWS_SHOWN`` windows, drawn uniformly with a fixed seed."""
    n_shown = min(MAX_WINDOWS_SHOWN, max(1, MAX_SAMPLES_SHOWN // windows.n_samples))
    positions = torch.arange(len(windows))
    if n_shown < len(windows):  # every n-th window could miss selectors, which alternate
        drawn = torch.randint(len(windows), (n_shown,), generator=torch.Generator().manual_seed(0))
        positions = torch.unique(drawn)
    return WindowEstimates(*_estimates(estimator, windows, positions, device), frequencies_hz)


@torch.inference_mode()
def segment_estimates(
    estimator: Estimator,
    windows: SlidingWindows,
    *,
    frequencies_hz: Sequence[float],
    sample_rate_hz: float,
    device: torch.device,
) -> SegmentEstimates:
    """Estimate every component of a realization in consecutive windows; ``windows`` are all of its windows."""
    length = windows.n_samples
    starts = torch.arange(0, windows.n_starts, length)
    positions = torch.arange(windows.n_components)[:, None] + starts * windows.n_components
    _, _, *both = _estimates(estimator, windows, positions.flatten(), device)
    targets, estimates = (values.reshape(windows.n_components, -1) for values in both)
    return SegmentEstimates(targets, estimates, sample_rate_hz, length, frequencies_hz)


def _estimates(
    estimator: Estimator, windows: Dataset, positions: Tensor, device: torch.device
) -> tuple[Array, NDArray[np.int64], Array, Array]:
    """Return mixtures (n_windows, n_samples), components (n_windows,), targets and estimates."""
    on_device = windows.to(device)
    parts = []
    for chunk in torch.split(positions, CHUNK_SIZE):
        inputs, truth = on_device.batch(chunk.to(device))
        tensors = (inputs[..., 0], inputs[:, 0, 1:].argmax(dim=1), truth[..., 0], estimator(inputs)[..., 0].float())
        parts.append([tensor.cpu() for tensor in tensors])
    mixtures, components, targets, estimates = (torch.cat(chunks).numpy() for chunks in zip(*parts, strict=True))
    return mixtures, components, targets, estimates
