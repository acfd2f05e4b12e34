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

N_POINTS_SHOWN = 4000  # of a scatter plot; more would be one blot
QUANTILES = 400
OFF_SCALE = 2.2  # times the median of all errors shown
HATCHES = ("", "//", "..")


def window(
    *,
    time_s: NDArray[np.floating],
    mixture: NDArray[np.floating],
    target: NDArray[np.floating],
    estimate: NDArray[np.floating],
    title: str,
) -> Figure:
    """One window: the mixture, the clean component and its estimate, each (n_samples,), against time in seconds."""
    figure = new_figure(9, 4.5)
    axes = figure.subplots()
    axes.plot(time_s, mixture, label="mixture", color=GREY, linewidth=1)
    axes.plot(time_s, target, label="component (truth)", color=BLUE, linewidth=2)
    axes.plot(time_s, estimate, label="estimate", color=ORANGE, linewidth=2, linestyle="--")
    label_axes(axes, xlabel="time (s)", ylabel="amplitude", title=title, legend=True)
    return figure


def prediction(found: WindowEstimates) -> Figure:
    """The estimate over its target, for each component the window whose error is the median: a typical one."""
    components = np.unique(found.component)[:MAX_PANELS]
    figure = new_figure(12, 3.2 * -(-len(components) // 2) + 0.6)
    every = panels(figure, len(components))
    for axes, component in zip(every, components, strict=True):
        of_component = np.flatnonzero(found.component == component)
        mse = ((found.estimate - found.target)[of_component] ** 2).mean(axis=1)
        middle = np.argsort(mse)[len(mse) // 2]
        chosen = of_component[middle]
        axes.plot(found.mixture[chosen], color=GREY, linewidth=1, label="mixture")
        axes.plot(found.target[chosen], color=BLUE, linewidth=2, label="target")
        axes.plot(found.estimate[chosen], color=ORANGE, linewidth=2, linestyle="--", label="estimate")
        title = f"{format_hz(found.frequencies_hz[component])}, window of median error, MSE {mse[middle]:.3g}"
        label_axes(axes, xlabel="sample in the window", ylabel="amplitude", title=title)
    handles, labels = every[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3)
    return figure


def errors(found: WindowEstimates) -> Figure:
    """Distribution of the errors beside the normal one of the same mean and spread, and Q–Q against it."""
    error = (found.estimate - found.target).astype(np.float64).flatten()
    mean, std = float(error.mean()), float(error.std())
    figure = new_figure(12, 5)
    histogram, quantiles = figure.subplots(1, 2)
    histogram.hist(error, bins=80, density=True, color=BLUE, alpha=0.6, label="errors")
    grid = np.linspace(error.min(), error.max(), 300)
    if std > 0:
        histogram.plot(grid, stats.norm.pdf(grid, mean, std), color=ORANGE, label="normal, same mean and spread")
    title = f"{error.size:,} errors: mean {mean:.3g}, standard deviation {std:.3g}"
    label_axes(histogram, xlabel="estimate − target", ylabel="probability density", title=title, legend=True)
    levels = (np.arange(QUANTILES) + 0.5) / QUANTILES
    expected = stats.norm.ppf(levels)
    quantiles.plot(expected, np.quantile(error, levels), ".", color=BLUE, markersize=4, label="errors")
    quantiles.plot(expected, mean + std * expected, color=ORANGE, label="were they normal")
    label_axes(
        quantiles,
        xlabel="quantile of the standard normal",
        ylabel="quantile of the errors",
        title="Q–Q: tails off the line are heavier or lighter than normal",
        legend=True,
    )
    return figure


def scatter(found: WindowEstimates) -> Figure:
    """Estimate against target, a panel for each component; a perfect filter lies on the diagonal."""
    components = np.unique(found.component)[:MAX_PANELS]
    figure = new_figure(10, 4.6 * -(-len(components) // 2))
    limit = 1.05 * max(float(np.abs(found.target).max()), float(np.abs(found.estimate).max()), 1e-9)
    for axes, component in zip(panels(figure, len(components)), components, strict=True):
        target, estimate = (a[found.component == component].flatten() for a in (found.target, found.estimate))
        shown = np.linspace(0, len(target) - 1, min(N_POINTS_SHOWN, len(target))).round().astype(int)
        axes.plot(target[shown], estimate[shown], ".", color=BLUE, markersize=3, alpha=0.3)
        axes.plot([-limit, limit], [-limit, limit], color=ORANGE, label="perfect")
        axes.set(xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal")
        title = format_hz(found.frequencies_hz[component])
        label_axes(axes, xlabel="target", ylabel="estimate", title=title, legend=True)
    return figure


def spectra(segment: SegmentEstimates) -> Figure:
    """Amplitude spectra of each component and of its estimate, windows one after another."""
    n_panels = min(len(segment.targets), MAX_PANELS)
    figure = new_figure(12, 3.2 * -(-n_panels // 2) + 0.6)
    every = panels(figure, n_panels)
    for number, axes in enumerate(every):
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
    handles, labels = every[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2)
    return figure


def long_segment(segment: SegmentEstimates) -> Figure:
    """Estimates of windows one after another beside the truth; each window begins anew, with nothing remembered."""
    n_panels = min(len(segment.targets), MAX_PANELS)
    shown = min(segment.targets.shape[1], round(PERIODS_SHOWN / min(segment.frequencies_hz) * segment.sample_rate_hz))
    figure = new_figure(12, 2.3 * n_panels + 0.6)
    every = figure.subplots(n_panels, 1, sharex=True, squeeze=False).flatten()
    time_s = np.arange(shown) / segment.sample_rate_hz
    for number, axes in enumerate(every):
        for border in range(0, shown, segment.window_length):
            axes.axvline(time_s[border], color=GREY, linewidth=0.5, alpha=0.5)
        axes.plot(time_s, segment.targets[number, :shown], color=BLUE, linewidth=2, label="target")
        axes.plot(time_s, segment.estimates[number, :shown], color=ORANGE, linewidth=1, label="estimate")
        title = f"{format_hz(segment.frequencies_hz[number])}, windows of {segment.window_length} samples"
        axes.set(ylabel="amplitude", title=title)
    every[-1].set_xlabel("time (s)")
    handles, labels = every[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2)
    return figure


def mse_of_components(scores: pd.DataFrame) -> Figure:
    """Mean squared error of the model and of each reference, overall and for each component.

    Args:
        scores: ``Comparison.table``.
    """
    components = list(scores.index.get_level_values("component").unique())[: MAX_PANELS + 1]
    extractors = list(scores.index.get_level_values("extractor").unique())
    figure = new_figure(12, 6)
    axes = figure.subplots()
    width, top = 0.85 / len(extractors), _top(scores["mse"])
    for number, extractor in enumerate(extractors):
        values = [float(scores.loc[(extractor, component), "mse"]) for component in components]
        places = np.arange(len(components)) + (number - (len(extractors) - 1) / 2) * width
        hatch = HATCHES[number // len(COLOURS) % len(HATCHES)]
        bars = axes.bar(places, values, 0.9 * width, color=colour(number), hatch=hatch, label=extractor)
        if extractor in (MODEL, LIMIT):
            axes.bar_label(bars, fmt="%.3f", padding=2, rotation=90, fontsize="small")
        for place, value in zip(places, values, strict=True):
            if value > top:
                inside = {"facecolor": "white", "edgecolor": "none", "pad": 1}
                axes.text(place, 0.98 * top, f"{value:.2g}", rotation=90, ha="center", va="top", size=8, bbox=inside)
    names = ["all" if name == OVERALL else name.replace("hz", " Hz") for name in components]
    axes.set_xticks(range(len(components)), names)
    axes.set_ylim(0, top)
    label_axes(axes, xlabel="component", ylabel="mean squared error", title="Error on the test set")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=6)
    return figure


def mse_over_window(per_step: pd.DataFrame) -> Figure:
    """Mean squared error at each position in the window, of the model and of each reference.

    Args:
        per_step: ``Comparison.per_step``.
    """
    figure = new_figure(12, 6)
    axes = figure.subplots()
    top = _top(pd.Series(per_step.to_numpy().flatten()))
    for number, (extractor, values) in enumerate(per_step.iterrows()):
        marker = "o" if len(values) == 1 else None
        # A model at its limit lies on it: the limit is a broad band, and the model a line in the middle of it.
        width = {LIMIT: 5.0, MODEL: 2.0}.get(str(extractor), 1.2)
        axes.plot(
            values.index,
            values.to_numpy(),
            color=colour(number),
            linestyle=line(number),
            linewidth=width,
            zorder={LIMIT: 2, MODEL: 4}.get(str(extractor), 3),
            marker=marker,
            label=str(extractor) if values.min() <= top else f"{extractor}: above {values.min():.2g}",
        )
    axes.set_ylim(0, top)
    label_axes(axes, xlabel="sample in the window", ylabel="mean squared error", title="Error on the test set")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=6)
    return figure


def _top(errors: pd.Series) -> float:
    """Where an axis of errors ends: least squares in a short window may be wrong by any number of powers of ten."""
    return 1.15 * float(min(errors.max(), OFF_SCALE * errors.median()))


MAX_WINDOWS_SHOWN = 4000  # fewer where they are so long that they would have more samples than this in all
MAX_SAMPLES_SHOWN = 2_000_000

Array = NDArray[np.float32]


@dataclass(frozen=True)
class WindowEstimates:
    """Windows spread over a set, with the answers to them.

    Attributes:
        mixture: (n_windows, n_samples), as ``target`` and ``estimate``.
        component: Number of the selected component, (n_windows,).
        frequencies_hz: Frequency of each component.
    """

    mixture: Array
    component: NDArray[np.int64]
    target: Array
    estimate: Array
    frequencies_hz: Sequence[float]


@dataclass(frozen=True)
class SegmentEstimates:
    """A realization, cut into windows that follow one another, and the answers to them.

    Attributes:
        targets: The clean components, (n_components, n_samples), as ``estimates``.
        sample_rate_hz: Of both.
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
    extractor: Estimator, windows: WindowDataset, *, frequencies_hz: Sequence[float], device: torch.device
) -> WindowEstimates:
    """Ask an extractor about a few thousand windows, drawn evenly but always the same ones."""
    n_shown = min(MAX_WINDOWS_SHOWN, max(1, MAX_SAMPLES_SHOWN // windows.n_samples))
    positions = torch.arange(len(windows))
    if n_shown < len(windows):  # not every n-th: the selectors take turns, and some might never be met
        drawn = torch.randint(len(windows), (n_shown,), generator=torch.Generator().manual_seed(0))
        positions = torch.unique(drawn)
    mixture, component, target, estimate = _estimates(extractor, windows, positions, device)
    return WindowEstimates(mixture.numpy(), component.numpy(), target.numpy(), estimate.numpy(), frequencies_hz)


@torch.inference_mode()
def segment_estimates(
    extractor: Estimator,
    windows: SlidingWindows,
    *,
    frequencies_hz: Sequence[float],
    sample_rate_hz: float,
    device: torch.device,
) -> SegmentEstimates:
    """Ask an extractor about every component of a realization.

    Args:
        extractor: What is asked.
        windows: All windows of the realization.
        frequencies_hz: Frequency of each component.
        sample_rate_hz: Of the realization.
        device: Where the extractor computes.
    """
    length = windows.n_samples
    starts = torch.arange(0, windows.n_starts, length)
    targets, estimates = [], []
    for component in range(windows.n_components):
        _, _, target, estimate = _estimates(extractor, windows, starts * windows.n_components + component, device)
        targets.append(target.flatten().numpy())
        estimates.append(estimate.flatten().numpy())
    return SegmentEstimates(np.stack(targets), np.stack(estimates), sample_rate_hz, length, frequencies_hz)


def _estimates(
    extractor: Estimator, windows: WindowDataset, positions: Tensor, device: torch.device
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Mixtures (n_windows, n_samples), components (n_windows,), targets and estimates like the mixtures; on the CPU."""
    there = windows.to(device)
    parts = []
    for chosen in torch.split(positions, CHUNK_SIZE):
        inputs, targets = there.batch(chosen.to(device))
        answers = (inputs[..., 0], inputs[:, 0, 1:].argmax(dim=1), targets[..., 0], extractor(inputs)[..., 0].float())
        parts.append([answer.cpu() for answer in answers])
    mixtures, components, targets, estimates = (torch.cat(of_kind) for of_kind in zip(*parts, strict=True))
    return mixtures, components, targets, estimates
