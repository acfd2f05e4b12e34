"""State of a training: network, optimizer, progress and random generators."""

from __future__ import annotations

import copy
import math
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from freqfilter.config import ModelParams, TrainingParams
from freqfilter.data.signal_model import torch_seed
from freqfilter.data.windows import TrainingBatch
from freqfilter.models.network import FrequencyFilterLSTM
from freqfilter.training.device import Accelerator
from freqfilter.training.optim import create_optimizers
from freqfilter.training.reports import EpochReport


@dataclass
class Progress:
    """Counters and history of a training."""

    epoch: int = 1
    batch: int = 0
    seconds: float = 0.0
    best_loss: float = math.inf
    best_epoch: int = 0
    validations_since_best: int = 0
    stopped_early: bool = False
    history: list[EpochReport] = field(default_factory=list)

    @property
    def best(self) -> EpochReport:
        """Report of the best epoch; it exists after the first validation."""
        return self.history[self.best_epoch - 1]


class TrainingState:
    """State of a training: network, optimizers, scheduler, scaler, random states, best weights, counters, history."""

    def __init__(
        self,
        *,
        n_components: int,
        model: ModelParams,
        training: TrainingParams,
        accelerator: Accelerator,
        selector: bool = True,
    ) -> None:
        self.accelerator = accelerator
        cuda_devices = [accelerator.device] if accelerator.device.type == "cuda" else []
        with torch.random.fork_rng(devices=cuda_devices):
            torch.manual_seed(torch_seed(training.seed, "weights"))
            self.network = FrequencyFilterLSTM(n_components=n_components, selector=selector, **model.model_dump())
            if training.chrono_t_max is not None:
                initialize_chrono(self.network.recurrent, training.chrono_t_max)
            torch.manual_seed(torch_seed(training.seed, "dropout"))
            self._randomness = _read_generators(accelerator)
        self.network.to(accelerator.device)
        self.optimizers = create_optimizers(self.network, training, dtype=accelerator.dtype or torch.float32)
        self._plateau: ReduceLROnPlateau | None = None
        if training.scheduler == "plateau" and training.scheduler_factor < 1:
            factor, patience = training.scheduler_factor, training.scheduler_patience
            # With a negative loss a relative threshold would count a slightly worse one as better.
            mode: Literal["abs", "rel"] = "abs" if training.loss == "snr" else "rel"
            self._plateau = ReduceLROnPlateau(self.optimizers[0], factor=factor, patience=patience, threshold_mode=mode)
        # In float16 small gradients underflow unless the loss is scaled up.
        self.scaler = torch.amp.GradScaler(accelerator.device.type, enabled=accelerator.dtype is torch.float16)
        self.best_weights: dict[str, Tensor] = copy.deepcopy(self.network.state_dict())
        # For a diverging training: the last weights with a finite loss, and later ones whose loss is still unknown.
        self.good_weights = self.best_weights
        self._untried_weights = self.best_weights
        self._untried_since = 0
        # Sums over the epoch's batches: losses, gradient norms, number of finite norms, and number of batches before
        # the first loss that is not finite. They stay on the device: reading them after every step would synchronize
        # with it.
        self.sums = torch.zeros(4, dtype=torch.float64, device=accelerator.device)
        self._carried: Any = None  # state of the network after the last chunk of the present recordings
        self.progress = Progress()

    @property
    def learning_rate(self) -> float:
        """Current learning rate of all optimizers."""
        return float(self.optimizers[0].param_groups[0]["lr"])

    @learning_rate.setter
    def learning_rate(self, value: float) -> None:
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = value

    @property
    def n_parameters(self) -> int:
        """Number of trainable parameters of the network."""
        return sum(parameter.numel() for parameter in self.network.parameters() if parameter.requires_grad)

    def estimates(self, batch: TrainingBatch) -> Tensor:
        """Estimates of a training step; the network's state is carried over from the last chunk of recordings."""
        if batch.continues is None:
            estimates: Tensor = self.network(batch.inputs)
            return estimates
        estimates, carried = self.network.forward_with_state(batch.inputs, self._carried if batch.continues else None)
        self._carried = _map_tensors(Tensor.detach, carried)
        return estimates

    def cut_learning_rate_on_plateau(self, loss: float) -> None:
        """Pass a validation loss to the plateau scheduler, if there is one."""
        if self._plateau:
            self._plateau.step(loss)
            self.learning_rate = self.learning_rate  # the scheduler sets that of the first optimizer only

    def save_best_weights(self) -> None:
        """Save the current weights as the best ones."""
        self.best_weights = copy.deepcopy(self.network.state_dict())

    def save_good_weights(self, *, n_finite: int) -> None:
        """Save the current weights; those of the last call become ``good_weights`` if a later loss was finite.

        ``n_finite`` is the number of batches of this epoch before the first loss that is not finite.
        """
        if n_finite > self._untried_since:
            self.good_weights = self._untried_weights
        self._untried_weights = copy.deepcopy(self.network.state_dict())
        self._untried_since = self.progress.batch

    def begin_epoch(self) -> None:
        """Advance to the first batch of the next epoch."""
        self.progress.epoch += 1
        self.progress.batch = 0
        self.progress.seconds = 0.0
        self.sums.zero_()
        self._untried_since = 0

    def start_from(self, weights: dict[str, Tensor]) -> None:
        """Load the initial weights from a network with the same arguments."""
        self.network.load_state_dict(self._current_names(weights))
        self.save_best_weights()
        self.good_weights = self._untried_weights = self.best_weights

    @contextmanager
    def randomness(self) -> Iterator[None]:
        """Use this training's random state in PyTorch's global generators, which dropout uses, inside the block."""
        global_state = _read_generators(self.accelerator)
        _set_generators(self._randomness)
        try:
            yield
        finally:
            self._randomness = _read_generators(self.accelerator)
            _set_generators(global_state)

    def state_dict(self) -> dict[str, Any]:
        """The state as tensors and plain values, which ``torch.load(weights_only=True)`` can read."""
        return {
            "network": self.network.state_dict(),
            "best_weights": self.best_weights,
            "good_weights": self.good_weights,
            "untried_weights": self._untried_weights,
            "untried_since": self._untried_since,
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "plateau": self._plateau.state_dict() if self._plateau else {},
            "scaler": self.scaler.state_dict(),
            "randomness": self._randomness,
            "sums": self.sums.clone(),
            "carried": self._carried,
            "progress": asdict(self.progress),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state from ``state_dict``."""
        self.network.load_state_dict(self._current_names(state["network"]))
        self.best_weights = self._current_names(state["best_weights"])
        for optimizer, stored in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(stored)
        if self._plateau:
            self._plateau.load_state_dict(state["plateau"])
        self.scaler.load_state_dict(state["scaler"])
        self._randomness = dict(state["randomness"])
        self.sums.copy_(state["sums"])
        self._carried = _map_tensors(lambda tensor: tensor.to(self.accelerator.device), state.get("carried"))
        progress = dict(state["progress"])
        progress["history"] = [EpochReport(**report) for report in progress["history"]]
        self.progress = Progress(**progress)
        self.good_weights = self._current_names(state["good_weights"])
        self._untried_weights = self._current_names(state["untried_weights"])
        self._untried_since = state["untried_since"]

    def _current_names(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """Copy a state dict with the present names of its layers."""
        names = {"recurrent": self.network.cell, "output": "fc"}  # up to checkpoint schema 4 and model schema 1
        renamed = OrderedDict[str, Tensor]()
        for key, tensor in weights.items():
            layer, _, rest = key.partition(".")
            renamed[f"{names.get(layer, layer)}.{rest}"] = tensor.clone()
        return renamed


@torch.no_grad()
def initialize_chrono(recurrent: nn.Module, t_max: float) -> None:
    """Initialize the gates of an LSTM or a GRU for memories from 1 to ``t_max`` samples, uniform in their logarithm.

    A hidden feature with memory T keeps T / (T + 1) of its value from a sample to the next while the gates' other
    inputs are zero. An LSTM's input gate is then 1 / (T + 1).

    Source: chrono initialization, C. Tallec and Y. Ollivier, "Can recurrent neural networks warp time?", 2018. Memories
    are uniform there; uniform in their logarithm, features of each time scale are about as many.
    """
    parameters = dict(recurrent.named_parameters())
    for name, bias in parameters.items():
        if not name.startswith("bias_ih"):
            continue
        # Rows are the gates of an LSTM (input, forget, cell, output) or of a GRU (reset, update, new).
        n_gates = 4 if isinstance(recurrent, nn.LSTM) else 3
        of_input, of_hidden = (
            part.view(n_gates, -1) for part in (bias, parameters[name.replace("bias_ih", "bias_hh")])
        )
        of_input[1], of_hidden[1] = math.log(t_max) * torch.rand(of_input.shape[1]), 0
        if isinstance(recurrent, nn.LSTM):
            of_input[0], of_hidden[0] = -of_input[1], 0


def _map_tensors(function: Callable[[Tensor], Tensor], state: Any) -> Any:
    """Apply a function to a network's state: a tensor, a tuple of states, or None."""
    if isinstance(state, tuple):
        return tuple(_map_tensors(function, part) for part in state)
    return None if state is None else function(state)


def _read_generators(accelerator: Accelerator) -> dict[str, Tensor]:
    generators = {"cpu": torch.get_rng_state()}
    if accelerator.device.type == "cuda":
        generators["cuda"] = torch.cuda.get_rng_state(accelerator.device)
    return generators


def _set_generators(generators: dict[str, Tensor]) -> None:
    torch.set_rng_state(generators["cpu"])
    if "cuda" in generators:
        torch.cuda.set_rng_state(generators["cuda"])
