"""The Bayes-optimal (MMSE) estimator of the components: an exact posterior over the window's start."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor

from freqfilter.data.signal_model import SignalModel, segment_samples

CELL_CHUNK = 320_000  # windows × starts that are in memory together, so that they stay in the processor's cache
LOWEST = -115.0  # log2 of a probability beside the highest: 2⁻¹¹⁵ is nothing, and what is less takes ten times as long
SAMPLE_CHUNK = 64  # on a CUDA device, which takes longer to begin a step than to do it
MIN_NOISE_STD = 1e-6  # stands for no noise; the starts that fit best then share the probability


@dataclass(frozen=True)
class Posterior:
    """Means of the components, and the variances around them that remain.

    Attributes:
        causal: From the samples so far, (n_windows, n_components, n_samples).
        two_sided: From the whole window, the same shape.
        causal_variance: Around ``causal``, the same shape: its expected squared error, given the window.
        two_sided_variance: Around ``two_sided``.
    """

    causal: Tensor
    two_sided: Tensor
    causal_variance: Tensor
    two_sided_variance: Tensor


@dataclass(frozen=True)
class MMSEEstimator:
    """The posterior over the starts of a window, and what follows from it.

    Attributes:
        components: The clean components, (n_components, signal length), float32; or stretches of them, end to end.
        noise_std: Standard deviation of the noise on the mixture.
        n_samples: Length of a window.
        first_start: The first start that is considered.
        start_step: From one considered start to the next; 1: all of them.
    """

    components: Tensor
    noise_std: float
    n_samples: int
    first_start: int = 0
    start_step: int = 1

    @classmethod
    def from_model(cls, model: SignalModel, *, n_samples: int, first_start: int = 0, start_step: int = 1) -> Self:
        """The limit for windows of ``n_samples`` of a signal model."""
        samples = None
        if start_step > n_samples:  # of so long a signal only the stretches that are considered are held, end to end
            starts = np.arange(first_start, model.n_samples - n_samples + 1, start_step)
            samples, first_start, start_step = segment_samples(starts, n_samples), 0, n_samples
        components = torch.from_numpy(model.clean(samples)).float()
        return cls(components, model.noise_std, n_samples, first_start, start_step)

    @property
    def n_starts(self) -> int:
        """How many starts are considered."""
        return (self.components.shape[1] - self.n_samples - self.first_start) // self.start_step + 1

    def posterior(self, mixtures: Tensor) -> Posterior:
        """What is known of each window's components after each sample, and after all of them.

        Args:
            mixtures: (n_windows, n_samples).
        """
        at_once = max(1, CELL_CHUNK // self.n_starts)
        parts = [self._posterior(some) for some in torch.split(mixtures, at_once)]
        names = Posterior.__dataclass_fields__
        return Posterior(**{name: torch.cat([getattr(part, name) for part in parts]) for name in names})

    def _posterior(self, mixtures: Tensor) -> Posterior:
        mixture = self.components.mean(dim=0)
        one = torch.ones_like(mixture)[None]
        moments = torch.cat([self.components, self.components.square(), one])
        of_samples = [moments[:, self._starts(sample)].T for sample in range(self.n_samples)]
        candidates = [mixture[self._starts(sample)] for sample in range(self.n_samples)]
        causal = []
        for weights, of_sample in zip(_weights(mixtures, candidates, self.noise_std), of_samples, strict=True):
            causal.append(weights @ of_sample)
        two_sided = [weights @ of_sample for of_sample in of_samples]
        (causal_mean, causal_variance), (mean, variance) = (self._mean_and_variance(of) for of in (causal, two_sided))
        return Posterior(causal_mean, mean, causal_variance, variance)

    def _mean_and_variance(self, moments: list[Tensor]) -> tuple[Tensor, Tensor]:
        """From weighted sums of values, squares and ones for each sample, both (n_windows, n_components, n_samples)."""
        n_components = len(self.components)
        sums = torch.stack(moments, dim=2)
        total = sums[:, -1:]
        mean = sums[:, :n_components] / total
        return mean, (sums[:, n_components:-1] / total - mean**2).clamp(min=0)

    def _starts(self, sample: int) -> slice:
        """Where in the signal a sample of the window stands, for each start."""
        first = self.first_start + sample
        return slice(first, first + (self.n_starts - 1) * self.start_step + 1, self.start_step)


def posterior_mean(mixtures: Tensor, candidates: Tensor, *, noise_std: float, two_sided: bool) -> Tensor:
    """Means of the components where a window is one of these stretches of the clean signal, each equally likely.

    Args:
        mixtures: (n_windows, n_samples).
        candidates: The components of each stretch, (n_components, n_candidates, n_samples).
        noise_std: Standard deviation of the noise on the mixture.
        two_sided: Whether a mean is given the whole window, or the samples so far.

    Returns:
        (n_windows, n_components, n_samples).
    """
    ones = torch.ones_like(candidates[:1])
    of_samples = torch.cat([candidates, ones]).permute(2, 1, 0).contiguous()
    expected = candidates.mean(dim=0).T.contiguous()
    if mixtures.is_cuda:
        all_weights = _weights_in_blocks(mixtures, expected, noise_std)
    else:
        all_weights = _weights(mixtures, list(expected), noise_std)
    if two_sided:
        (weights,) = deque(all_weights, maxlen=1)
        sums = [weights @ of_sample for of_sample in of_samples]
    else:
        sums = [weights @ of_sample for weights, of_sample in zip(all_weights, of_samples, strict=True)]
    means = torch.stack(sums, dim=2)
    return means[:, :-1] / means[:, -1:]


def _weights(mixtures: Tensor, candidates: Sequence[Tensor], noise_std: float) -> Iterator[Tensor]:
    """How likely each candidate is after each sample, (n_windows, n_candidates), the likeliest 1.

    All of them are the same memory.

    Args:
        mixtures: (n_windows, n_samples).
        candidates: What the mixture would be without noise, for each sample (n_candidates,).
        noise_std: Standard deviation of the noise.
    """
    precision = _precision(noise_std)
    log_weights = mixtures.new_zeros(len(mixtures), len(candidates[0]))
    weights = torch.empty_like(log_weights)
    for seen, candidate in zip(mixtures.T, candidates, strict=True):
        torch.sub(seen[:, None], candidate, out=weights)
        log_weights.addcmul_(weights, weights, value=-precision)
        log_weights.sub_(log_weights.amax(dim=1, keepdim=True))
        torch.clamp(log_weights, min=LOWEST, out=weights)
        yield weights.exp2_()


def _weights_in_blocks(mixtures: Tensor, candidates: Tensor, noise_std: float) -> Iterator[Tensor]:
    """The same of candidates (n_samples, n_candidates), in few operations on much memory."""
    log_weights = mixtures.new_zeros(len(mixtures), candidates.shape[1])
    blocks = (torch.split(of_samples, SAMPLE_CHUNK) for of_samples in (mixtures.T.contiguous(), candidates))
    for seen, candidate in zip(*blocks, strict=True):
        distances = (seen[:, :, None] - candidate[:, None]).square_()
        # PyTorch's cumulative sum is not repeatable on CUDA.
        so_far = (mixtures.new_ones(len(seen), len(seen)).tril_() @ distances.flatten(1)).view_as(distances)
        of_block = torch.sub(log_weights, so_far, alpha=_precision(noise_std))
        of_block -= of_block.amax(dim=2, keepdim=True)
        log_weights = of_block[-1]
        yield from of_block.clamp(min=LOWEST).exp2_()


def _precision(noise_std: float) -> float:
    """What a squared distance is worth in the log2 of a probability; PyTorch's exp2 is faster than its exp."""
    return 1 / (2 * max(noise_std, MIN_NOISE_STD) ** 2) / math.log(2)


