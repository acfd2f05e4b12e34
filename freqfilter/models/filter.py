"""Trained filter: prediction on windows, extraction from a signal, streaming."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from freqfilter.config import Params, restore
from freqfilter.data.windows import valid_selectors
from freqfilter.errors import UserError
from freqfilter.models.network import FrequencyFilterLSTM

CHUNK_SIZE = 4096  # windows in memory together
CHUNK_SAMPLES = 2**17  # of a recording
RATE_TOLERANCE = 1e-3  # relative difference up to which two sample rates count as equal

Array = NDArray[np.float32]


@dataclass(eq=False, repr=False)
class Filter:
    """A trained filter, loaded from a model version or from files.

    Attributes:
        uri: URI that it was loaded from.
        model_id: MLflow's id of the logged model; None if the store has none, as for files and copied versions.
        module: The network, in evaluation mode.
        facts: Metadata: ``frequencies_hz``, ``sample_rate_hz``, ``window_length``, ``limit_mse`` (the least expected
            error of any filter with the same view of the window; None if unknown), ``params``.
        estimate: Function from the network's inputs to its estimates.
        golden: Inputs and estimates at registration; None in old versions.
    """

    uri: str
    model_id: str | None
    module: FrequencyFilterLSTM
    facts: dict[str, Any]
    _: KW_ONLY
    estimate: Callable[[Array], Array]
    golden: tuple[Array, Array] | None

    @property
    def params(self) -> Params:
        """Parameters of the training run."""
        return restore(self.facts["params"])

    @property
    def pinned_uri(self) -> str:
        """URI of exactly this model, which no moved alias and no newer version changes."""
        return f"models:/{self.model_id}" if self.model_id else self.uri

    @property
    def of_recordings(self) -> bool:
        """Whether it is a filter of recordings, which carries a state, and not one of windows."""
        return not self.facts["network"].get("selector", True)

    def predict(self, x: ArrayLike) -> Array:
        """Estimate the selected component of windows, or all components of recordings.

        Args:
            x: (n_windows, n_samples, 1 + n_components): the mixture, then the one-hot selector, constant over the
                window. Any number of windows and samples; converted to float32. For a filter of recordings
                (n_recordings, n_samples).

        Returns:
            (n_windows, n_samples, 1), float32; of recordings (n_recordings, n_samples, n_components).

        Raises:
            UserError: If the shape is wrong, a value is NaN or Inf, or a selector is not one-hot and constant.
        """
        inputs = np.asarray(x, dtype=np.float32)
        n_features = 1 + len(self.facts["frequencies_hz"])
        if self.of_recordings:
            if inputs.ndim != 2 or inputs.shape[1] == 0:
                raise UserError(f"x has shape {inputs.shape}; pass the mixtures of recordings, (recordings, samples)")
        elif inputs.ndim != 3 or inputs.shape[2] != n_features or inputs.shape[1] == 0:
            raise UserError(
                f"x has shape {inputs.shape}; pass (windows, samples, {n_features}): the mixture, then "
                f"a one-hot selector for {self.facts['frequencies_hz']} Hz"
            )
        if not np.isfinite(inputs).all():
            raise UserError("x has NaN or Inf; remove or correct those samples")
        if not self.of_recordings and not (valid := valid_selectors(inputs)).all():
            raise UserError(
                f"x has a selector that is not one-hot and constant, in window {int(np.argmin(valid))}; set the column "
                f"of one frequency of {self.facts['frequencies_hz']} Hz to 1, the others to 0"
            )
        return self.estimate(inputs)

    def extract(self, signal: ArrayLike, frequency_hz: float, *, sample_rate_hz: float | None = None) -> Array:
        """Estimate a component of a signal of any length.

        Each sample is estimated from a window of the training length that ends at the sample or, for a bidirectional
        filter, is centred on it. Samples near the signal's ends have a shorter context. A filter of recordings
        estimates each sample from all samples up to it.

        Args:
            signal: The mixture, (n_samples,).
            frequency_hz: Frequency of the component.
            sample_rate_hz: Sample rate of the signal, checked against the filter's; None: not checked.

        Returns:
            (n_samples,), float32.

        Raises:
            UserError: If the filter was not trained on the frequency or the sample rate, or the signal is not a
                one-dimensional array of finite numbers.
        """
        mixture = np.asarray(signal, dtype=np.float32)
        if mixture.ndim != 1 or len(mixture) == 0:
            raise UserError(f"signal has shape {mixture.shape}; pass one row of samples, (n_samples,)")
        self._check_rate(sample_rate_hz)
        if self.of_recordings:
            stream = self.stream(frequency_hz)
            chunks = np.array_split(mixture, -(-len(mixture) // CHUNK_SAMPLES))
            if not np.isfinite(mixture).all():
                raise UserError("signal has NaN or Inf; remove or correct those samples")
            return np.concatenate([stream._estimate(chunk) for chunk in chunks])
        n_samples = min(self.facts["window_length"], len(mixture))
        windows = np.lib.stride_tricks.sliding_window_view(mixture, n_samples)
        position = n_samples // 2 if self.facts["network"]["bidirectional"] else n_samples - 1
        first = self._select(windows[:1], frequency_hz)[0]
        estimates = [first[:position]]
        for start in range(0, len(windows), CHUNK_SIZE):
            estimates.append(self._select(windows[start : start + CHUNK_SIZE], frequency_hz)[:, position])
        if position < n_samples - 1:
            estimates.append(self._select(windows[-1:], frequency_hz)[0, position + 1 :])
        return np.concatenate(estimates)

    def stream(self, frequency_hz: float, *, sample_rate_hz: float | None = None) -> Stream:
        """Return a ``Stream`` that estimates a component sample by sample.

        Raises:
            UserError: If the filter was not trained on the frequency or the sample rate.
        """
        self._check_rate(sample_rate_hz)
        self._selector(frequency_hz)
        return Stream(self, frequency_hz)

    def _select(self, windows: NDArray[np.float32], frequency_hz: float) -> Array:
        """Estimates (n_windows, n_samples) of mixtures (n_windows, n_samples)."""
        selector = self._selector(frequency_hz)
        inputs = np.empty((*windows.shape, 1 + len(selector)), dtype=np.float32)
        inputs[..., 0], inputs[..., 1:] = windows, selector
        return self.predict(inputs)[..., 0]

    def _selector(self, frequency_hz: float) -> Array:
        known = self.facts["frequencies_hz"]
        if frequency_hz not in known:
            choices = ", ".join(f"{frequency:g}" for frequency in known)
            raise UserError(f"frequency_hz={frequency_hz:g}: unknown; choose from {choices} Hz")
        return np.array([frequency == frequency_hz for frequency in known], dtype=np.float32)

    def _check_rate(self, sample_rate_hz: float | None) -> None:
        own = self.facts["sample_rate_hz"]
        if sample_rate_hz is not None and own is not None and abs(sample_rate_hz / own - 1) > RATE_TOLERANCE:
            trained = f"this filter was trained at {own:g} Hz"
            raise UserError(f"sample_rate_hz={sample_rate_hz:g}: {trained}; resample the signal")


class Stream:
    """Sample-by-sample estimates, each from the newest samples, at most a training window of them.

    A bidirectional filter too estimates the newest sample from past samples only. A filter of recordings carries its
    state, and estimates each sample from all samples so far.
    """

    def __init__(self, filter_: Filter, frequency_hz: float) -> None:
        self._filter = filter_
        self._frequency_hz = frequency_hz
        self._newest: deque[float] = deque(maxlen=filter_.facts["window_length"])
        self._state: Any = None

    def push(self, sample: float) -> float:
        """Add a sample and return the estimate at it.

        Raises:
            UserError: If the sample is NaN or Inf.
        """
        if not np.isfinite(sample):
            raise UserError("a sample is NaN or Inf; omit or correct it")
        if self._filter.of_recordings:
            return float(self._estimate(np.array([sample], dtype=np.float32))[0])
        self._newest.append(float(sample))
        window = np.array(self._newest, dtype=np.float32)[None]
        return float(self._filter._select(window, self._frequency_hz)[0, -1])

    def _estimate(self, samples: Array) -> Array:
        """Estimates of the next samples of a recording, (n_samples,)."""
        component = self._filter.facts["frequencies_hz"].index(self._frequency_hz)
        with torch.inference_mode():
            mixture = torch.from_numpy(samples)[None]
            estimates, self._state = self._filter.module.forward_with_state(mixture, self._state)
        return np.ascontiguousarray(estimates[0, :, component].numpy())
