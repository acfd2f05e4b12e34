"""A learning-rate range test as a tracked run with a suggestion."""

from __future__ import annotations

import logging
from contextlib import closing
from functools import partial

import numpy as np
import pandas as pd

from freqfilter.config import Params
from freqfilter.pipelines.setup import log_training_data, setup
from freqfilter.plots.training import learning_rate_range
from freqfilter.process import shutdown
from freqfilter.progress import show_progress
from freqfilter.tracked_names import SUGGESTED_LEARNING_RATE
from freqfilter.tracking import provenance
from freqfilter.tracking.lifecycle import Job, open_run
from freqfilter.tracking.ui_views import RunRef
from freqfilter.training.device import wrap_memory_errors
from freqfilter.training.lr_finder import range_test, smooth, suggest_learning_rate
from freqfilter.training.reports import StepReport

logger = logging.getLogger(__name__)


@wrap_memory_errors()
def find_learning_rate(
    params: Params, *, lowest: float, highest: float, n_steps: int, recipe: str, name: str
) -> RunRef:
    """Train with an increasing learning rate and suggest the rate at which the loss falls most steeply.

    Args:
        params: Resolved parameters of the training.
        lowest: Learning rate of the first step.
        highest: Learning rate of the last step.
        n_steps: Number of steps.
        recipe: Name of the recipe, a parameter of the run.
        name: Name of the run if the user has not set one.

    Raises:
        UserError: If store, device, precision, data or initial model cannot be used.
    """
    ready = setup(params)
    params, splits = ready.params, ready.splits
    options = {"recipe": recipe, "lowest": f"{lowest:g}", "highest": f"{highest:g}", "n_steps": str(n_steps)}
    with open_run(params.tracking, Job("find_learning_rate", name, options | params.canonical())) as run:
        run.log_tags(provenance.machine_tags(ready.accelerator))
        log_training_data(run, splits)
        logger.info(f"run {run.run_id}: {n_steps} steps at learning rates from {lowest:g} to {highest:g}")
        steps = range_test(ready.state, splits.epoch, params.training, lowest=lowest, highest=highest, n_steps=n_steps)
        points = []
        with closing(steps), shutdown.deferred():
            for point in steps:
                shutdown.check()
                points.append(point)
                show_progress(StepReport(epoch=1, batch=len(points), n_batches=n_steps), epochs=1)
        rates = np.array([point.learning_rate for point in points])
        losses = np.array([point.loss for point in points])
        means = smooth(losses)
        curve = pd.DataFrame({"learning_rate": rates, "loss": losses, "smoothed_loss": means})
        for step, values in enumerate(curve.to_dict("records"), start=1):
            run.log_metrics({f"range_test/{name}": value for name, value in values.items()}, step=step)
        run.log_bytes(curve.to_csv(index=False).encode(), "range_test/curve.csv")
        suggested, now = suggest_learning_rate(points), params.training.learning_rate
        if len(points):
            loss = params.loss_name
            draw = partial(learning_rate_range, rates, losses, means, suggested=suggested, current=now, loss=loss)
            run.log_figure(draw, "range_test/learning_rate.png")
        verdict = (
            "the loss does not fall at any of these rates; check the data, or increase n_steps"
            if suggested is None
            else f"suggestion: learning_rate={suggested:.2g} (now {now:.2g}), where the loss falls most steeply"
        )
        if suggested is not None:
            run.log_metrics({SUGGESTED_LEARNING_RATE: suggested}, step=n_steps)
        run.describe(f"{verdict[0].upper()}{verdict[1:]}.")
        logger.info(verdict)
    return RunRef.to(run, ready.tracking_uri)
