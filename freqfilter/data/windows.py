"""Datasets of windows, which are cut from realizations batch by batch."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol, Self

import torch
from torch import Tensor
from torch.nn.functional import one_hot

N_HYPOTHESES = 1024  # candidate segments of a posterior mean


class TrainingBatch(NamedTuple):
    """Windows of a training step.

    Attributes:
        inputs: (n_windows, n_samples, 1 + n_components).
        targets: Targets of the gradient, (n_windows, n_samples, 1).
        clean: The selected clean component, for the reported loss, the same shape.
    """

    inputs: Tensor
    targets: Tensor
    clean: Tensor


class WindowDataset(Protocol):
    """Sequence of windows with their targets.

    ``inputs`` are (n_windows, n_samples, 1 + n_components): the mixture, then the one-hot selector, constant over
    the window. ``targets`` are (n_windows, n_samples, 1): the selected clean component at the same samples.
    """

    @property
    def n_samples(self) -> int:
        """Length of a window."""
        ...

    @property
    def n_components(self) -> int:
        """Width of the selector."""
        ...

    def __len__(self) -> int: ...

    def batch(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs and targets of the windows at ``positions``, (n_windows,) of int64."""
        ...

    def subset(self, positions: Tensor) -> Self:
        """Dataset of the windows at ``positions``, which may repeat."""
        ...

    def training_batch(self, positions: Tensor) -> TrainingBatch:
        """Inputs, training targets and clean components of the windows at ``positions``."""
        ...

    def block_ids(self, positions: Tensor) -> Tensor | None:
        """Block of neighbouring windows of each window at ``positions``, (n_windows,); None: unknown."""
        ...

    def to(self, device: torch.device) -> Self:
        """Copy the windows to a device."""
        ...

    def tensors(self) -> tuple[Tensor, Tensor]:
        """The tensors in memory: mixtures and clean components, or inputs and targets."""
        ...

    def digest(self) -> str:
        """SHA-256 of the data."""
        ...


