"""Figures of signals and windows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy import signal

from freqfilter.plots.style import (
    BLUE,
    GREY,
    MAX_PANELS,
    ORANGE,
    add_legend,
    default_style,
    label_axes,
    line_style,
    new_figure,
    panels,
)

Samples = NDArray[np.floating]
PERIODS_SHOWN = 2  # of the slowest component, in figures of a segment
LEVELS_DB = 50  # dynamic range of a spectrogram
BAND = 4  # multiple of the highest component frequency, up to which spectra are drawn


def amplitude_spectrum(samples: Samples, sample_rate_hz: float) -> tuple[Samples, Samples]:
    """Return frequencies (Hz) and the amplitude of a sinusoid at each.

    Hann window; the peak of a sinusoid at a grid frequency is its amplitude.
    Source: SciPy, ``periodogram`` with ``scaling="spectrum"``.

    >>> time_s = np.arange(1000) / 1000
    >>> frequencies_hz, amplitudes = amplitude_spectrum(0.25 * np.sin(2 * np.pi * 5 * time_s), 1000)
    >>> float(frequencies_hz[amplitudes.argmax()]), round(float(amplitudes.max()), 6)
    (5.0, 0.25)
    """
    frequencies_hz, power = signal.periodogram(samples, sample_rate_hz, window="hann", scaling="spectrum")
    return frequencies_hz, np.sqrt(2 * power)


@default_style()
def time(time_s: Samples, mixture: Samples, clean: Samples, *, slowest_hz: float) -> Figure:
    """Draw a realization over time, and its beginning with and without noise, each (n_samples,)."""
    figure = new_figure(12, 7)
    whole, beginning = figure.subplots(2, 1)
    whole.plot(time_s, mixture, color=GREY, linewidth=0.5)
    label_axes(whole, "time (s)", "amplitude", f"Mixture: {len(mixture):,} samples")
    shown = time_s <= PERIODS_SHOWN / slowest_hz
    beginning.plot(time_s[shown], mixture[shown], color=GREY, linewidth=0.8, label="mixture, with noise")
    beginning.plot(time_s[shown], clean[shown], color=BLUE, linewidth=2, label="without noise")
    label_axes(beginning, "time (s)", "amplitude", "Its beginning", legend=True)
    return figure


@default_style()
def spectrum(mixture: Samples, *, sample_rate_hz: float, frequencies_hz: Sequence[float]) -> Figure:
    """Draw the amplitude spectrum of the mixture (n_samples,), with the components marked."""
    figure = new_figure(12, 6)
    axes = figure.subplots()
    grid_hz, amplitudes = amplitude_spectrum(mixture, sample_rate_hz)
    shown = (grid_hz > 0) & (grid_hz <= BAND * max(frequencies_hz))
    axes.semilogy(grid_hz[shown], amplitudes[shown], color=BLUE, linewidth=1)
    for frequency_hz in frequencies_hz:
        axes.axvline(frequency_hz, color=ORANGE, linestyle=":", linewidth=1.5)
    axes.plot([], [], color=ORANGE, linestyle=":", label="components")
    label_axes(axes, "frequency (Hz)", "amplitude", "Spectrum of the mixture", legend=True)
    return figure


@default_style()
def spectrogram(mixture: Samples, *, sample_rate_hz: float, frequencies_hz: Sequence[float]) -> Figure:
    """Draw the spectrogram of the mixture (n_samples,).

    Segments are long enough to resolve the two nearest components, but at most a fifth of the signal.
    """
    figure = new_figure(12, 6)
    axes = figure.subplots()
    nearest_hz = np.diff(sorted([0.0, *frequencies_hz])).min()
    length = max(8, min(round(4 * sample_rate_hz / nearest_hz), len(mixture) // 5))
    length = min(length, len(mixture))
    grid_hz, time_s, power = signal.spectrogram(
        mixture, sample_rate_hz, window="hann", nperseg=length, noverlap=length * 7 // 8, scaling="spectrum"
    )
    shown = grid_hz <= BAND * max(frequencies_hz)
    level_db = 10 * np.log10(np.maximum(power[shown], 1e-12))
    lowest_db = level_db.max() - LEVELS_DB
    mesh = axes.pcolormesh(time_s, grid_hz[shown], level_db, cmap="cividis", shading="nearest", vmin=lowest_db)
    figure.colorbar(mesh, ax=axes, label="power (dB)")
    title = f"Spectrogram of the mixture, segments of {length / sample_rate_hz:.2g} s"
    axes.set(xlabel="time (s)", ylabel="frequency (Hz)", title=title)
    return figure


@default_style()
def overlay(time_s: Samples, components: Samples, mixture: Samples, *, frequencies_hz: Sequence[float]) -> Figure:
    """Draw the clean components (n_components, n_samples) in one panel and the mixture (n_samples,) below."""
    figure = new_figure(12, 7)
    above, below = figure.subplots(2, 1, sharex=True)
    shown = time_s <= PERIODS_SHOWN / min(frequencies_hz)
    for number, (component, frequency_hz) in enumerate(zip(components, frequencies_hz, strict=True)):
        above.plot(time_s[shown], component[shown], label=f"{frequency_hz:g} Hz", **line_style(number))
    label_axes(above, "", "amplitude", "Components without noise")
    if len(frequencies_hz) <= 2 * MAX_PANELS:
        add_legend(figure, above, 8)
    below.plot(time_s[shown], mixture[shown], color=GREY, linewidth=0.8)
    label_axes(below, "time (s)", "amplitude", "Mixture: their mean with noise")
    return figure


@default_style()
def windows(
    time_s: Samples, mixtures: Samples, targets: Samples, *, starts_s: Sequence[float], frequencies_hz: Sequence[float]
) -> Figure:
    """Draw windows, each a panel: the mixture, and the target of each selector.

    Args:
        time_s: Time since the window's start, (n_samples,).
        mixtures: (n_windows, n_samples).
        targets: (n_windows, n_components, n_samples).
        starts_s: Start time of each window.
        frequencies_hz: Frequency of each component.
    """
    figure, all_axes = panels(len(mixtures))
    for axes, mixture, window_targets, start_s in zip(all_axes, mixtures, targets, starts_s, strict=True):
        axes.plot(time_s * 1e3, mixture, color=GREY, linewidth=1, label="mixture")
        for number, target in enumerate(window_targets[:MAX_PANELS]):
            label = f"target, {frequencies_hz[number]:g} Hz"
            axes.plot(time_s * 1e3, target, label=label, **line_style(number))
        label_axes(axes, "time in the window (ms)", "amplitude", f"window starting at {start_s:.3f} s")
    add_legend(figure, all_axes[0], 5)
    return figure


@default_style()
def structure(inputs: Samples, target: Samples, *, frequencies_hz: Sequence[float]) -> Figure:
    """Draw one window: its inputs (n_samples, 1 + n_components) in rows, its target (n_samples, 1) below."""
    n_samples, n_features = inputs.shape
    figure = new_figure(12, 5)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[n_features, 1.5])
    limit = float(max(1.0, np.abs(inputs).max(), np.abs(target).max()))
    style = {"aspect": "auto", "cmap": "PuOr", "vmin": -limit, "vmax": limit, "interpolation": "nearest"}
    image = above.imshow(inputs.T, **style)
    above.set_yticks(range(n_features), ["mixture", *(f"selector {f:g} Hz" for f in frequencies_hz)])
    above.set_title(f"Input of one window: {n_samples} samples × {n_features} features")
    below.imshow(target.T, **style)
    below.set_yticks([0], ["target"])
    below.set(title=f"Its target: {n_samples} samples × 1", xlabel="sample in the window")
    figure.colorbar(image, ax=[above, below], label="value")
    return figure
