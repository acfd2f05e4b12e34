"""The network. It imports torch alone: a copy of this file is stored with, and loaded from, each registered model."""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import torch
from torch import Tensor, nn

# Constructors of a cell's layers: PyTorch's recurrent layers, or a module with the same arguments that maps features
# (n_samples, n_windows, input_size) and a state or None to (n_samples, n_windows, n_directions · hidden_size) and a
# state.
CELLS: dict[str, Callable[..., nn.Module]] = {"lstm": nn.LSTM, "gru": nn.GRU}

MAX_SAMPLES_TOGETHER = 2**17  # of the windows or recordings that one thread computes together


class Dropout(nn.Dropout):
    """Dropout with 16 random bits per element on CPUs, in a third of the time of ``nn.Dropout``.

    The probability is rounded to a multiple of 2⁻¹⁶.
    """

    def forward(self, features: Tensor) -> Tensor:
        """Zero elements at random and scale the others; the identity in evaluation mode."""
        threshold = min(round(self.p * 2**16), 2**16 - 1)
        if not self.training or threshold == 0 or features.is_cuda:
            return super().forward(features)
        words = torch.empty(math.ceil(features.numel() / 4), dtype=torch.int64).random_(-(2**63), None)
        bits = words.view(torch.int16)[: features.numel()].view(features.shape)
        kept = (bits >= threshold - 2**15).to(features.dtype)
        return features * kept.mul_(1 / (1 - threshold / 2**16))


