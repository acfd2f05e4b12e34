"""The reference: a plain training script like the original, deliberately not optimized.

All windows are in memory, a `DataLoader` collates them one by one, everything is float32, and the loss is read after
each step. CUDA is used if available, with PyTorch's defaults. It imports nothing of this package; the noise is that of
NumPy's generator.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

BATCH_SIZE = 64
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


class Filter(nn.Module):
    """Network of the original."""

    def __init__(self, dropout: float = 0.2) -> None:
        super().__init__()
        self.lstm = nn.LSTM(5, 128, num_layers=2, batch_first=True, dropout=dropout)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(128, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Compute estimates (batch, time, 1) from inputs (batch, time, 5)."""
        features, _ = self.lstm(x)
        return self.fc(self.dropout(features))


def windows(noise_seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return all windows of a realization: inputs (39804, 50, 5) and targets (39804, 50, 1)."""
    t = np.linspace(0, 10, 10_000)
    components = np.stack([np.sin(2 * np.pi * f * t + np.deg2rad(45 * k)) for k, f in enumerate((1, 3, 5, 7))])
    mixture = components.mean(axis=0) + np.random.RandomState(noise_seed).normal(0, 0.1, len(t))
    inputs, targets = [], []
    for start in range(len(t) - 50 + 1):
        for k in range(4):
            x = np.zeros((50, 5), dtype=np.float32)
            x[:, 0] = mixture[start : start + 50]
            x[:, 1 + k] = 1
            inputs.append(x)
            targets.append(components[k, start : start + 50, None].astype(np.float32))
    return torch.from_numpy(np.stack(inputs)), torch.from_numpy(np.stack(targets))


@dataclass
class Training:
    """Objects that the original creates before its loop."""

    model: Filter
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.ReduceLROnPlateau
    training: DataLoader[tuple[torch.Tensor, ...]]
    validation: DataLoader[tuple[torch.Tensor, ...]]

    @classmethod
    def begin(cls, seed: int) -> Training:
        """Create windows, split, network and optimizer."""
        torch.manual_seed(seed)
        inputs, targets = windows(1)
        order = np.random.RandomState(42).permutation(len(inputs))
        n_validation = 3981
        held_out, kept = order[:n_validation], order[n_validation:]
        training = DataLoader(TensorDataset(inputs[kept], targets[kept]), batch_size=BATCH_SIZE, shuffle=True)
        validation = DataLoader(TensorDataset(inputs[held_out], targets[held_out]), batch_size=BATCH_SIZE)
        model = Filter().to(DEVICE)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, weight_decay=1e-5)
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=5)
        return cls(model, optimizer, scheduler, training, validation)

    def step(self, x: torch.Tensor, y: torch.Tensor) -> float:
        """Run a training step and return its loss."""
        self.optimizer.zero_grad()
        loss = nn.functional.mse_loss(self.model(x.to(DEVICE)), y.to(DEVICE))
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        return loss.item()

    def validate(self) -> float:
        """Compute the validation loss and step the scheduler."""
        self.model.eval()
        with torch.no_grad():
            losses = [nn.functional.mse_loss(self.model(x.to(DEVICE)), y.to(DEVICE)).item() for x, y in self.validation]
        loss = float(np.mean(losses))
        self.scheduler.step(loss)
        return loss

    def epoch(self) -> tuple[float, float]:
        """Train an epoch; return its training and validation loss."""
        self.model.train()
        losses = [self.step(x, y) for x, y in self.training]
        return float(np.mean(losses)), self.validate()


if __name__ == "__main__":
    training = Training.begin(seed=42)
    for number in range(1, 51):
        started = time.perf_counter()
        train_loss, val_loss = training.epoch()
        print(f"epoch {number}: {train_loss:.4f} {val_loss:.4f} {time.perf_counter() - started:.1f} s", flush=True)
