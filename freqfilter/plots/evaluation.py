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

from freqfilter.data.windows import SlidingWindows, WindowDataset
from freqfilter.evaluation.limits import LIMIT
from freqfilter.evaluation.metrics import CHUNK_SIZE, MODEL, OVERALL, Estimator
from freqfilter.plots.data import BAND, PERIODS_SHOWN, amplitude_spectrum
from freqfilter.plots.style import (
    BLUE,
    COLOURS,
    GREY,
    MAX_PANELS,
    ORANGE,
    colour,
    format_hz,
    label_axes,
    line,
    new_figure,
    panels,
)

N_POINTS_SHOWN = 4000  # of a scatter plot; more would overlap completely
QUANTILES = 400
MAX_AXIS_RATIO = 2.2  # upper end of an axis over the median error
HATCHES = ("", "//", "..")


def window(
    *,
    time_s: NDArray[np.floating],
    mixture: NDArray[np.floating],
    target: NDArray[np.floating],
    estimate: NDArray[np.floating],
    title: str,
) -> Figure:
    """Draw the mixture, the clean component and its estimate, each (n_samples,), over time in seconds."""
    figure = new_figure(9, 4.5)
    axes = figure.subplots()
    axes.plot(time_s, mixture, label="mixture", color=GREY, linewidth=1)
    axes.plot(time_s, target, label="component (truth)", color=BLUE, linewidth=2)
    axes.plot(time_s, estimate, label="estimate", color=ORANGE, linewidth=2, linestyle="--")
    label_axes(axes, xlabel="time (s)", ylabel="amplitude", title=title, legend=True)
    return figure


