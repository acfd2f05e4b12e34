"""A trained filter: prediction on windows, extraction from a signal, streaming."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from freqfilter.config import Params, restore
from freqfilter.errors import UserError
from freqfilter.models.network import FrequencyFilterLSTM

CHUNK_SIZE = 4096  # windows of a signal in memory together
RATE_TOLERANCE = 1e-3  # two sample rates that differ by less are the same

Array = NDArray[np.float32]


class Filter:
    """A registered filter.

    Attributes:
        uri: Where it was loaded from.
        model_id: MLflow's id of the logged model; None where it was loaded from files.
        module: The network, in evaluation mode.
        facts: What is known of it: ``frequencies_hz``, ``sample_rate_hz``, ``window_length``, ``limit_mse`` (the least
            error that a filter of its kind can expect; None where nobody knows it), ``params``.
        golden: Inputs (n_windows, n_samples, 1 + n_components) and the estimates that it gave when it was registered;
            None of an old version.
    """

    def __init__(
        self,
        uri: str,
        model_id: str | None,
        module: FrequencyFilterLSTM,
        facts: dict[str, Any],
        *,
        estimate: Callable[[Array], Array],
        golden: tuple[Array, Array] | None,
    ) -> None:
        self.uri = uri
        self.model_id = model_id
        self.module = module
        self.facts = facts
        self.golden = golden
        self._estimate = estimate

    @property
    def params(self) -> Params:
        """The parameters of its training run."""
        return restore(self.facts["params"])

    @property
    def pinned_uri(self) -> str:
        """Where the very same model will be found, also when an alias or the newest version is another."""
        return f"models:/{self.model_id}" if self.model_id else self.uri

    def predict(self, x: ArrayLike) -> Array:
        """Estimate the selected component.

        Args:
            x: (n_windows, n_samples, 1 + n_components): the mixture, then the one-hot selector. Any number of
                windows and samples; computed in float32.

        Returns:
            (n_windows, n_samples, 1), float32.

        Raises:
            UserError: If the shape is another, or a value is NaN or Inf.
        """
        inputs = np.asarray(x, dtype=np.float32)
        n_features = 1 + len(self.facts["frequencies_hz"])
        if inputs.ndim != 3 or inputs.shape[2] != n_features or inputs.shape[1] == 0:
            raise UserError(
                f"x has shape {inputs.shape}; this filter takes (windows, samples, {n_features}): the mixture, then "
                f"a one-hot selector among {self.facts['frequencies_hz']} Hz"
            )
        if not np.isfinite(inputs).all():
            raise UserError("x has NaN or Inf; remove or repair those samples")
        return self._estimate(inputs)

    def extract(self, signal: ArrayLike, frequency_hz: float, *, sample_rate_hz: float | None = None) -> Array:
        """Estimate a component of a signal of any length.

        Each sample is estimated from a window as long as those that the filter was trained on: one that ends there
        or, of a bidirectional filter, one around it. Samples near the signal's ends have less to go by.

        Args:
            signal: The mixture, (n_samples,).
            frequency_hz: The component that is wanted.
            sample_rate_hz: Of the signal, to be compared with the filter's; None: it is the same.

        Returns:
            (n_samples,), float32.

        Raises:
            UserError: If the filter does not know the frequency, has another sample rate, or the signal is not a row
                of numbers.
        """
        mixture = np.asarray(signal, dtype=np.float32)
        if mixture.ndim != 1 or len(mixture) == 0:
            raise UserError(f"signal has shape {mixture.shape}; needed is a row of samples, (n_samples,)")
        self._check_rate(sample_rate_hz)
        n_samples = min(self.facts["window_length"], len(mixture))
        windows = np.lib.stride_tricks.sliding_window_view(mixture, n_samples)
        at = n_samples // 2 if self.facts["network"]["bidirectional"] else n_samples - 1
        first = self._select(windows[:1], frequency_hz)[0]
        found = [first[:at]]
        for start in range(0, len(windows), CHUNK_SIZE):
            found.append(self._select(windows[start : start + CHUNK_SIZE], frequency_hz)[:, at])
        if at < n_samples - 1:
            found.append(self._select(windows[-1:], frequency_hz)[0, at + 1 :])
        return np.concatenate(found)

    def stream(self, frequency_hz: float, *, sample_rate_hz: float | None = None) -> Stream:
        """Estimate a component as samples come in; see ``Stream``.

        Raises:
            UserError: If the filter does not know the frequency or has another sample rate.
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
            raise UserError(f"frequency_hz={frequency_hz:g}: this filter knows {', '.join(f'{f:g}' for f in known)} Hz")
        return np.array([frequency == frequency_hz for frequency in known], dtype=np.float32)

    def _check_rate(self, sample_rate_hz: float | None) -> None:
        own = self.facts["sample_rate_hz"]
        if sample_rate_hz is not None and own is not None and abs(sample_rate_hz / own - 1) > RATE_TOLERANCE:
            raise UserError(
                f"sample_rate_hz={sample_rate_hz:g}: this filter was trained at {own:g} Hz; resample the signal"
            )


class Stream:
    """Estimates as samples come in, each from the newest samples, as many as a window of training has.

    A bidirectional filter has no samples to come here, and estimates the newest one from those before.
    """

    def __init__(self, owner: Filter, frequency_hz: float) -> None:
        self._owner = owner
        self._frequency_hz = frequency_hz
        self._newest: deque[float] = deque(maxlen=owner.facts["window_length"])

    def push(self, sample: float) -> float:
        """The estimate at a sample that has just come in.

        Raises:
            UserError: If it is NaN or Inf.
        """
        if not np.isfinite(sample):
            raise UserError("a sample is NaN or Inf; leave it out or repair it")
        self._newest.append(float(sample))
        window = np.array(self._newest, dtype=np.float32)[None]
        return float(self._owner._select(window, self._frequency_hz)[0, -1])