@dataclass(frozen=True)
class SlidingWindows:
    """Dataset of every segment of ``n_samples`` samples of each realization, for each selector.

    Ordered by realization, then start, then selector.

    Attributes:
        mixtures: (n_realizations, signal length).
        components: The clean components, (n_components, signal length).
        n_samples: Length of a window.
        indices: Indices of the windows of this dataset, (n_windows,); None: all.
        noise: Noise added to each window's mixture, (n_windows, n_samples); None: none.
        gain: Factor of each window's mixture and clean component, (n_windows,), applied before ``noise`` is added;
            None: none. Posterior means ignore it.
        block_starts: Minimum number of starts in a block of neighbouring windows, whose noise overlaps or is close by.
        stride: Samples from one start to the next.
        posterior_mean: Function of mixtures (n_windows, n_samples) and candidate segments (n_components,
            n_candidates, n_samples) to means (n_windows, n_components, n_samples), the training targets; None: the
            clean component is the target.
    """

    mixtures: Tensor
    components: Tensor
    n_samples: int
    indices: Tensor | None = None
    noise: Tensor | None = None
    gain: Tensor | None = None
    block_starts: int = 1
    stride: int = 1
    posterior_mean: Callable[[Tensor, Tensor], Tensor] | None = None

    @property
    def n_components(self) -> int:
        """Width of the selector."""
        return len(self.components)

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
        return replace(self, indices=indices, noise=_at(self.noise, positions), gain=_at(self.gain, positions))

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

    def batch(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs and targets of the windows at ``positions``."""
        selector, start, realization = self.decode(positions)
        samples = self._samples(start)
        mixture, clean = self.mixtures[realization[:, None], samples], self.components[selector[:, None], samples]
        mixture, clean = _augment(mixture, clean, _at(self.gain, positions), _at(self.noise, positions))
        choice = one_hot(selector, self.n_components).to(mixture.dtype)
        inputs = torch.cat([mixture[..., None], choice[:, None].expand(-1, self.n_samples, -1)], dim=-1)
        return inputs, clean[..., None]

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
        means = [
            self._means(*chunk)
            for chunk in zip(
                *(torch.split(values, N_HYPOTHESES // 2) for values in (inputs[..., 0], selector, start)),
                strict=True,
            )
        ]
        return TrainingBatch(inputs, torch.cat(means), clean)

    def _means(self, mixtures: Tensor, selector: Tensor, start: Tensor) -> Tensor:
        """Posterior means of the selected components, (n_windows, n_samples, 1)."""
        if self.posterior_mean is None:
            raise ValueError("posterior_mean is None")
        others = torch.randint(self.n_starts, (N_HYPOTHESES - len(start),), device=start.device)
        candidates = self.components[:, self._samples(torch.cat([start, others]))]
        means = self.posterior_mean(mixtures, candidates)
        return means[torch.arange(len(start), device=start.device), selector][..., None]

    def _samples(self, start: Tensor) -> Tensor:
        """Indices of the windows' samples in a realization, (n_windows, n_samples)."""
        return self.stride * start[:, None] + torch.arange(self.n_samples, device=start.device)

    def to(self, device: torch.device) -> Self:
        """Copy the windows to a device."""
        tensors = {name: getattr(self, name) for name in ("mixtures", "components", "indices", "noise", "gain")}
        return replace(self, **{name: tensor.to(device) for name, tensor in tensors.items() if tensor is not None})

    def tensors(self) -> tuple[Tensor, Tensor]:
        """The mixtures and the clean components."""
        return self.mixtures, self.components

    def digest(self) -> str:
        """SHA-256 of mixtures, components, window length, indices, noise and gain."""
        n_samples = torch.tensor(self.n_samples)
        return _digest(self.mixtures, self.components, n_samples, self.indices, self.noise, self.gain)


@dataclass(frozen=True)
class TensorWindows:
    """Dataset of windows that are stored as tensors.

    Attributes:
        inputs: (n_windows, n_samples, 1 + n_components).
        targets: (n_windows, n_samples, 1).
        noise: Noise added to each mixture of a batch, (n_windows, n_samples); None: none.
        gain: Factor of each mixture and target of a batch, (n_windows,), applied before ``noise`` is added;
            None: none.
    """

    inputs: Tensor
    targets: Tensor
    noise: Tensor | None = None
    gain: Tensor | None = None

    @property
    def n_samples(self) -> int:
        """Length of a window."""
        return self.inputs.shape[1]

    @property
    def n_components(self) -> int:
        """Width of the selector."""
        return self.inputs.shape[2] - 1

    def __len__(self) -> int:
        return len(self.inputs)

    def batch(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs and targets of the windows at ``positions``."""
        inputs, targets = self.inputs[positions], self.targets[positions]
        gain, noise = _at(self.gain, positions), _at(self.noise, positions)
        mixture, clean = _augment(inputs[..., 0], targets[..., 0], gain, noise)
        return torch.cat([mixture[..., None], inputs[..., 1:]], dim=-1), clean[..., None]

    def training_batch(self, positions: Tensor) -> TrainingBatch:
        """The windows at ``positions``; targets and clean component are the same."""
        inputs, targets = self.batch(positions)
        return TrainingBatch(inputs, targets, targets)

    def subset(self, positions: Tensor) -> Self:
        """Dataset of the windows at ``positions``, which may repeat; a copy."""
        noise, gain = _at(self.noise, positions), _at(self.gain, positions)
        return replace(self, inputs=self.inputs[positions], targets=self.targets[positions], noise=noise, gain=gain)

    def block_ids(self, positions: Tensor) -> None:
        """None: a file does not state which windows are neighbours."""

    def to(self, device: torch.device) -> Self:
        """Copy the windows to a device."""
        tensors = {name: getattr(self, name) for name in ("inputs", "targets", "noise", "gain")}
        return replace(self, **{name: tensor.to(device) for name, tensor in tensors.items() if tensor is not None})

    def tensors(self) -> tuple[Tensor, Tensor]:
        """Inputs and targets."""
        return self.inputs, self.targets

    def digest(self) -> str:
        """SHA-256 of inputs, targets, noise and gain."""
        return _digest(self.inputs, self.targets, self.noise, self.gain)


def batches(windows: WindowDataset, batch_size: int, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield all windows in order, ``batch_size`` at a time."""
    for first in range(0, len(windows), batch_size):
        yield windows.batch(torch.arange(first, min(first + batch_size, len(windows)), device=device))


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
    n_starts = max(1, min(n_windows // windows.n_components, len(windows) // windows.n_components))
    starts = torch.linspace(0, len(windows) // windows.n_components - 1, n_starts, dtype=torch.float64).round()
    indices = starts.long()[:, None] * windows.n_components + torch.arange(windows.n_components)
    return windows.subset(indices.flatten())


def _at(values: Tensor | None, positions: Tensor) -> Tensor | None:
    return None if values is None else values[positions]


def _augment(mixture: Tensor, clean: Tensor, gain: Tensor | None, noise: Tensor | None) -> tuple[Tensor, Tensor]:
    """Apply the gain to mixtures and clean components (n_windows, n_samples), then add the noise to the mixtures."""
    if gain is not None:
        mixture, clean = gain[:, None] * mixture, gain[:, None] * clean
    return (mixture if noise is None else mixture + noise), clean


def _digest(*tensors: Tensor | None) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        if tensor is not None:
            digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.cpu().contiguous().numpy().data)
    return digest.hexdigest()
