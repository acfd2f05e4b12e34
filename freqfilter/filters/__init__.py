"""The learner: network, losses, training and its state."""
