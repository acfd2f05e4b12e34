"""Model versions for tests, without training where possible."""

from __future__ import annotations

import torch
from mlflow import MlflowClient

import freqfilter
from freqfilter.config import Params, resolve
from freqfilter.data.splits import Splits
from freqfilter.models.network import FrequencyFilterLSTM
from freqfilter.tracking import registry
from freqfilter.tracking.aliases import RegisteredVersion
from freqfilter.tracking.lifecycle import Job, open_run
from tests.conftest import SMALL

NAME = "frequency-filter"
SETTING = SMALL | {"hidden_size": "16", "learning_rate": "0.02", "noise_std": "0.2"}
# Bounds that small filters meet on every processor: the worse of the two has 1.2 and 1.5, the confused one 3.9.
BOUNDS = ("--max_mse_ratio", "1.5", "--max_mse_ratio_per_frequency", "2.5")


def setting(**overrides: str) -> Params:
    return resolve(SETTING | overrides)


def register(module: FrequencyFilterLSTM, params: Params, *, diagnoses: str = "") -> int:
    """Register a network as a version."""
    golden, _ = Splits.from_params(params).test.batch(torch.arange(0, 40, 5))
    with open_run(params.tracking, Job("test", "made")) as run:
        trained = registry.ModelPackage(module.eval(), params, golden=golden.numpy(), step=1)
        model_id = registry.log_and_check_model(run.run_id, trained, folder=run.folder)
        return registry.register(model_id, NAME, tags={"diagnoses": diagnoses}, description="made for a test")


def module_of(version: int) -> FrequencyFilterLSTM:
    return freqfilter.load(NAME, version=version).module


def zero(version: int) -> FrequencyFilterLSTM:
    """A filter that estimates zero."""
    module = module_of(version)
    for parameter in module.fc.parameters():
        torch.nn.init.zeros_(parameter)
    return module


def confusing_the_last_component(version: int) -> FrequencyFilterLSTM:
    """A filter that estimates the first component if the last is selected."""
    module = module_of(version)
    with torch.no_grad():
        weights = module.recurrent.weight_ih_l0
        weights[:, -1] = weights[:, 1]
    return module


def version(number: int) -> RegisteredVersion:
    return RegisteredVersion.from_mlflow(MlflowClient().get_model_version(NAME, str(number)))


def aliases() -> dict[str, int]:
    versions = MlflowClient().get_registered_model(NAME).aliases
    return {alias: int(number) for alias, number in versions.items()}
