"""Training loop, optimizers, checkpoints and device."""
