"""Preparation of data: figures of it, and its windows as a file."""

from __future__ import annotations

import logging
from pathlib import Path

from freqfilter.config import Params
from freqfilter.data import npz
from freqfilter.data.signal_model import SignalModel, first_windows
from freqfilter.data.splits import FIRST_SAMPLES, Splits
from freqfilter.plots import catalog
from freqfilter.tracking import provenance
from freqfilter.tracking.client import open_store
from freqfilter.tracking.lifecycle import open_run
from freqfilter.tracking.ui_views import RunRef

logger = logging.getLogger(__name__)


def prepare(params: Params, *, output: Path, recipe: str, name: str) -> RunRef:
    """Write ``X_train X_val X_test y_train y_val y_test`` to a file, and draw the data in a tracked run.

    Args:
        params: Resolved parameters, with fixed noise.
        output: The ``.npz`` file, replaced atomically.
        recipe: Name of the recipe, a parameter of the run.
        name: Name of the run if the user has not set one.

    Returns:
        The run with the figures.

    Raises:
        UserError: If the store cannot be used or the file cannot be written.
    """
    tracking_uri, tracking = open_store(), params.tracking
    splits = Splits.from_params(params)
    parts = {"train": splits.train, "val": splits.validation, "test": splits.test}
    npz.write(output, parts)
    for part, windows in parts.items():
        shape = (len(windows), windows.n_samples)
        logger.info(f"X_{part} {(*shape, 1 + windows.n_components)}, y_{part} {(*shape, 1)}")
    logger.info(f"written: {output} ({output.stat().st_size / 1e6:.1f} MB)")
    with open_run(tracking, name=name) as run:
        run.log_params({"recipe": recipe} | params.canonical(sections=("signals", "data")))
        run.log_source(provenance.source())
        run.log_tags({"workflow": "prepare", "output": str(output)})
        for part, windows in parts.items():
            run.log_data(windows, name=part, context=part)
        logger.info("drawing the data")
        drawn = first_windows(
            SignalModel.from_params(params.signals),
            params.data.window_length,
            FIRST_SAMPLES,
            params.data.train_noise_seed,
        )
        for artifact, figure in catalog.data_figures(params.signals, drawn):
            run.log_figure(figure, artifact)
    return RunRef.to(run, tracking_uri)
