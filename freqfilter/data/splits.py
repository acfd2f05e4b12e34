"""Training, validation, test and holdout windows or recordings."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Self, TypeVar

import numpy as np
import torch
from torch import Tensor

from freqfilter.config import DataParams, Params
from freqfilter.data import npz
from freqfilter.data.kalman import KalmanFilter
from freqfilter.data.posterior import posterior_mean
from freqfilter.data.recordings import RecordingModel, Recordings, seeded_recordings
from freqfilter.data.signal_model import (
    MAX_SAMPLES_IN_MEMORY,
    SignalModel,
    evenly_spaced_windows,
    first_windows,
    random_stream,
    realization_windows,
    segment_windows,
)
from freqfilter.data.windows import Dataset, SlidingWindows, TensorWindows, evenly_spaced
from freqfilter.errors import UserError

Windows = TypeVar("Windows", SlidingWindows, TensorWindows)

MAX_RECORDING = 100_000  # samples
MIN_LIMIT = 1e-6  # of the power: a loss weighted by the inverse of a smaller limit would be rounding
FIRST_SAMPLES = 100_000  # of the test realization, for figures


@dataclass(frozen=True)
class Splits:
    """The data of a run.

    Attributes:
        train: All training windows, without noise if it is drawn anew each epoch; of a signal longer than
            ``MAX_SAMPLES_IN_MEMORY``, as many as an epoch has, spread evenly.
        epoch: Function from the epoch, counted from 1, to its training windows: all of them or a random sample,
            augmented if so configured; or to its recordings.
        n_epoch: Number of training windows of an epoch.
        fresh_noise: Whether each window has its own noise, drawn anew each epoch.
        validation: Windows for the choice of the best epoch.
        test: Windows for the evaluation after training.
        first_windows: All windows of the beginning of the test realization; None with a data file.
        holdout: Windows that are used neither for training nor for any choice; None: no holdout.
    """

    train: Dataset
    epoch: Callable[[int], Dataset]
    n_epoch: int
    fresh_noise: bool
    validation: Dataset
    test: Dataset
    first_windows: SlidingWindows | None
    holdout: SlidingWindows | Recordings | None

    @classmethod
    def from_params(cls, params: Params) -> Self:
        """Generate the data, or read it from ``data_file``.

        Raises:
            UserError: If the data file is invalid, or a split leaves no training windows.
        """
        if params.data.data_file is not None:
            return cls._from_file(params.data.data_file, params)
        return cls._recordings(params) if params.of_recordings else cls._generated(params)

    @cached_property
    def digests(self) -> dict[str, str]:
        """SHA-256 of the data by purpose."""
        parts = {"train": self.train, "validation": self.validation, "test": self.test, "holdout": self.holdout}
        return {purpose: windows.digest() for purpose, windows in parts.items() if windows is not None}

    def epoch_holdout(self, n_windows: int) -> Dataset | None:
        """Holdout of an evaluation during training: all recordings, or as many windows, spread evenly."""
        return evenly_spaced(self.holdout, n_windows) if isinstance(self.holdout, SlidingWindows) else self.holdout

    @classmethod
    def _from_file(cls, data_file: str, params: Params) -> Self:
        n_components = len(params.signals.frequencies_hz)
        arrays = npz.read(data_file, n_components=n_components, window_length=params.data.window_length)
        train, validation, test = (
            TensorWindows(torch.from_numpy(arrays[f"X_{part}"]), torch.from_numpy(arrays[f"y_{part}"]))
            for part in npz.PARTS
        )
        epoch_windows, n_epoch = _epoch_windows(train, params)
        return cls(train, epoch_windows, n_epoch, False, validation, test, None, None)

    @classmethod
    def _recordings(cls, params: Params) -> Self:
        for name, length in (
            ("n_samples", params.signals.n_samples),
            ("recording_length", params.recordings.recording_length),
        ):
            if length > MAX_RECORDING:
                raise UserError(
                    f"{name}={length}: recordings of training and test have at most {MAX_RECORDING:,}; lower it"
                )
        model, recordings, seeds = RecordingModel.from_params(params.signals), params.recordings, params.realizations()

        def drawn(purpose: str, n_recordings: int) -> Recordings:
            return seeded_recordings(model, seeds[purpose][0], n_recordings, params.signals.n_samples)

        kalman = KalmanFilter(model)
        length = recordings.recording_length
        scale = _loss_scale(kalman, params)

        def epoch(number: int) -> Recordings:
            random = random_stream(params.training.seed, "recordings", number)
            mixtures, components = model.draw(random, recordings.recordings_per_epoch, length)
            targets = kalman.filter(mixtures) if params.training.targets == "posterior_mean" else components
            mixture, clean, means = (torch.from_numpy(v).float() for v in (mixtures, components, targets))
            return Recordings(mixture, clean, means, chunk_length=recordings.chunk_length, loss_scale=scale[:length])

        validation = drawn("validation_noise_seed", recordings.validation_recordings)
        first = epoch(1)
        holdout = None
        if params.evaluation.holdout_every:
            holdout = drawn("holdout_noise_seed", recordings.validation_recordings)
        return cls(
            train=first,
            epoch=lambda number: first if number == 1 else epoch(number),
            n_epoch=recordings.recordings_per_epoch,
            fresh_noise=True,
            validation=replace(validation, loss_scale=scale[: validation.n_samples]),
            test=drawn("test_noise_seed", recordings.test_recordings),
            first_windows=None,
            holdout=holdout,
        )

    @classmethod
    def _generated(cls, params: Params) -> Self:
        data, model = params.data, SignalModel.from_params(params.signals)
        length, fresh_noise = data.window_length, data.noise == "fresh"
        if too_long := fresh_noise and model.n_samples > MAX_SAMPLES_IN_MEMORY:
            _refuse_all_windows(params)
        if fresh_noise:
            train = evenly_spaced_windows(model, length, params.training.windows_per_epoch if too_long else None)
        else:
            train = realization_windows(model, length, data.train_noise_seed)
        if data.split in ("random", "blocked"):
            remaining, held_out = (_split_at_random if data.split == "random" else _split_at_end)(train, data)
            if len(remaining) == 0:
                raise UserError(
                    f"validation_fraction={data.validation_fraction:g} of {len(train)} windows leaves none for "
                    "training; lower it or raise n_samples"
                )
            train, validation = train.subset(remaining), train.subset(held_out)
        else:
            seeds = params.realizations()["validation_noise_seed"]
            validation = evenly_spaced_windows(model, length, data.validation_windows, *seeds)
        if params.training.targets == "posterior_mean":
            means = partial(posterior_mean, noise_std=model.noise_std, two_sided=params.model.bidirectional)
            train = replace(train, posterior_mean=means)
        epoch_windows, n_epoch = _epoch_windows(train, params)
        if too_long:
            epoch_windows = partial(_draw_segments, model, train, params)

        def noisy(epoch: int) -> SlidingWindows:
            # Each window has its own noise. One realization per epoch is not enough: its windows overlap, so a filter
            # that memorizes their noise in one step gains until the epoch ends.
            random = random_stream(params.training.seed, "noise", epoch)
            noise = random.standard_normal((n_epoch, length), dtype=np.float32)
            return replace(epoch_windows(epoch), noise=torch.from_numpy(noise * np.float32(model.noise_std)))

        holdout = None
        if params.evaluation.holdout_every:
            n_holdout = params.evaluation.holdout_windows if too_long else None
            holdout = evenly_spaced_windows(model, length, n_holdout, data.holdout_noise_seed)
        return cls(
            train=train,
            epoch=noisy if fresh_noise else epoch_windows,
            n_epoch=n_epoch,
            fresh_noise=fresh_noise,
            validation=validation,
            test=evenly_spaced_windows(model, length, data.test_windows, data.test_noise_seed),
            first_windows=first_windows(model, length, FIRST_SAMPLES, data.test_noise_seed),
            holdout=holdout,
        )


def _loss_scale(kalman: KalmanFilter, params: Params) -> Tensor:
    """Factor of estimates and targets in the loss of a recording, (n_samples, n_components)."""
    n_samples = max(params.recordings.recording_length, params.signals.n_samples)
    scale = np.ones((n_samples, len(params.signals.frequencies_hz)))
    if params.recordings.loss_weighting != "none":
        variances = kalman.variances(n_samples)
        power = 1 / 2 if params.recordings.loss_weighting == "inverse_limit" else 1 / 4
        scale = np.maximum(variances, MIN_LIMIT * variances[0]) ** -power
    scale[: params.recordings.burn_in] = 0
    return torch.from_numpy(scale).float()


def _epoch_windows(train: Windows, params: Params) -> tuple[Callable[[int], Windows], int]:
    """The function from an epoch to its training windows, and their number."""
    n_epoch = params.training.windows_per_epoch

    def draw(epoch: int) -> Windows:
        if n_epoch is None:
            return _augment(train, params, epoch)
        indices = random_stream(params.training.seed, "windows", epoch).integers(len(train), size=n_epoch)
        return _augment(train.subset(torch.from_numpy(indices)), params, epoch)

    return draw, len(train) if n_epoch is None else n_epoch


def _augment(windows: Windows, params: Params, epoch: int) -> Windows:
    """Add noise and a random gain to the windows of an epoch; return ``windows`` itself without augmentation."""
    data, seed = params.data, params.training.seed
    if data.augment_noise_std:
        shape = len(windows), windows.n_samples
        noise = random_stream(seed, "augment_noise", epoch).standard_normal(shape, dtype=np.float32)
        noise *= np.float32(data.augment_noise_std)  # in place: it has the size of all mixtures of a file
        windows = replace(windows, noise=torch.from_numpy(noise))
    if data.augment_gain_db:
        max_db = data.augment_gain_db
        gain = 10 ** (random_stream(seed, "augment_gain", epoch).uniform(-max_db, max_db, len(windows)) / 20)
        windows = replace(windows, gain=torch.from_numpy(gain.astype(np.float32)))
    return windows


def _draw_segments(model: SignalModel, train: SlidingWindows, params: Params, epoch: int) -> SlidingWindows:
    """Draw the training windows of an epoch from a signal longer than ``MAX_SAMPLES_IN_MEMORY``."""
    n_epoch, n_components, length = params.training.windows_per_epoch, train.n_components, train.n_samples
    n_windows = (model.n_samples - length + 1) * n_components
    drawn = random_stream(params.training.seed, "windows", epoch).integers(n_windows, size=n_epoch)
    windows = segment_windows(model, length, drawn // n_components)
    indices = torch.from_numpy(np.arange(len(drawn)) * n_components + drawn % n_components)
    return replace(windows, indices=indices, posterior_mean=train.posterior_mean)


def _refuse_all_windows(params: Params) -> None:
    limits = {
        "windows_per_epoch": params.training.windows_per_epoch,
        "validation_windows": params.data.validation_windows,
        "test_windows": params.data.test_windows,
    }
    for name, value in limits.items():
        if value is None:
            raise UserError(
                f"{name}=null: not possible with n_samples above {MAX_SAMPLES_IN_MEMORY:,}; "
                f"add {name}=40000, or another number"
            )


def _split_at_random(windows: SlidingWindows, data: DataParams) -> tuple[Tensor, Tensor]:
    """Indices of the training and the validation windows, as drawn by scikit-learn's ``train_test_split``."""
    order = torch.from_numpy(np.random.RandomState(data.split_seed).permutation(len(windows)))
    n_validation = math.ceil(data.validation_fraction * len(windows))
    return order[n_validation:], order[:n_validation]


def _split_at_end(windows: SlidingWindows, data: DataParams) -> tuple[Tensor, Tensor]:
    """Indices of validation windows at the realization's end, and of training windows sharing no sample with them."""
    indices = torch.arange(len(windows))
    n_validation = math.ceil(data.validation_fraction * windows.n_starts)
    first = windows.n_starts - n_validation
    end = max(0, first - windows.n_samples + 1)
    return indices[: end * windows.n_components], indices[first * windows.n_components :]
