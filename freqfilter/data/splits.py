"""Training, validation, test and holdout windows."""

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
from freqfilter.data.posterior import posterior_mean
from freqfilter.data.signal_model import (
    MAX_SAMPLES_IN_MEMORY,
    SignalModel,
    evenly_spaced_windows,
    first_windows,
    random_stream,
    realization_windows,
    segment_windows,
)
from freqfilter.data.windows import SlidingWindows, TensorWindows, WindowDataset
from freqfilter.errors import UserError

Windows = TypeVar("Windows", SlidingWindows, TensorWindows)

FIRST_SAMPLES = 100_000  # of the test realization, for pictures


@dataclass(frozen=True)
class Splits:
    """The data of a run.

    Attributes:
        train: All windows that training takes from, without noise where theirs is fresh; of a signal that is too long
            to be held, as many as an epoch has, spread evenly.
        epoch: The training windows of an epoch, numbered from 1: all of them, or some drawn at random; augmented where
            the parameters ask for it.
        n_epoch: How many they are.
        fresh_noise: Whether those of an epoch have noise of their own, drawn anew.
        validation: What chooses the best epoch.
        test: Touched once, at the end.
        first_windows: All windows of the beginning of the test realization; None where nobody knows it.
        holdout: A realization that nothing is trained on or chosen by, for a curve over epochs; None: no holdout.
    """

    train: WindowDataset
    epoch: Callable[[int], WindowDataset]
    n_epoch: int
    fresh_noise: bool
    validation: WindowDataset
    test: WindowDataset
    first_windows: SlidingWindows | None
    holdout: SlidingWindows | None

    @classmethod
    def from_params(cls, params: Params) -> Self:
        """Generate, or read from ``data_file``, the data that the parameters ask for.

        Raises:
            UserError: If the data file cannot be used, or a split leaves no windows to train on.
        """
        if params.data.data_file is not None:
            return cls._from_file(params.data.data_file, params)
        return cls._generated(params)

    @cached_property
    def digests(self) -> dict[str, str]:
        """SHA-256 of the data by purpose."""
        parts = {"train": self.train, "validation": self.validation, "test": self.test, "holdout": self.holdout}
        return {purpose: windows.digest() for purpose, windows in parts.items() if windows is not None}

    @classmethod
    def _from_file(cls, data_file: str, params: Params) -> Self:
        window_length = params.data.window_length
        arrays = npz.read(data_file, n_components=len(params.signals.frequencies_hz))
        if (n_samples := arrays["X_train"].shape[1]) != window_length:
            raise UserError(
                f"data_file={data_file}: its windows have {n_samples} samples and window_length={window_length}: "
                f"add window_length={n_samples}"
            )
        train, validation, test = (
            TensorWindows(torch.from_numpy(arrays[f"X_{part}"]), torch.from_numpy(arrays[f"y_{part}"]))
            for part in npz.PARTS
        )
        of_epoch, n_epoch = _epoch_windows(train, params)
        return cls(train, of_epoch, n_epoch, False, validation, test, None, None)

    @classmethod
    def _generated(cls, params: Params) -> Self:
        data, model = params.data, SignalModel.from_params(params.signals)
        length, fresh_noise = data.window_length, data.noise == "fresh"
        n_holdout = None
        if too_long := fresh_noise and model.n_samples > MAX_SAMPLES_IN_MEMORY:
            _refuse_all_windows(params)
            n_holdout = params.evaluation.holdout_windows
        if fresh_noise:
            train = evenly_spaced_windows(model, length, params.training.windows_per_epoch if too_long else None)
        else:
            train = realization_windows(model, length, data.train_noise_seed)
        if data.split in ("random", "blocked"):
            kept, held_out = (_split_at_random if data.split == "random" else _split_at_end)(train, data)
            if len(kept) == 0:
                raise UserError(
                    f"validation_fraction={data.validation_fraction:g} of {len(train)} windows leaves no training: "
                    "lower it, or raise n_samples"
                )
            train, validation = train.subset(kept), train.subset(held_out)
        else:
            validation = evenly_spaced_windows(
                model, length, data.validation_windows, *params.realizations()["validation_noise_seed"]
            )
        if params.training.targets == "posterior_mean":
            two_sided = params.model.bidirectional
            means = partial(posterior_mean, noise_std=model.noise_std, two_sided=two_sided)
            train = replace(train, posterior_mean=means)
        of_epoch, n_epoch = _epoch_windows(train, params)
        if too_long:
            of_epoch = partial(_draw_segments, model, train, params)

        def noisy(epoch: int) -> SlidingWindows:
            # Each window has noise of its own. One realization for an epoch would not do: its windows overlap, and
            # what a step learns of their noise by heart pays off until the epoch ends.
            random = random_stream(params.training.seed, "noise", epoch)
            noise = random.standard_normal((n_epoch, length), dtype=np.float32)
            return replace(of_epoch(epoch), noise=torch.from_numpy(noise * np.float32(model.noise_std)))

        holdout = None
        if params.evaluation.holdout_every:
            holdout = evenly_spaced_windows(model, length, n_holdout, data.holdout_noise_seed)
        return cls(
            train=train,
            epoch=noisy if fresh_noise else of_epoch,
            n_epoch=n_epoch,
            fresh_noise=fresh_noise,
            validation=validation,
            test=evenly_spaced_windows(model, length, data.test_windows, data.test_noise_seed),
            first_windows=first_windows(model, length, FIRST_SAMPLES, data.test_noise_seed),
            holdout=holdout,
        )


