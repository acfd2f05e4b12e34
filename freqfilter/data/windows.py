"""Datasets of windows, cut from realizations when a batch needs them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol, Self

import torch
from torch import Tensor
from torch.nn.functional import one_hot

N_HYPOTHESES = 1024  # stretches that a posterior mean is taken over


class TrainingBatch(NamedTuple):
    """The windows of a training step.

    Attributes:
        inputs: (n_windows, n_samples, 1 + n_components).
        targets: What the step moves the estimates towards, (n_windows, n_samples, 1).
        clean: The selected clean component, which the loss that is reported is taken against, the same shape.
    """

    inputs: Tensor
    targets: Tensor
    clean: Tensor


class WindowDataset(Protocol):
    """A sequence of windows with their targets.

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
        """The set of the windows at ``positions``, which may repeat."""
        ...

    def training_batch(self, positions: Tensor) -> TrainingBatch:
        """The windows at ``positions`` with what a training step moves towards."""
        ...

    def block_ids(self, positions: Tensor) -> Tensor | None:
        """The block of neighbours that each of the windows at ``positions`` is of, (n_windows,); None: unknown."""
        ...

    def to(self, device: torch.device) -> Self:
        """The same windows on another device."""
        ...

    def tensors(self) -> tuple[Tensor, Tensor]:
        """What stands in memory: signals and clean components, or windows and targets."""
        ...

    def digest(self) -> str:
        """SHA-256 of what the windows hold."""
        ...


