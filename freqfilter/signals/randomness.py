"""Where every random number comes from: realizations named by a noise seed, streams named by a word.

A stream depends on seed, name and indices alone. What epoch 7 draws is therefore known without having drawn
what came before, and a resumed run needs no generator's state to go on.
"""

from __future__ import annotations

import zlib

import numpy as np
from numpy.typing import NDArray

DRAWN_AT_ONCE = 2**20  # samples of a realization


def realization(noise_seed: int, n_samples: int) -> NDArray[np.float64]:
    """Standard normal noise of the realization ``noise_seed``, (n_samples,).

    NumPy's legacy generator, as the original script has it: scaled by the standard deviation these are the
    numbers of ``RandomState(noise_seed).normal(0, noise_std, n_samples)`` to the bit.

    >>> bool((0.1 * realization(1, 5) == np.random.RandomState(1).normal(0, 0.1, 5)).all())
    True
    """
    return np.random.RandomState(noise_seed).standard_normal(n_samples)


def realization_at(noise_seed: int, samples: NDArray[np.int64]) -> NDArray[np.float64]:
    """The noise of a realization at some of its samples alone, however long it is, in the shape of ``samples``.

    >>> bool((realization_at(1, np.array([4, 0])) == realization(1, 5)[[4, 0]]).all())
    True
    """
    random = np.random.RandomState(noise_seed)
    found = np.empty(samples.shape)
    for first in range(0, int(samples.max()) + 1, DRAWN_AT_ONCE):
        part = random.standard_normal(DRAWN_AT_ONCE)
        here = (first <= samples) & (samples < first + DRAWN_AT_ONCE)
        found[here] = part[samples[here] - first]
    return found


def stream(seed: int, name: str, *indices: int) -> np.random.Generator:
    """The generator of the stream ``name``, independent of every other name, index and seed.

    Source: NumPy, ``SeedSequence`` with a ``spawn_key``.
    """
    key = (zlib.crc32(name.encode()), *indices)
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=key)))


def torch_seed(seed: int, name: str) -> int:
    """A 63-bit seed for PyTorch's generators, derived like a stream."""
    return int(stream(seed, name).integers(2**63))
