"""Look at the data of a signal model, and write its windows as a file in the format that training takes."""

from __future__ import annotations

from pathlib import Path

from freqfilter.evaluation import gallery
from freqfilter.params import Params
from freqfilter.signals import archive
from freqfilter.signals.model import SignalModel
from freqfilter.signals.realizations import beginning_windows
from freqfilter.signals.splits import BEGINNING_SAMPLES, Splits
from freqfilter.stopping import Stopping
from freqfilter.tracking import provenance
from freqfilter.tracking.opening import open_run
from freqfilter.tracking.store import open_store
from freqfilter.workflows.console import Console
from freqfilter.workflows.run_ref import RunRef


def prepare(params: Params, *, output: Path, recipe: str, name: str, stopping: Stopping, console: Console) -> RunRef:
    """Write ``X_train X_val X_test y_train y_val y_test``, and draw the data in a run of its own.

    Args:
        params: Resolved parameters, with fixed noise.
        output: The ``.npz`` file, replaced whole.
        recipe: The recipe's name, which the run keeps.
        name: What the run is called where nobody has named it.
        stopping: Tells when to stop.
        console: Hears what was written.

    Returns:
        The run that has the pictures.

    Raises:
        UserError: If the store cannot be used or the file cannot be written.
    """
    tracking_uri, tracking = open_store(), params.tracking
    splits = Splits.from_params(params)
    parts = {"train": splits.train, "val": splits.validation, "test": splits.test}
    archive.write(output, parts)
    for part, windows in parts.items():
        shape = (len(windows), windows.n_samples)
        console.say(f"X_{part} {(*shape, 1 + windows.n_components)}, y_{part} {(*shape, 1)}")
    console.say(f"written: {output} ({output.stat().st_size / 1e6:.1f} MB)")
    with open_run(tracking, name=name, stopping=stopping) as run:
        run.log_params({"recipe": recipe} | params.canonical(sections=("signals", "data")))
        run.log_source(provenance.source())
        run.log_tags({"workflow": "prepare", "output": str(output)})
        for part, windows in parts.items():
            run.log_data(windows, name=part, context=part)
        console.say("drawing the data")
        drawn = beginning_windows(
            SignalModel.from_params(params.signals),
            params.data.window_length,
            BEGINNING_SAMPLES,
            params.data.train_noise_seed,
        )
        for artifact, figure in gallery.of_data(params.signals, drawn):
            run.log_figure(figure, artifact)
    return RunRef.to(run, tracking_uri)