@dataclass(frozen=True)
class SlidingWindows:
    """Every stretch of ``n_samples`` of each realization, for each selector.

    In order of realization, then of start; the windows of a start stand together, one for each selector.

    Attributes:
        mixtures: (n_realizations, signal length).
        components: The clean components, (n_components, signal length).
        n_samples: Length of a window.
        indices: Numbers of the windows that belong to the set, (n_windows,); None: all.
        noise: Noise of each window's own, (n_windows, n_samples), added to its mixture; None: none.
        gain: Factor of each window's mixture and clean component, (n_windows,), applied before ``noise`` is added;
            None: none. Posterior means take no account of it.
        block_starts: Starts of a block of neighbouring windows: so many share their noise or have it from nearby.
        stride: Samples from one start to the next.
        posterior_mean: Means (n_windows, n_components, n_samples) of the components, given mixtures (n_windows,
            n_samples) and the candidates for what they hold, (n_components, n_candidates, n_samples), to train
            towards; None: towards the clean component.
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
        """Selectors of a start."""
        return len(self.components)

    @property
    def n_starts(self) -> int:
        """Window starts of a realization."""
        return (self.mixtures.shape[1] - self.n_samples) // self.stride + 1

    def __len__(self) -> int:
        if self.indices is not None:
            return len(self.indices)
        return len(self.mixtures) * self.n_starts * self.n_components

    def subset(self, positions: Tensor) -> Self:
        """The set of the windows at ``positions``, which may repeat."""
        indices = positions if self.indices is None else self.indices[positions]
        return replace(self, indices=indices, noise=_at(self.noise, positions), gain=_at(self.gain, positions))

    def block_ids(self, positions: Tensor) -> Tensor:
        """The block of at least ``block_starts`` neighbouring starts that each window is of, (n_windows,).

        The blocks of a realization are equally large.
        """
        _, start, realization = self.decode(positions)
        of_realization = max(1, self.n_starts // self.block_starts)
        return realization * of_realization + start * of_realization // self.n_starts

    def decode(self, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Selector, start and realization of each window, (n_windows,)."""
        numbers = positions if self.indices is None else self.indices[positions]
        start = numbers // self.n_components % self.n_starts
        return numbers % self.n_components, start, numbers // (self.n_components * self.n_starts)

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
        """The windows at ``positions`` with their clean component or its posterior means as targets.

        A mean is taken over the stretches at the starts of these windows and at others drawn at random from a full
        set. Where a window's own start has been drawn like that too, it is equally likely to be any of them, given the
        stretches and its mixture. So the mean is what can be known of the clean component, and on average over windows
        and draws a network is moved as by the component itself (D. Blackwell, "Conditional Expectation and Unbiased
        Sequential Estimation", 1947). What nobody can foresee, near the limit most of a gradient's noise, is gone.
        """
        inputs, clean = self.batch(positions)
        if self.posterior_mean is None:
            return TrainingBatch(inputs, clean, clean)
        selector, start, _ = self.decode(positions)
        means = [
            self._means(*some)
            for some in zip(
                *(torch.split(of_window, N_HYPOTHESES // 2) for of_window in (inputs[..., 0], selector, start)),
                strict=True,
            )
        ]
        return TrainingBatch(inputs, torch.cat(means), clean)

    def _means(self, mixtures: Tensor, selector: Tensor, start: Tensor) -> Tensor:
        """Posterior means of some windows' components, (n_windows, n_samples, 1)."""
        if self.posterior_mean is None:
            raise ValueError("no posterior mean is asked for")
        others = torch.randint(self.n_starts, (N_HYPOTHESES - len(start),), device=start.device)
        candidates = self.components[:, self._samples(torch.cat([start, others]))]
        means = self.posterior_mean(mixtures, candidates)
        return means[torch.arange(len(start), device=start.device), selector][..., None]

    def _samples(self, start: Tensor) -> Tensor:
        """Where in a realization the samples of windows stand, (n_windows, n_samples)."""
        return self.stride * start[:, None] + torch.arange(self.n_samples, device=start.device)

    def to(self, device: torch.device) -> Self:
        """The same windows on another device."""
        held = {name: getattr(self, name) for name in ("mixtures", "components", "indices", "noise", "gain")}
        return replace(self, **{name: tensor.to(device) for name, tensor in held.items() if tensor is not None})

    def tensors(self) -> tuple[Tensor, Tensor]:
        """The mixtures and the clean components."""
        return self.mixtures, self.components

    def digest(self) -> str:
        """SHA-256 of mixtures, components, window length, choice, noise and gain."""
        held = (self.mixtures, self.components, torch.tensor(self.n_samples), self.indices, self.noise, self.gain)
        return _digest(*held)


@dataclass(frozen=True)
class TensorWindows:
    """Windows that stand in memory as they are.

    Attributes:
        inputs: (n_windows, n_samples, 1 + n_components).
        targets: (n_windows, n_samples, 1).
        noise: Noise that a batch adds to each mixture, (n_windows, n_samples); None: none.
        gain: Factor by which a batch multiplies each mixture and target, (n_windows,), before ``noise`` is added;
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
        """The windows at ``positions``; nobody knows more of them than their targets."""
        inputs, targets = self.batch(positions)
        return TrainingBatch(inputs, targets, targets)

    def subset(self, positions: Tensor) -> Self:
        """The set of the windows at ``positions``, which may repeat; a copy."""
        noise, gain = _at(self.noise, positions), _at(self.gain, positions)
        return replace(self, inputs=self.inputs[positions], targets=self.targets[positions], noise=noise, gain=gain)

    def block_ids(self, positions: Tensor) -> None:
        """Nobody knows which windows of a file are neighbours."""

    def to(self, device: torch.device) -> Self:
        """The same windows on another device."""
        held = {name: getattr(self, name) for name in ("inputs", "targets", "noise", "gain")}
        return replace(self, **{name: tensor.to(device) for name, tensor in held.items() if tensor is not None})

    def tensors(self) -> tuple[Tensor, Tensor]:
        """Inputs and targets."""
        return self.inputs, self.targets

    def digest(self) -> str:
        """SHA-256 of inputs, targets, noise and gain."""
        return _digest(self.inputs, self.targets, self.noise, self.gain)


def batches(windows: WindowDataset, batch_size: int, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """All windows in order, ``batch_size`` at a time."""
    for first in range(0, len(windows), batch_size):
        yield windows.batch(torch.arange(first, min(first + batch_size, len(windows)), device=device))


def block_means(values: Tensor, block_ids: Tensor) -> list[float]:
    """Means of values over the blocks that occur, in order of their numbers.

    Args:
        values: (n_windows,).
        block_ids: The block of each, (n_windows,) of int64.

    >>> block_means(torch.tensor([1.0, 3.0, 8.0]), torch.tensor([0, 0, 2]))
    [2.0, 8.0]
    """
    counts = torch.bincount(block_ids)
    sums = torch.bincount(block_ids, weights=values.double())
    return [float(value) for value in sums[counts > 0] / counts[counts > 0]]


def evenly_spaced(windows: SlidingWindows, n_windows: int) -> SlidingWindows:
    """``n_windows`` of a full set, spread evenly over its starts, each start with all of its selectors.

    As many whole starts as fit into ``n_windows``, but at least one and at most all.
    """
    n_starts = max(1, min(n_windows // windows.n_components, len(windows) // windows.n_components))
    starts = torch.linspace(0, len(windows) // windows.n_components - 1, n_starts, dtype=torch.float64).round()
    numbers = starts.long()[:, None] * windows.n_components + torch.arange(windows.n_components)
    return windows.subset(numbers.flatten())


def _at(of_windows: Tensor | None, positions: Tensor) -> Tensor | None:
    return None if of_windows is None else of_windows[positions]


def _augment(mixture: Tensor, clean: Tensor, gain: Tensor | None, noise: Tensor | None) -> tuple[Tensor, Tensor]:
    """Mixtures and clean components (n_windows, n_samples) with gain, then noise."""
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
