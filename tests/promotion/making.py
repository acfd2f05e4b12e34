"""Versions of every kind, made without training where that is enough."""

from __future__ import annotations

import torch
from mlflow import MlflowClient

import freqfilter
from freqfilter.config import Params, resolve
from freqfilter.data.splits import Splits
from freqfilter.models.network import FrequencyFilterLSTM
from freqfilter.tracking import registry
from freqfilter.tracking.aliases import RegisteredVersion
from freqfilter.tracking.lifecycle import open_run
from tests.conftest import SMALL

NAME = "frequency-filter"
SETTING = SMALL | {"hidden_size": "16", "learning_rate": "0.02", "noise_std": "0.2"}
# What small filters keep to on every processor: the lesser of the two has 1.2 and 1.5, the deaf one 3.9.
BOUNDS = ("--max_mse_ratio", "1.5", "--max_mse_ratio_per_frequency", "2.5")


def setting(**overrides: str) -> Params:
    return resolve(SETTING | overrides)


def register(module: FrequencyFilterLSTM, params: Params, *, diagnoses: str = "") -> int:
    """A version of any network at all."""
    golden, _ = Splits.from_params(params).test.batch(torch.arange(0, 40, 5))
    with open_run(params.tracking, name="made") as run:
        trained = registry.ModelPackage(module.eval(), params, golden=golden.numpy(), step=1)
        model_id = registry.log_and_check_model(run.run_id, trained, folder=run.folder)
        return registry.register(model_id, NAME, tags={"diagnoses": diagnoses}, description="made for a test")


def module_of(version: int) -> FrequencyFilterLSTM:
    return freqfilter.load(NAME, version=version).module


def zero(version: int) -> FrequencyFilterLSTM:
    """A filter that answers zero."""
    module = module_of(version)
    for parameter in module.fc.parameters():
        torch.nn.init.zeros_(parameter)
    return module


def deaf_to_the_last_component(version: int) -> FrequencyFilterLSTM:
    """A filter that takes a wish for the last component for one for the first: good on all others."""
    module = module_of(version)
    with torch.no_grad():
        weights = module.recurrent.weight_ih_l0
        weights[:, -1] = weights[:, 1]
    return module


def version(number: int) -> RegisteredVersion:
    return RegisteredVersion.from_mlflow(MlflowClient().get_model_version(NAME, str(number)))


def aliases() -> dict[str, int]:
    found = MlflowClient().get_registered_model(NAME).aliases
    return {alias: int(number) for alias, number in found.items()}
