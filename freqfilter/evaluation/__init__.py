"""Metrics, limits, baselines, significance tests and checks."""