class FrequencyFilterLSTM(nn.Module):
    """Recurrent filter that estimates the components of a mixture, sample by sample.

    With a selector the network is one of windows: a one-hot vector beside each sample selects the component that is
    estimated. Without, it is one of recordings: it estimates all components, and its state can be carried through a
    recording of any length.

    Args:
        n_components: Number of components.
        cell: A key of ``CELLS``.
        hidden_size: Features of the hidden state.
        num_layers: Number of stacked recurrent layers.
        dropout: Dropout probability between the layers and before the output.
        bidirectional: Also run backwards from the last sample; an estimate then uses later samples too.
        selector: Whether the inputs select a component.

    Attributes:
        arguments: Arguments of ``create_network``.

    Its state dict has the keys ``lstm.*`` (or ``gru.*``) and ``fc.*``, with the names and shapes of PyTorch's layers.

    >>> kind = {"cell": "lstm", "hidden_size": 128, "num_layers": 2, "dropout": 0.2, "bidirectional": False}
    >>> sum(p.numel() for p in FrequencyFilterLSTM(n_components=4, **kind).parameters())
    201345
    """

    def __init__(
        self,
        *,
        n_components: int,
        cell: str,
        hidden_size: int,
        num_layers: int,
        dropout: float,
        bidirectional: bool,
        selector: bool = True,
    ) -> None:
        super().__init__()
        self.arguments = {
            "n_components": n_components,
            "selector": selector,
            "cell": cell,
            "hidden_size": hidden_size,
            "num_layers": num_layers,
            "dropout": dropout,
            "bidirectional": bidirectional,
        }
        self.n_components = n_components
        self.selector = selector
        self.cell = cell
        layers = CELLS[cell](
            input_size=1 + n_components if selector else 1,
            hidden_size=hidden_size,
            num_layers=num_layers,
            dropout=dropout if num_layers > 1 else 0.0,
            bidirectional=bidirectional,
        )
        self.add_module(cell, layers)
        self.dropout = Dropout(dropout)
        self.fc = nn.Linear(hidden_size * (2 if bidirectional else 1), 1 if selector else n_components)

    @property
    def recurrent(self) -> nn.Module:
        """The layers of the cell: the submodule ``lstm`` or ``gru``."""
        return self.get_submodule(self.cell)

    def forward(self, inputs: Tensor) -> Tensor:
        """Estimates of inputs of any number of windows or recordings and samples.

        Args:
            inputs: (n_windows, n_samples, 1 + n_components); without a selector (n_recordings, n_samples).

        Returns:
            (n_windows, n_samples, 1); without a selector (n_recordings, n_samples, n_components).
        """
        return self.forward_with_state(inputs)[0]

    def forward_with_state(self, inputs: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """Estimates as ``forward`` gives them, and the state after the last sample.

        Args:
            inputs: As in ``forward``.
            state: State returned by an earlier call, to continue from; None starts from zero.
        """
        features = inputs if self.selector else inputs[..., None]
        time_first = features.transpose(0, 1).contiguous()
        recurrent = self.recurrent
        if self.training and isinstance(recurrent, nn.RNNBase) and recurrent.dropout:
            features, state = self._layer_by_layer(recurrent, time_first, state)
        else:
            features, state = recurrent(time_first, state)
        return self.fc(self.dropout(features)).transpose(0, 1), state

    def _layer_by_layer(self, recurrent: nn.RNNBase, inputs: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Output of the recurrent layers and their state, with ``Dropout`` between them.

        cuDNN's dropout has a random state that a checkpoint cannot store, so a resumed training would differ.
        """
        features = inputs
        n_directions = 2 if recurrent.bidirectional else 1
        parts = state if isinstance(state, tuple) else (state,)  # hidden and cell of an LSTM, hidden of a GRU
        if state is None:
            zeros = inputs.new_zeros(n_directions * recurrent.num_layers, inputs.shape[1], recurrent.hidden_size)
            parts = (zeros, zeros) if isinstance(recurrent, nn.LSTM) else (zeros,)
        after = []
        for layer in range(recurrent.num_layers):
            of_layer = slice(n_directions * layer, n_directions * (layer + 1))
            weights: list[Tensor] = [weight for direction in recurrent.all_weights[of_layer] for weight in direction]
            if layer > 0:
                features = self.dropout(features)
            if features.is_cuda:
                weights = _in_one_piece(weights)
            before = tuple(part[of_layer].contiguous() for part in parts)
            # has_biases, num_layers, dropout, train, bidirectional, batch_first.
            settings = True, 1, 0.0, True, recurrent.bidirectional, False
            if isinstance(recurrent, nn.LSTM):
                features, *ended = torch.lstm(features, before, weights, *settings)
            else:
                features, *ended = torch.gru(features, before[0], weights, *settings)
            after.append(ended)
        joined = tuple(torch.cat(part) for part in zip(*after, strict=True))
        return features, joined if isinstance(recurrent, nn.LSTM) else joined[0]


def _in_one_piece(weights: list[Tensor]) -> list[Tensor]:
    """A layer's weights in one contiguous buffer, as cuDNN requires: the matrices of all directions, then the biases.

    Otherwise cuDNN copies them, and PyTorch warns, at each call.
    """
    order = sorted(range(len(weights)), key=lambda place: weights[place].dim(), reverse=True)
    piece = torch.cat([weights[place].flatten() for place in order])
    parts = torch.split(piece, [weights[place].numel() for place in order])
    placed = {place: part.view_as(weights[place]) for place, part in zip(order, parts, strict=True)}
    return [placed[place] for place in range(len(weights))]


class KalmanFilter(nn.Module):
    """Kalman filter of the components of recordings, with the call signature of a network of recordings.

    It computes in float64. Its state dict has the matrices of the signal model: the transition of the quadratures from
    a sample to the next, their prior and driving variances, their weights in the mixture, and the noise's variance.

    Args:
        n_components: Number of components; each has two quadratures, the component itself first.
    """

    def __init__(self, *, n_components: int) -> None:
        super().__init__()
        self.arguments = {"n_components": n_components, "selector": False, "cell": "kalman", "bidirectional": False}
        n_states = 2 * n_components
        self.n_components = n_components
        self.cell = "kalman"
        self.selector = False
        self.transition: Tensor
        self.prior: Tensor
        self.driving: Tensor
        self.observed: Tensor
        self.noise_variance: Tensor
        self.register_buffer("transition", torch.zeros(n_states, n_states, dtype=torch.float64))
        for name in ("prior", "driving", "observed"):
            self.register_buffer(name, torch.zeros(n_states, dtype=torch.float64))
        self.register_buffer("noise_variance", torch.ones((), dtype=torch.float64))

    def forward(self, inputs: Tensor) -> Tensor:
        """Estimates (n_recordings, n_samples, n_components) of mixtures (n_recordings, n_samples)."""
        return self.forward_with_state(inputs)[0]

    def forward_with_state(self, inputs: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """Estimates as ``forward`` gives them, and mean and covariance of the quadratures after the last sample.

        Args:
            inputs: (n_recordings, n_samples).
            state: State returned by an earlier call, to continue from; None starts from the prior.
        """
        mean, covariance = state or (self.prior.new_zeros(len(inputs), len(self.prior)), None)
        estimates = []
        for samples in inputs.double().T:
            if covariance is None:  # the first sample
                covariance = torch.diag(self.prior)
            else:
                mean = mean @ self.transition.T
                covariance = self.transition @ covariance @ self.transition.T + torch.diag(self.driving)
            cross = covariance @ self.observed
            gain = cross / (self.observed @ cross + self.noise_variance)
            mean = mean + torch.outer(samples - mean @ self.observed, gain)
            covariance = covariance - torch.outer(gain, cross)
            estimates.append(mean[:, ::2])
        return torch.stack(estimates, dim=1).to(inputs.dtype), (mean, covariance)


def create_network(*, cell: str, **arguments: Any) -> nn.Module:
    """Create the network of a version from its arguments; ``cell`` is a key of ``CELLS``, or ``kalman``."""
    if cell == "kalman":
        return KalmanFilter(n_components=arguments["n_components"])
    return FrequencyFilterLSTM(cell=cell, **arguments)


def estimate(module: nn.Module, inputs: Tensor, *, batch_size: int = 192) -> Tensor:
    """Compute a module's estimates for any number of windows or recordings.

    On CPUs each thread computes its own batches: the matrix products of one batch are too small to be split.

    Args:
        module: A network in evaluation mode.
        inputs: (n_windows, n_samples, 1 + n_components), or (n_recordings, n_samples).
        batch_size: Windows computed together by one thread; fewer if they are longer than some hundred samples.

    Returns:
        (n_windows, n_samples, 1), or (n_recordings, n_samples, n_components).
    """
    n_together = max(1, min(batch_size, MAX_SAMPLES_TOGETHER // max(1, inputs.shape[1])))
    batches, threads = torch.split(inputs, n_together), torch.get_num_threads()

    def of_batch(batch: Tensor) -> Tensor:
        with torch.inference_mode():  # the mode is local to a thread
            return cast(Tensor, module(batch))

    if len(inputs) == 0:
        return inputs.new_zeros((*inputs.shape[:2], 1 if inputs.dim() == 3 else cast(Any, module).n_components))
    if inputs.is_cuda or threads == 1 or len(batches) == 1:
        return torch.cat([of_batch(batch) for batch in batches])
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return torch.cat(list(pool.map(of_batch, batches)))
    finally:
        torch.set_num_threads(threads)  # the last value set is the default of new threads
