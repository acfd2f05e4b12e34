"""Bayes-optimal (MMSE) estimator of the components, from the exact posterior over the window's start."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from freqfilter.data.signal_model import SignalModel

CELL_CHUNK = 320_000  # windows × starts computed together: they fit into the processor's cache
MIN_LOG2_WEIGHT = -115.0  # relative to the largest; 2⁻¹¹⁵ is negligible, and smaller values take 10 × as long
SAMPLE_CHUNK = 64  # on a CUDA device, where launching a kernel takes longer than running it
MIN_NOISE_STD = 1e-6  # used for zero noise; the starts that fit best then share the probability


class Posterior(NamedTuple):
    """Posterior means and variances of the components.

    Attributes:
        causal: Means given the samples so far, (n_windows, n_components, n_samples).
        two_sided: Means given the whole window, the same shape.
        causal_variance: Variance around ``causal``, the same shape: its expected squared error, given the window.
        two_sided_variance: Variance around ``two_sided``.
    """

    causal: Tensor
    two_sided: Tensor
    causal_variance: Tensor
    two_sided_variance: Tensor


@dataclass(frozen=True)
class MMSEEstimator:
    """Posterior means of the components over all starts of a window.

    Attributes:
        components: The clean components, (n_components, signal length), float32; or concatenated segments of them.
        noise_std: Standard deviation of the noise on the mixture.
        n_samples: Length of a window.
        first_start: First start considered.
        start_step: Step between the starts considered; 1: all of them.
    """

    components: Tensor
    noise_std: float
    n_samples: int
    first_start: int = 0
    start_step: int = 1

    @classmethod
    def from_model(cls, model: SignalModel, *, n_samples: int, first_start: int = 0, start_step: int = 1) -> Self:
        """Create the estimator for windows of ``n_samples`` samples of a signal model."""
        if start_step > n_samples:  # keep only the segments considered, concatenated
            starts = np.arange(first_start, model.n_samples - n_samples + 1, start_step)
            samples = (starts[:, None] + np.arange(n_samples)).flatten()
            first_start, start_step = 0, n_samples
        else:
            samples = np.arange(model.n_samples)
        return cls(
            torch.from_numpy(model.clean_in_float32(samples)), model.noise_std, n_samples, first_start, start_step
        )

    @property
    def n_starts(self) -> int:
        """Number of starts considered."""
        return (self.components.shape[1] - self.n_samples - self.first_start) // self.start_step + 1

    def posterior(self, mixtures: Tensor) -> Posterior:
        """Compute the posterior of each window's components after each sample, and after all of them.

        Args:
            mixtures: (n_windows, n_samples).
        """
        chunk_size = max(1, CELL_CHUNK // self.n_starts)
        parts = [self._posterior(chunk) for chunk in torch.split(mixtures, chunk_size)]
        return Posterior(*(torch.cat(chunks) for chunks in zip(*parts, strict=True)))

    def _posterior(self, mixtures: Tensor) -> Posterior:
        mixture = self.components.mean(dim=0)
        one = torch.ones_like(mixture)[None]
        moments = torch.cat([self.components, self.components.square(), one])
        sample_moments = [moments[:, self._starts(sample)].T for sample in range(self.n_samples)]
        candidates = [mixture[self._starts(sample)] for sample in range(self.n_samples)]
        causal = []
        for weights, values in zip(_weights(mixtures, candidates, self.noise_std), sample_moments, strict=True):
            causal.append(weights @ values)
        two_sided = [weights @ values for values in sample_moments]
        means, variances = zip(*map(self._mean_and_variance, (causal, two_sided)), strict=True)
        return Posterior(*means, *variances)

    def _mean_and_variance(self, moments: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Mean and variance (n_windows, n_components, n_samples) from each sample's weighted values, squares, ones."""
        n_components = len(self.components)
        sums = torch.stack(moments, dim=2)
        total = sums[:, -1:]
        mean = sums[:, :n_components] / total
        return mean, (sums[:, n_components:-1] / total - mean**2).clamp(min=0)

    def _starts(self, sample: int) -> slice:
        """Positions in the signal of a sample of the window, one for each start."""
        first = self.first_start + sample
        return slice(first, first + (self.n_starts - 1) * self.start_step + 1, self.start_step)


