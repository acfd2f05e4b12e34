"""What is asked for: params.yaml, a recipe and typed values become one frozen, validated tree of sections."""

from freqfilter.params.resolve import recipe_names, resolve, restore
from freqfilter.params.schema import (
    DataParams,
    EvaluationParams,
    ModelParams,
    Params,
    SignalParams,
    TrackingParams,
    TrainingParams,
)

__all__ = [
    "DataParams",
    "EvaluationParams",
    "ModelParams",
    "Params",
    "SignalParams",
    "TrackingParams",
    "TrainingParams",
    "recipe_names",
    "resolve",
    "restore",
]