def prediction(estimates: WindowEstimates) -> Figure:
    """Draw the estimate and its target, for each component in the window of median error."""
    components = np.unique(estimates.component)[:MAX_PANELS]
    figure = new_figure(12, 3.2 * -(-len(components) // 2) + 0.6)
    all_axes = panels(figure, len(components))
    for axes, component in zip(all_axes, components, strict=True):
        indices = np.flatnonzero(estimates.component == component)
        mse = ((estimates.estimate - estimates.target)[indices] ** 2).mean(axis=1)
        median = np.argsort(mse)[len(mse) // 2]
        position = indices[median]
        axes.plot(estimates.mixture[position], color=GREY, linewidth=1, label="mixture")
        axes.plot(estimates.target[position], color=BLUE, linewidth=2, label="target")
        axes.plot(estimates.estimate[position], color=ORANGE, linewidth=2, linestyle="--", label="estimate")
        title = f"{format_hz(estimates.frequencies_hz[component])}, window of median error, MSE {mse[median]:.3g}"
        label_axes(axes, xlabel="sample in the window", ylabel="amplitude", title=title)
    handles, labels = all_axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3)
    return figure


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
    label_axes(histogram, xlabel="estimate − target", ylabel="probability density", title=title, legend=True)
    levels = (np.arange(QUANTILES) + 0.5) / QUANTILES
    expected = stats.norm.ppf(levels)
    quantiles.plot(expected, np.quantile(error, levels), ".", color=BLUE, markersize=4, label="errors")
    quantiles.plot(expected, mean + std * expected, color=ORANGE, label="normal")
    label_axes(
        quantiles,
        xlabel="quantile of the standard normal",
        ylabel="quantile of the errors",
        title="Normal Q–Q plot",
        legend=True,
    )
    return figure


def scatter(estimates: WindowEstimates) -> Figure:
    """Draw estimates over targets, a panel for each component; perfect estimates lie on the diagonal."""
    components = np.unique(estimates.component)[:MAX_PANELS]
    figure = new_figure(10, 4.6 * -(-len(components) // 2))
    limit = 1.05 * max(float(np.abs(estimates.target).max()), float(np.abs(estimates.estimate).max()), 1e-9)
    for axes, component in zip(panels(figure, len(components)), components, strict=True):
        selected = estimates.component == component
        target, estimate = estimates.target[selected].flatten(), estimates.estimate[selected].flatten()
        shown = np.linspace(0, len(target) - 1, min(N_POINTS_SHOWN, len(target))).round().astype(int)
        axes.plot(target[shown], estimate[shown], ".", color=BLUE, markersize=3, alpha=0.3)
        axes.plot([-limit, limit], [-limit, limit], color=ORANGE, label="perfect")
        axes.set(xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal")
        title = format_hz(estimates.frequencies_hz[component])
        label_axes(axes, xlabel="target", ylabel="estimate", title=title, legend=True)
    return figure


def spectra(segment: SegmentEstimates) -> Figure:
    """Draw amplitude spectra of each component and of its estimate in consecutive windows."""
    n_panels = min(len(segment.targets), MAX_PANELS)
    figure = new_figure(12, 3.2 * -(-n_panels // 2) + 0.6)
    all_axes = panels(figure, n_panels)
    for number, axes in enumerate(all_axes):
        lines = ((segment.targets, BLUE, "-", "target"), (segment.estimates, ORANGE, "--", "estimate"))
        for samples, ink, style, label in lines:
            grid_hz, amplitudes = amplitude_spectrum(samples[number], segment.sample_rate_hz)
            shown = (grid_hz > 0) & (grid_hz <= BAND * max(segment.frequencies_hz))
            axes.semilogy(grid_hz[shown], np.maximum(amplitudes[shown], 1e-6), color=ink, linestyle=style, label=label)
        label_axes(
            axes,
            xlabel="frequency (Hz)",
            ylabel="amplitude",
            title=f"selected: {format_hz(segment.frequencies_hz[number])}",
        )
        axes.set_ylim(bottom=1e-4)
    handles, labels = all_axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2)
    return figure


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
        title = f"{format_hz(segment.frequencies_hz[number])}, windows of {segment.window_length} samples"
        axes.set(ylabel="amplitude", title=title)
    all_axes[-1].set_xlabel("time (s)")
    handles, labels = all_axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2)
    return figure


def mse_of_components(scores: pd.DataFrame) -> Figure:
    """Draw the mean squared error of the model and of each baseline, overall and for each component.

    Args:
        scores: ``Comparison.table``.
    """
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
    names = ["all" if name == OVERALL else name.replace("hz", " Hz") for name in components]
    axes.set_xticks(range(len(components)), names)
    axes.set_ylim(0, top)
    label_axes(axes, xlabel="component", ylabel="mean squared error", title="Error on the test set")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=6)
    return figure


def mse_over_window(per_step: pd.DataFrame) -> Figure:
    """Draw the mean squared error of the model and of each baseline at each position in the window.

    Args:
        per_step: ``Comparison.per_step``.
    """
    figure = new_figure(12, 6)
    axes = figure.subplots()
    top = _top(pd.Series(per_step.to_numpy().flatten()))
    for number, (estimator, values) in enumerate(per_step.iterrows()):
        marker = "o" if len(values) == 1 else None
        # The limit is drawn wider, so that it stays visible under a model that reaches it.
        width = {LIMIT: 5.0, MODEL: 2.0}.get(str(estimator), 1.2)
        axes.plot(
            values.index,
            values.to_numpy(),
            color=colour(number),
            linestyle=line(number),
            linewidth=width,
            zorder={LIMIT: 2, MODEL: 4}.get(str(estimator), 3),
            marker=marker,
            label=str(estimator) if values.min() <= top else f"{estimator}: above {values.min():.2g}",
        )
    axes.set_ylim(0, top)
    label_axes(axes, xlabel="sample in the window", ylabel="mean squared error", title="Error on the test set")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=6)
    return figure


def _top(errors: pd.Series) -> float:
    """Upper end of an error axis; least squares in a short window may be off by orders of magnitude."""
    return 1.15 * float(min(errors.max(), MAX_AXIS_RATIO * errors.median()))


MAX_WINDOWS_SHOWN = 4000  # fewer if they have more than MAX_SAMPLES_SHOWN samples in total
MAX_SAMPLES_SHOWN = 2_000_000

Array = NDArray[np.float32]


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
    estimator: Estimator, windows: WindowDataset, *, frequencies_hz: Sequence[float], device: torch.device
) -> WindowEstimates:
    """Estimate at most ``MAX_WINDOWS_SHOWN`` windows, drawn uniformly with a fixed seed."""
    n_shown = min(MAX_WINDOWS_SHOWN, max(1, MAX_SAMPLES_SHOWN // windows.n_samples))
    positions = torch.arange(len(windows))
    if n_shown < len(windows):  # every n-th window could miss selectors, which alternate
        drawn = torch.randint(len(windows), (n_shown,), generator=torch.Generator().manual_seed(0))
        positions = torch.unique(drawn)
    mixture, component, target, estimate = _estimates(estimator, windows, positions, device)
    return WindowEstimates(mixture.numpy(), component.numpy(), target.numpy(), estimate.numpy(), frequencies_hz)


@torch.inference_mode()
def segment_estimates(
    estimator: Estimator,
    windows: SlidingWindows,
    *,
    frequencies_hz: Sequence[float],
    sample_rate_hz: float,
    device: torch.device,
) -> SegmentEstimates:
    """Estimate every component of a realization in consecutive windows.

    Args:
        estimator: The estimator.
        windows: All windows of the realization.
        frequencies_hz: Frequency of each component.
        sample_rate_hz: Sample rate of the realization.
        device: Device of the estimator.
    """
    length = windows.n_samples
    starts = torch.arange(0, windows.n_starts, length)
    targets, estimates = [], []
    for component in range(windows.n_components):
        _, _, target, estimate = _estimates(estimator, windows, starts * windows.n_components + component, device)
        targets.append(target.flatten().numpy())
        estimates.append(estimate.flatten().numpy())
    return SegmentEstimates(np.stack(targets), np.stack(estimates), sample_rate_hz, length, frequencies_hz)


def _estimates(
    estimator: Estimator, windows: WindowDataset, positions: Tensor, device: torch.device
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return mixtures, targets and estimates (n_windows, n_samples) and components (n_windows,), on the CPU."""
    on_device = windows.to(device)
    parts = []
    for chunk in torch.split(positions, CHUNK_SIZE):
        inputs, targets = on_device.batch(chunk.to(device))
        tensors = (inputs[..., 0], inputs[:, 0, 1:].argmax(dim=1), targets[..., 0], estimator(inputs)[..., 0].float())
        parts.append([tensor.cpu() for tensor in tensors])
    mixtures, components, targets, estimates = (torch.cat(chunks) for chunks in zip(*parts, strict=True))
    return mixtures, components, targets, estimates