def _epoch_windows(train: Windows, params: Params) -> tuple[Callable[[int], Windows], int]:
    """The windows that an epoch takes, by its number, and how many they are."""
    n_epoch = params.training.windows_per_epoch

    def draw(epoch: int) -> Windows:
        if n_epoch is None:
            return _augment(train, params, epoch)
        numbers = random_stream(params.training.seed, "windows", epoch).integers(len(train), size=n_epoch)
        return _augment(train.subset(torch.from_numpy(numbers)), params, epoch)

    return draw, len(train) if n_epoch is None else n_epoch


def _augment(windows: Windows, params: Params, epoch: int) -> Windows:
    """The windows of an epoch with random gain and added noise; the very same where neither is asked for."""
    data, seed = params.data, params.training.seed
    if data.augment_noise_std:
        shape = len(windows), windows.n_samples
        noise = random_stream(seed, "augment_noise", epoch).standard_normal(shape, dtype=np.float32)
        noise *= np.float32(data.augment_noise_std)  # in place, since it may be as large as all mixtures of a file
        windows = replace(windows, noise=torch.from_numpy(noise))
    if data.augment_gain_db:
        most = data.augment_gain_db
        gain = 10 ** (random_stream(seed, "augment_gain", epoch).uniform(-most, most, len(windows)) / 20)
        windows = replace(windows, gain=torch.from_numpy(gain.astype(np.float32)))
    return windows


def _draw_segments(model: SignalModel, train: SlidingWindows, params: Params, epoch: int) -> SlidingWindows:
    """The windows that an epoch takes from a signal that is too long to be held."""
    n_epoch, n_components, length = params.training.windows_per_epoch, train.n_components, train.n_samples
    n_windows = (model.n_samples - length + 1) * n_components
    numbers = random_stream(params.training.seed, "windows", epoch).integers(n_windows, size=n_epoch)
    held = segment_windows(model, length, numbers // n_components)
    chosen = torch.from_numpy(np.arange(len(numbers)) * n_components + numbers % n_components)
    return replace(held, indices=chosen, posterior_mean=train.posterior_mean)


def _refuse_all_windows(params: Params) -> None:
    wanted = {
        "windows_per_epoch": params.training.windows_per_epoch,
        "validation_windows": params.data.validation_windows,
        "test_windows": params.data.test_windows,
    }
    for name, value in wanted.items():
        if value is None:
            raise UserError(
                f"{name}=null: a signal of more than {MAX_SAMPLES_IN_MEMORY:,} samples is not held as a whole; "
                f"add {name}=40000, or another number"
            )


def _split_at_random(windows: SlidingWindows, data: DataParams) -> tuple[Tensor, Tensor]:
    """Numbers of the windows for training and for validation, as scikit-learn's ``train_test_split`` draws them."""
    order = torch.from_numpy(np.random.RandomState(data.split_seed).permutation(len(windows)))
    n_validation = math.ceil(data.validation_fraction * len(windows))
    return order[n_validation:], order[:n_validation]


def _split_at_end(windows: SlidingWindows, data: DataParams) -> tuple[Tensor, Tensor]:
    """Validation from the end of the realization, and training from all windows that share no sample with it."""
    numbers = torch.arange(len(windows))
    n_validation = math.ceil(data.validation_fraction * windows.n_starts)
    first = windows.n_starts - n_validation
    end = max(0, first - windows.n_samples + 1)
    return numbers[: end * windows.n_components], numbers[first * windows.n_components :]
