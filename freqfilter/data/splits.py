"""Training, validation, test and audit windows."""

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
    MOST_HELD,
    SignalModel,
    beginning_windows,
    realization_windows,
    some_windows,
    stream,
    stretch_windows,
)
from freqfilter.data.windows import CutWindows, StoredWindows, WindowSet
from freqfilter.errors import UserError

Windows = TypeVar("Windows", CutWindows, StoredWindows)

BEGINNING_SAMPLES = 100_000  # of the test realization, for pictures


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
        beginning: All windows of the beginning of the test realization; None where nobody knows it.
        audit: A realization that nothing is trained on or chosen by, for a curve over epochs; None: no audit.
    """

    train: WindowSet
    epoch: Callable[[int], WindowSet]
    n_epoch: int
    fresh_noise: bool
    validation: WindowSet
    test: WindowSet
    beginning: CutWindows | None
    audit: CutWindows | None

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
        parts = {"train": self.train, "validation": self.validation, "test": self.test, "audit": self.audit}
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
            StoredWindows(torch.from_numpy(arrays[f"X_{part}"]), torch.from_numpy(arrays[f"y_{part}"]))
            for part in npz.PARTS
        )
        of_epoch, n_epoch = _drawn(train, params)
        return cls(train, of_epoch, n_epoch, False, validation, test, None, None)

    @classmethod
    def _generated(cls, params: Params) -> Self:
        data, model = params.data, SignalModel.from_params(params.signals)
        length, fresh_noise = data.window_length, data.noise == "fresh"
        n_audit = None
        if too_long := fresh_noise and model.n_samples > MOST_HELD:
            _refuse_all_windows(params)
            n_audit = params.evaluation.audit_windows
        if fresh_noise:
            train = some_windows(model, length, params.training.windows_per_epoch if too_long else None)
        else:
            train = realization_windows(model, length, data.train_noise_seed)
        if data.split in ("random", "blocked"):
            kept, held_out = (_at_random if data.split == "random" else _at_the_end)(train, data)
            if len(kept) == 0:
                raise UserError(
                    f"validation_fraction={data.validation_fraction:g} of {len(train)} windows leaves no training: "
                    "lower it, or raise n_samples"
                )
            train, validation = train.choose(kept), train.choose(held_out)
        else:
            validation = some_windows(
                model, length, data.validation_windows, *params.realizations()["validation_noise_seed"]
            )
        if params.training.targets == "posterior_mean":
            two_sided = params.model.bidirectional
            means = partial(posterior_mean, noise_std=model.noise_std, two_sided=two_sided)
            train = replace(train, posterior_mean=means)
        of_epoch, n_epoch = _drawn(train, params)
        if too_long:
            of_epoch = partial(_stretches, model, train, params)

        def noisy(epoch: int) -> CutWindows:
            # Each window has noise of its own. One realization for an epoch would not do: its windows overlap, and
            # what a step learns of their noise by heart pays off until the epoch ends.
            random = stream(params.training.seed, "noise", epoch)
            noise = random.standard_normal((n_epoch, length), dtype=np.float32)
            return replace(of_epoch(epoch), noise=torch.from_numpy(noise * np.float32(model.noise_std)))

        audit = None
        if params.evaluation.audit_every:
            audit = some_windows(model, length, n_audit, data.audit_noise_seed)
        return cls(
            train=train,
            epoch=noisy if fresh_noise else of_epoch,
            n_epoch=n_epoch,
            fresh_noise=fresh_noise,
            validation=validation,
            test=some_windows(model, length, data.test_windows, data.test_noise_seed),
            beginning=beginning_windows(model, length, BEGINNING_SAMPLES, data.test_noise_seed),
            audit=audit,
        )


def _drawn(train: Windows, params: Params) -> tuple[Callable[[int], Windows], int]:
    """The windows that an epoch takes, by its number, and how many they are."""
    n_epoch = params.training.windows_per_epoch

    def draw(epoch: int) -> Windows:
        if n_epoch is None:
            return _augmented(train, params, epoch)
        numbers = stream(params.training.seed, "windows", epoch).integers(len(train), size=n_epoch)
        return _augmented(train.choose(torch.from_numpy(numbers)), params, epoch)

    return draw, len(train) if n_epoch is None else n_epoch


def _augmented(windows: Windows, params: Params, epoch: int) -> Windows:
    """The windows of an epoch with random gain and added noise; the very same where neither is asked for."""
    data, seed = params.data, params.training.seed
    if data.augment_noise_std:
        shape = len(windows), windows.n_samples
        noise = stream(seed, "augment_noise", epoch).standard_normal(shape, dtype=np.float32)
        noise *= np.float32(data.augment_noise_std)  # in place, since it may be as large as all mixtures of a file
        windows = replace(windows, noise=torch.from_numpy(noise))
    if data.augment_gain_db:
        most = data.augment_gain_db
        gain = 10 ** (stream(seed, "augment_gain", epoch).uniform(-most, most, len(windows)) / 20)
        windows = replace(windows, gain=torch.from_numpy(gain.astype(np.float32)))
    return windows


def _stretches(model: SignalModel, train: CutWindows, params: Params, epoch: int) -> CutWindows:
    """The windows that an epoch takes from a signal that is too long to be held."""
    n_epoch, n_components, length = params.training.windows_per_epoch, train.n_components, train.n_samples
    n_windows = (model.n_samples - length + 1) * n_components
    numbers = stream(params.training.seed, "windows", epoch).integers(n_windows, size=n_epoch)
    held = stretch_windows(model, length, numbers // n_components)
    chosen = torch.from_numpy(np.arange(len(numbers)) * n_components + numbers % n_components)
    return replace(held, chosen=chosen, posterior_mean=train.posterior_mean)


def _refuse_all_windows(params: Params) -> None:
    wanted = {
        "windows_per_epoch": params.training.windows_per_epoch,
        "validation_windows": params.data.validation_windows,
        "test_windows": params.data.test_windows,
    }
    for name, value in wanted.items():
        if value is None:
            raise UserError(
                f"{name}=null: a signal of more than {MOST_HELD:,} samples is not held as a whole; "
                f"add {name}=40000, or another number"
            )


def _at_random(windows: CutWindows, data: DataParams) -> tuple[Tensor, Tensor]:
    """Numbers of the windows for training and for validation, as scikit-learn's ``train_test_split`` draws them."""
    order = torch.from_numpy(np.random.RandomState(data.split_seed).permutation(len(windows)))
    n_validation = math.ceil(data.validation_fraction * len(windows))
    return order[n_validation:], order[:n_validation]


def _at_the_end(windows: CutWindows, data: DataParams) -> tuple[Tensor, Tensor]:
    """Validation from the end of the realization, and training from all windows that share no sample with it."""
    numbers = torch.arange(len(windows))
    n_validation = math.ceil(data.validation_fraction * windows.n_starts)
    first = windows.n_starts - n_validation
    end = max(0, first - windows.n_samples + 1)
    return numbers[: end * windows.n_components], numbers[first * windows.n_components :]
