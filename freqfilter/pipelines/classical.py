"""Classical filters as registered versions, through the same files, checks and gate as trained ones."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch

from freqfilter.config import Params
from freqfilter.data import kalman
from freqfilter.data.recordings import RecordingModel
from freqfilter.data.splits import Splits
from freqfilter.errors import UserError
from freqfilter.evaluation import limits
from freqfilter.evaluation.heldout import score_test_set
from freqfilter.evaluation.metrics import Comparison
from freqfilter.models.network import KalmanFilter
from freqfilter.pipelines.evaluate import log_evaluation
from freqfilter.pipelines.finalize import log_version
from freqfilter.pipelines.run_metrics import limit_metrics, score_metrics
from freqfilter.process import shutdown
from freqfilter.tracking import provenance, registry
from freqfilter.tracking.client import open_store
from freqfilter.tracking.lifecycle import Job, open_run
from freqfilter.tracking.ui_views import RunRef
from freqfilter.training.device import Accelerator

logger = logging.getLogger(__name__)

METHODS = ("kalman",)


@dataclass(frozen=True)
class ClassicalResult:
    """Result of a registration.

    Attributes:
        run: Its run.
        compared: Scores on the test set.
        metrics: Metrics of the test set.
        model_name: Name of the registered model.
        version: Number of the registered version; None if ``register`` is false.
    """

    run: RunRef
    compared: Comparison
    metrics: dict[str, float]
    model_name: str
    version: int | None


def register_classical(params: Params, *, method: str, recipe: str, name: str) -> ClassicalResult:
    """Test a classical filter of the signal model and register it as a version, in a tracked run.

    Args:
        params: Resolved parameters.
        method: One of ``METHODS``: ``kalman``, the Kalman filter of a random signal model.
        recipe: Name of the recipe, a parameter of the run.
        name: Name of the run if the user has not set one.

    Raises:
        UserError: If there is no such filter for these signals, or the store cannot be used.
    """
    if method not in METHODS:
        raise UserError(f"method={method}: no such filter; choose from {', '.join(METHODS)}")
    if not params.of_recordings:
        raise UserError(
            f"method={method}: needs recordings of random signals; add recipe=stochastic_cycles, or "
            "phase_distribution=uniform"
        )
    tracking_uri = open_store()
    if params.tracking.register:
        registry.check_model_name(params.tracking.model_name)
    accelerator = Accelerator.open(params.training.model_copy(update={"device": "cpu", "precision": "fp32"}))
    splits, module = Splits.from_params(params), kalman_module(RecordingModel.from_params(params.signals))
    options = {"recipe": recipe, "method": method} | params.canonical(sections=("signals", "data", "recordings"))
    job = Job("register_classical", name, options, params_digest=params.digest(), repeatable=False)
    with open_run(params.tracking, job) as run:
        run.log_bytes(params.to_yaml().encode(), "params.yaml")
        run.log_tags({"recipe": recipe} | provenance.machine_tags(accelerator))
        run.log_data(splits.test, name="test", context="test")
        logger.info(f"run {run.run_id}: scoring the {method} filter on {len(splits.test):,} recordings")
        compared = score_test_set(module, splits, params, device=accelerator.device)
        metrics = score_metrics(compared)
        if (expected_mse := limits.expected_limit_mse(params)) is not None:
            metrics |= limit_metrics(expected_mse)
        log_evaluation(run, module, splits, compared, signals=params.signals, accelerator=accelerator)
        shutdown.ignore_signals()  # registration takes seconds
        version = log_version(run, module, splits, params, compared, metrics, progress=None)
    return ClassicalResult(RunRef.to(run, tracking_uri), compared, metrics, params.tracking.model_name, version)


def kalman_module(model: RecordingModel) -> KalmanFilter:
    """Create the Kalman filter of a random signal model as a module that a version stores."""
    matrices, module = kalman.KalmanFilter(model), KalmanFilter(n_components=model.n_components)
    names = module.state_dict()
    module.load_state_dict({name: torch.as_tensor(getattr(matrices, name), dtype=torch.float64) for name in names})
    return module.eval()
