"""Catalog of the figures that a run logs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
import torch
from matplotlib.figure import Figure

from freqfilter.config import SignalParams
from freqfilter.data.recordings import Recordings
from freqfilter.data.windows import Dataset, SlidingWindows
from freqfilter.evaluation.metrics import Comparison, Estimator
from freqfilter.plots import data, evaluation, recordings
from freqfilter.plots.evaluation import segment_estimates, window_estimates
from freqfilter.tracked_names import COMPONENTS, OVER_SAMPLES, PREDICTION

N_STARTS_SHOWN = 4


def data_figures(signals: SignalParams, windows: SlidingWindows) -> Iterator[tuple[str, Callable[[], Figure]]]:
    """Yield artifact path and drawing function of each figure of a realization and of its windows.

    The figures show the realization in time and frequency, and all windows or the first.
    """
    frequencies_hz, rate_hz = signals.frequencies_hz, signals.sample_rate_hz
    mixture = windows.mixtures[0].double().numpy()
    components = windows.components.double().numpy()
    time_s = np.arange(len(mixture)) / rate_hz
    clean = components.mean(axis=0)
    yield "visualizations/01_time.png", partial(data.time, time_s, mixture, clean, slowest_hz=min(frequencies_hz))
    for file, draw in (("02_spectrum", data.spectrum), ("03_spectrogram", data.spectrogram)):
        yield (
            f"visualizations/{file}.png",
            partial(draw, mixture, sample_rate_hz=rate_hz, frequencies_hz=frequencies_hz),
        )
    overlay = partial(data.overlay, time_s, components, mixture, frequencies_hz=frequencies_hz)
    yield "visualizations/04_components.png", overlay

    n_components, length = windows.n_components, windows.n_samples
    starts = torch.linspace(0, windows.n_starts - 1, min(N_STARTS_SHOWN, windows.n_starts)).round().long()
    positions = starts[:, None] * n_components + torch.arange(n_components)
    inputs, targets = windows.batch(positions.flatten())
    sample_windows = partial(
        data.windows,
        np.arange(length) / rate_hz,
        inputs[::n_components, :, 0].numpy(),
        targets[..., 0].numpy().reshape(len(starts), n_components, length),
        starts_s=(starts / rate_hz).tolist(),
        frequencies_hz=frequencies_hz,
    )
    yield "visualizations/05_windows.png", sample_windows
    structure = partial(data.structure, inputs[0].numpy(), targets[0].numpy(), frequencies_hz=frequencies_hz)
    yield "visualizations/06_structure.png", structure


def recording_figures(
    estimator: Estimator, test: Recordings, compared: Comparison, signals: SignalParams
) -> Iterator[tuple[str, Callable[[], Figure]]]:
    """Yield artifact path and drawing function of each figure of an estimator and the baselines on test recordings."""
    mixture, components, estimates = recordings.estimated_recording(estimator, test)
    yield (
        PREDICTION,
        partial(
            recordings.recording,
            mixture,
            components,
            estimates,
            frequencies_hz=signals.frequencies_hz,
            sample_rate_hz=signals.sample_rate_hz,
        ),
    )
    yield COMPONENTS, partial(evaluation.mse_of_components, compared.table)
    yield OVER_SAMPLES, partial(recordings.mse_over_samples, compared.per_step)


def evaluation_figures(
    estimator: Estimator,
    windows: Dataset,
    first_windows: SlidingWindows | None,
    compared: Comparison,
    *,
    frequencies_hz: Sequence[float],
    sample_rate_hz: float,
    device: torch.device,
) -> Iterator[tuple[str, Callable[[], Figure]]]:
    """Yield artifact path and drawing function of each figure of an estimator and the baselines on a test set.

    ``first_windows`` are the first windows of its realization; None for a data file, whose windows have no known order
    and hence no spectrum and no long segment.
    """
    estimates = window_estimates(estimator, windows, frequencies_hz=frequencies_hz, device=device)
    yield PREDICTION, partial(evaluation.prediction, estimates)
    yield "visualizations/09_errors.png", partial(evaluation.errors, estimates)
    yield "visualizations/10_scatter.png", partial(evaluation.scatter, estimates)
    if first_windows is not None:
        segment = segment_estimates(
            estimator, first_windows, frequencies_hz=frequencies_hz, sample_rate_hz=sample_rate_hz, device=device
        )
        yield "visualizations/11_spectrum.png", partial(evaluation.spectra, segment)
        yield "visualizations/12_long_stretch.png", partial(evaluation.long_segment, segment)
    yield COMPONENTS, partial(evaluation.mse_of_components, compared.table)
    yield "visualizations/14_mse_over_window.png", partial(evaluation.mse_over_window, compared.per_step)