class WindowMMSE:
    """The limit as an extractor, so that it is judged by the same code as every filter.

    Args:
        limit: For windows of the length that will be asked about.
        two_sided: Whether an estimate uses the whole window, or the samples so far.
    """

    def __init__(self, limit: MMSEEstimator, *, two_sided: bool = False) -> None:
        self._limit = limit
        self._two_sided = two_sided
        self._asked: list[tuple[Tensor, Posterior, Tensor]] = []

    def other_view(self) -> Self:
        """The limit with the other view of the window; what one has computed, the other has not to."""
        other = type(self)(self._limit, two_sided=not self._two_sided)
        other._asked = self._asked
        return other

    def __call__(self, inputs: Tensor) -> Tensor:
        """Estimates (n_windows, n_samples, 1) of inputs (n_windows, n_samples, 1 + n_components).

        Raises:
            ValueError: If the windows are of another length.
        """
        if inputs.shape[1] != self._limit.n_samples:
            raise ValueError(f"windows of {inputs.shape[1]} samples, and a limit for {self._limit.n_samples}")
        if not self._asked or self._asked[0][0] is not inputs:
            # The windows of a start have the same mixture, one for each selector.
            mixtures, place = torch.unique(inputs[..., 0].cpu(), dim=0, return_inverse=True)
            self._asked[:] = [(inputs, self._limit.posterior(mixtures), place)]
        _, posterior, place = self._asked[0]
        estimates = posterior.two_sided if self._two_sided else posterior.causal
        selected = inputs[:, 0, 1:].argmax(dim=1).cpu()
        return estimates[place, selected][..., None].to(inputs.device)
