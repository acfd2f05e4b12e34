"""Configuration: params.yaml, a recipe and overrides, resolved to a frozen, validated tree of sections."""

from freqfilter.config.load import recipe_names, resolve, restore
from freqfilter.config.schema import DataParams, ModelParams, Params, SignalParams, TrackingParams, TrainingParams

__all__ = [
    "DataParams", "ModelParams", "Params", "SignalParams", "TrackingParams", "TrainingParams",
    "recipe_names", "resolve", "restore",
]  # fmt: skip
