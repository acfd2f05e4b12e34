"""The world, known without learning: signal model, realizations, windows and splits."""