def posterior_mean(mixtures: Tensor, candidates: Tensor, *, noise_std: float, two_sided: bool) -> Tensor:
    """Posterior means of the components, given equally likely candidate segments of the clean signal.

    Args:
        mixtures: (n_windows, n_samples).
        candidates: The components of each segment, (n_components, n_candidates, n_samples).
        noise_std: Standard deviation of the noise on the mixture.
        two_sided: Whether to condition on the whole window, or on the samples so far.

    Returns:
        (n_windows, n_components, n_samples).
    """
    ones = torch.ones_like(candidates[:1])
    sample_values = torch.cat([candidates, ones]).permute(2, 1, 0).contiguous()
    expected = candidates.mean(dim=0).T.contiguous()
    if mixtures.is_cuda:
        all_weights = _weights_in_blocks(mixtures, expected, noise_std)
    else:
        all_weights = _weights(mixtures, list(expected), noise_std)
    if two_sided:
        (weights,) = deque(all_weights, maxlen=1)
        sums = [weights @ values for values in sample_values]
    else:
        sums = [weights @ values for weights, values in zip(all_weights, sample_values, strict=True)]
    means = torch.stack(sums, dim=2)
    return means[:, :-1] / means[:, -1:]


def _weights(mixtures: Tensor, candidates: Sequence[Tensor], noise_std: float) -> Iterator[Tensor]:
    """Yield the relative likelihood of each candidate after each sample, (n_windows, n_candidates), maximum 1.

    All of them share one buffer. ``candidates`` are noise-free mixtures, (n_candidates,) for each sample.
    """
    precision = _precision(noise_std)
    log_weights = mixtures.new_zeros(len(mixtures), len(candidates[0]))
    weights = torch.empty_like(log_weights)
    for observed, candidate in zip(mixtures.T, candidates, strict=True):
        torch.sub(observed[:, None], candidate, out=weights)
        log_weights.addcmul_(weights, weights, value=-precision)
        log_weights.sub_(log_weights.amax(dim=1, keepdim=True))
        torch.clamp(log_weights, min=MIN_LOG2_WEIGHT, out=weights)
        yield weights.exp2_()


def _weights_in_blocks(mixtures: Tensor, candidates: Tensor, noise_std: float) -> Iterator[Tensor]:
    """``_weights`` for candidates (n_samples, n_candidates), in fewer operations and with more memory."""
    log_weights = mixtures.new_zeros(len(mixtures), candidates.shape[1])
    blocks = (torch.split(values, SAMPLE_CHUNK) for values in (mixtures.T.contiguous(), candidates))
    for observed, candidate in zip(*blocks, strict=True):
        distances = (observed[:, :, None] - candidate[:, None]).square_()
        # A matrix product: torch.cumsum is not deterministic on CUDA.
        sums = (mixtures.new_ones(len(observed), len(observed)).tril_() @ distances.flatten(1)).view_as(distances)
        block_weights = torch.sub(log_weights, sums, alpha=_precision(noise_std))
        block_weights -= block_weights.amax(dim=2, keepdim=True)
        log_weights = block_weights[-1]
        yield from block_weights.clamp(min=MIN_LOG2_WEIGHT).exp2_()


def _precision(noise_std: float) -> float:
    """Factor of a squared distance in the log2 of a likelihood; ``exp2`` is faster than ``exp`` in PyTorch."""
    return 1 / (2 * max(noise_std, MIN_NOISE_STD) ** 2) / math.log(2)


class WindowMMSE:
    """MMSE estimator with the call signature of a filter, so that the same code evaluates both.

    Args:
        estimator: The estimator for windows of the inputs' length.
        two_sided: Whether an estimate uses the whole window, or the samples so far.
    """

    def __init__(self, estimator: MMSEEstimator, *, two_sided: bool = False) -> None:
        self._estimator = estimator
        self._two_sided = two_sided
        self._cache: list[tuple[Tensor, Posterior, Tensor]] = []  # of the last inputs

    def other_view(self) -> Self:
        """Return the estimator with the other view of the window; both share one cache."""
        other = type(self)(self._estimator, two_sided=not self._two_sided)
        other._cache = self._cache
        return other

    def __call__(self, inputs: Tensor) -> Tensor:
        """Estimates (n_windows, n_samples, 1) of inputs (n_windows, n_samples, 1 + n_components).

        Raises:
            ValueError: If the windows are of another length.
        """
        if inputs.shape[1] != self._estimator.n_samples:
            raise ValueError(f"windows of {inputs.shape[1]} samples, estimator for {self._estimator.n_samples}")
        if not self._cache or self._cache[0][0] is not inputs:
            # The windows of a start have the same mixture, one for each selector.
            mixtures, rows = torch.unique(inputs[..., 0].cpu(), dim=0, return_inverse=True)
            self._cache[:] = [(inputs, self._estimator.posterior(mixtures), rows)]
        _, posterior, rows = self._cache[0]
        estimates = posterior.two_sided if self._two_sided else posterior.causal
        selected = inputs[:, 0, 1:].argmax(dim=1).cpu()
        return estimates[rows, selected][..., None].to(inputs.device)
