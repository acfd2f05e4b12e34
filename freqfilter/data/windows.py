"""Datasets: their interface, and windows, which are cut from realizations batch by batch."""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from typing import ClassVar, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import one_hot

N_HYPOTHESES = 1024  # candidate segments of a posterior mean


class TrainingBatch(NamedTuple):
    """Windows, or chunks of recordings, of a training step.

    Attributes:
        inputs: (n_windows, n_samples, 1 + n_components); of recordings (n_recordings, n_samples).
        targets: Targets of the gradient, (n_windows, n_samples, 1); of recordings (n_recordings, n_samples,
            n_components).
        clean: The clean components, for the reported loss, the same shape.
        loss_scale: Factor of estimates and targets in the loss, (n_samples, n_components); None: 1.
        continues: Whether these are the next samples of the recordings of the last step; None: they are windows.
    """

    inputs: Tensor
    targets: Tensor
    clean: Tensor
    loss_scale: Tensor | None = None
    continues: bool | None = None


@dataclass(frozen=True, kw_only=True)
class Dataset(ABC):
    """Sequence of windows or of recordings with their targets.

    Attributes:
        items: What it is a sequence of, in messages.
        loss_scale: Factor of estimates and targets in the loss, (n_samples, n_components); None: 1.
    """

    items: ClassVar[str] = "windows"
    loss_scale: Tensor | None = None

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def _sizes(self) -> tuple[int, int]: ...

    @property
    def n_samples(self) -> int:
        """Length of a window."""
        return self._sizes()[0]

    @property
    def n_components(self) -> int:
        """Width of the selector."""
        return self._sizes()[1]

    @abstractmethod
    def block_ids(self, positions: Tensor) -> Tensor | None:
        """Block of neighbouring windows of each window at ``positions``, (n_windows,); None: unknown."""

    @abstractmethod
    def tensors(self) -> tuple[Tensor, Tensor]:
        """The tensors in memory: mixtures and clean components, or inputs and targets."""

    @abstractmethod
    def batch(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs and targets of the windows or recordings at ``positions``, (n_windows,) of int64."""

    @abstractmethod
    def subset(self, positions: Tensor) -> Self:
        """Dataset of the windows or recordings at ``positions``, which may repeat."""

    def n_steps(self, batch_size: int) -> int:
        """Number of training steps of an epoch."""
        return math.ceil(len(self) / batch_size)

    @abstractmethod
    def step(self, order: Tensor, number: int, batch_size: int) -> TrainingBatch:
        """The batch of a training step, counted from 0, with the windows or recordings in this order."""

    def to(self, device: torch.device) -> Self:
        """Copy the data to a device."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{name: value.to(device) for name, value in values.items() if isinstance(value, Tensor)})

    @abstractmethod
    def _digested(self) -> tuple[Tensor | None, ...]:
        """All that determines the inputs and targets."""

    def digest(self) -> str:
        """SHA-256 of the data, of which windows of it are in the dataset, and of their augmentation."""
        digest = hashlib.sha256()
        for tensor in self._digested():
            if tensor is not None:
                digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
                digest.update(tensor.cpu().contiguous().numpy().data)
        return digest.hexdigest()


@dataclass(frozen=True, kw_only=True)
class WindowDataset(Dataset):
    """Sequence of windows with their targets.

    Attributes:
        noise: Noise added to each window's mixture, (n_windows, n_samples); None: none.
        gain: Factor of each window's mixture and clean component, (n_windows,), applied before ``noise`` is added;
            None: none. Posterior means ignore it.
    """

    noise: Tensor | None = None
    gain: Tensor | None = None

    @abstractmethod
    def _cut(self, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mixtures, selectors and clean components of windows before augmentation, (n_windows, n_samples, …)."""

    def batch(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs and targets of the windows at ``positions``, (n_windows,) of int64.

        Returns:
            Inputs (n_windows, n_samples, 1 + n_components): the mixture, then the one-hot selector, constant over the
            window. Targets (n_windows, n_samples, 1): the selected clean component at the same samples.
        """
        mixture, selector, clean = self._cut(positions)
        if self.gain is not None:
            gain = self.gain[positions, None, None]
            mixture, clean = gain * mixture, gain * clean
        if self.noise is not None:
            mixture = mixture + self.noise[positions, :, None]
        return torch.cat([mixture, selector], dim=-1), clean

    def subset(self, positions: Tensor) -> Self:
        """Dataset of the windows at ``positions``, which may repeat."""
        noise, gain = (None if values is None else values[positions] for values in (self.noise, self.gain))
        return replace(self, noise=noise, gain=gain)

    def training_batch(self, positions: Tensor) -> TrainingBatch:
        """The windows at ``positions`` with their training targets, here the clean component."""
        inputs, clean = self.batch(positions)
        return TrainingBatch(inputs, clean, clean)

    def step(self, order: Tensor, number: int, batch_size: int) -> TrainingBatch:
        """The batch of a training step, counted from 0, with the windows in this order."""
        return self.training_batch(order[number * batch_size : (number + 1) * batch_size])

    def _digested(self) -> tuple[Tensor | None, ...]:
        return (*self.tensors(), *self._selection(), self.noise, self.gain)

    def _selection(self) -> tuple[Tensor | None, ...]:
        return ()


@dataclass(frozen=True)
class SlidingWindows(WindowDataset):
    """Dataset of every segment of ``window_length`` samples of each realization, for each selector.

    Ordered by realization, then start, then selector.

    Attributes:
        mixtures: (n_realizations, signal length).
        components: The clean components, (n_components, signal length).
        window_length: Samples of a window.
        indices: Indices of the windows of this dataset, (n_windows,); None: all.
        block_starts: Minimum number of starts in a block of neighbouring windows, whose noise overlaps or is close by.
        stride: Samples from one start to the next.
        posterior_mean: Function of mixtures (n_windows, n_samples) and candidate segments (n_components,
            n_candidates, n_samples) to means (n_windows, n_components, n_samples), the training targets; None: the
            clean component is the target.
    """

    mixtures: Tensor
    components: Tensor
    window_length: int
    indices: Tensor | None = None
    block_starts: int = 1
    stride: int = 1
    posterior_mean: Callable[[Tensor, Tensor], Tensor] | None = None

    def _sizes(self) -> tuple[int, int]:
        return self.window_length, len(self.components)

    @property
    def n_starts(self) -> int:
        """Number of window starts of a realization."""
        return (self.mixtures.shape[1] - self.n_samples) // self.stride + 1

    def __len__(self) -> int:
        if self.indices is not None:
            return len(self.indices)
        return len(self.mixtures) * self.n_starts * self.n_components

    def subset(self, positions: Tensor) -> Self:
        """Dataset of the windows at ``positions``, which may repeat."""
        indices = positions if self.indices is None else self.indices[positions]
        return replace(super().subset(positions), indices=indices)

    def block_ids(self, positions: Tensor) -> Tensor:
        """Block of at least ``block_starts`` neighbouring starts of each window, (n_windows,).

        The blocks of a realization have the same size.
        """
        _, start, realization = self.decode(positions)
        n_blocks = max(1, self.n_starts // self.block_starts)
        return realization * n_blocks + start * n_blocks // self.n_starts

    def decode(self, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Selector, start and realization of each window, (n_windows,)."""
        indices = positions if self.indices is None else self.indices[positions]
        start = indices // self.n_components % self.n_starts
        return indices % self.n_components, start, indices // (self.n_components * self.n_starts)

    def tensors(self) -> tuple[Tensor, Tensor]:
        """The mixtures and the clean components."""
        return self.mixtures, self.components

    def training_batch(self, positions: Tensor) -> TrainingBatch:
        """The windows at ``positions`` with the clean component or its posterior mean as target.

        The mean is taken over the segments at the starts of these windows and at random starts. If the windows' own
        starts are random too, each segment is equally likely a priori, and the mean is the conditional expectation of
        the clean component given the segments and the mixture. The expected gradient is then that of the component
        itself (D. Blackwell, "Conditional Expectation and Unbiased Sequential Estimation", 1947), without its
        unpredictable part, which near the limit is most of the gradient's noise.
        """
        inputs, clean = self.batch(positions)
        if self.posterior_mean is None:
            return TrainingBatch(inputs, clean, clean)
        selector, start, _ = self.decode(positions)
        means = []
        for rows in torch.split(torch.arange(len(start), device=start.device), N_HYPOTHESES // 2):
            others = torch.randint(self.n_starts, (N_HYPOTHESES - len(rows),), device=start.device)
            candidates = self.components[:, self._samples(torch.cat([start[rows], others]))]
            all_means = self.posterior_mean(inputs[rows, :, 0], candidates)
            means.append(all_means[rows - rows[0], selector[rows]])
        return TrainingBatch(inputs, torch.cat(means)[..., None], clean)

    def _cut(self, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        selector, start, realization = self.decode(positions)
        samples = self._samples(start)
        mixture, clean = self.mixtures[realization[:, None], samples], self.components[selector[:, None], samples]
        choice = one_hot(selector, self.n_components).to(mixture.dtype)
        return mixture[..., None], choice[:, None].expand(-1, self.n_samples, -1), clean[..., None]

    def _samples(self, start: Tensor) -> Tensor:
        """Indices of the windows' samples in a realization, (n_windows, n_samples)."""
        return self.stride * start[:, None] + torch.arange(self.n_samples, device=start.device)

    def _selection(self) -> tuple[Tensor | None, ...]:
        return torch.tensor(self.n_samples), self.indices


@dataclass(frozen=True)
class TensorWindows(WindowDataset):
    """Dataset of windows that are stored as tensors.

    Attributes:
        inputs: (n_windows, n_samples, 1 + n_components).
        targets: (n_windows, n_samples, 1).
    """

    inputs: Tensor
    targets: Tensor

    def _sizes(self) -> tuple[int, int]:
        return self.inputs.shape[1], self.inputs.shape[2] - 1

    def __len__(self) -> int:
        return len(self.inputs)

    def subset(self, positions: Tensor) -> Self:
        """Dataset of the windows at ``positions``, which may repeat; a copy."""
        return replace(super().subset(positions), inputs=self.inputs[positions], targets=self.targets[positions])

    def block_ids(self, positions: Tensor) -> None:
        """None: a file does not state which windows are neighbours."""

    def tensors(self) -> tuple[Tensor, Tensor]:
        """Inputs and targets."""
        return self.inputs, self.targets

    def _cut(self, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        inputs = self.inputs[positions]
        return inputs[..., :1], inputs[..., 1:], self.targets[positions]


def batches(windows: Dataset, batch_size: int, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield all windows in order, ``batch_size`` at a time."""
    for first in range(0, len(windows), batch_size):
        yield windows.batch(torch.arange(first, min(first + batch_size, len(windows)), device=device))


def noise_inputs(
    random: np.random.Generator, n_windows: int, n_samples: int, *, n_components: int | None
) -> NDArray[np.float32]:
    """Inputs of white noise, (n_windows, n_samples, 1 + n_components); their selectors take turns.

    Without ``n_components`` they are the mixtures of recordings, (n_windows, n_samples).
    """
    if n_components is None:
        return random.standard_normal((n_windows, n_samples), dtype=np.float32)
    inputs = np.empty((n_windows, n_samples, 1 + n_components), dtype=np.float32)
    inputs[..., 0] = random.standard_normal((n_windows, n_samples))
    inputs[..., 1:] = np.eye(n_components)[np.arange(n_windows) % n_components, None]
    return inputs


def valid_selectors(inputs: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Whether the selector of each window is one-hot and constant over the window, (n_windows,).

    Args:
        inputs: (n_windows, n_samples, 1 + n_components).
    """
    selector = inputs[:, :1, 1:]
    one_hot = ((selector == 0) | (selector == 1)).all(axis=(1, 2)) & (selector.sum(axis=(1, 2)) == 1)
    valid: NDArray[np.bool_] = one_hot & (inputs[:, :, 1:] == selector).all(axis=(1, 2))
    return valid


def block_means(values: Tensor, block_ids: Tensor) -> list[float]:
    """Mean of the values of each block that occurs, ordered by block id.

    Args:
        values: (n_windows,).
        block_ids: Block of each value, (n_windows,) of int64.

    >>> block_means(torch.tensor([1.0, 3.0, 8.0]), torch.tensor([0, 0, 2]))
    [2.0, 8.0]
    """
    counts = torch.bincount(block_ids)
    sums = torch.bincount(block_ids, weights=values.double())
    return [float(value) for value in sums[counts > 0] / counts[counts > 0]]


def evenly_spaced(windows: SlidingWindows, n_windows: int) -> SlidingWindows:
    """At most ``n_windows`` windows of a full dataset, spread evenly over its starts, each with all its selectors.

    The number of starts is at least one.
    """
    all_starts = len(windows) // windows.n_components
    n_starts = max(1, min(n_windows // windows.n_components, all_starts))
    starts = torch.linspace(0, all_starts - 1, n_starts, dtype=torch.float64).round()
    indices = starts.long()[:, None] * windows.n_components + torch.arange(windows.n_components)
    return windows.subset(indices.flatten())
