"""One training, from its beginning or from where it was interrupted."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from freqfilter.options import typing_folder
from freqfilter.params.resolve import resolve
from freqfilter.stopping import Stopping

if TYPE_CHECKING:
    from freqfilter.params import Params
    from freqfilter.workflows.train import Begun


def train_one(watch: Stopping, params: Params, *, recipe: str, name: str, begun: Begun | None = None) -> None:
    """Train, and say what came of it."""
    from freqfilter.last_words import of_training
    from freqfilter.terminal import Terminal
    from freqfilter.workflows.train import train as run_train

    console = Terminal()
    try:
        trained = run_train(params, recipe=recipe, name=name, stopping=watch, console=console, begun=begun)
    finally:
        console.close()
    for line in of_training(trained):
        click.echo(line)


def resume_one(watch: Stopping, run_id: str, recipe: str, given: dict[str, str], *, abandoned: bool) -> None:
    """Find what was interrupted, and go on with it.

    Args:
        watch: Tells when to stop.
        run_id: A run's, or ``auto``.
        recipe: What was typed.
        given: Likewise.
        abandoned: Whether nobody works on it, whatever it says.

    Raises:
        UserError: If there is nothing to go on with, or what was typed differs from what it has.
    """
    folder = typing_folder({"recipe": recipe} | given)
    if run_id == "auto":
        asked = resolve(given, recipe=recipe, folder=folder)
    else:  # other parameters are the run's
        asked = resolve({name: value for name, value in given.items() if name == "run_dir"}, folder=folder)
    from freqfilter.terminal import Terminal
    from freqfilter.workflows.resume import begun, newest_unfinished, refuse_changes, run_of

    run_dir = Path(asked.tracking.run_dir)
    run = newest_unfinished(asked) if run_id == "auto" else run_of(run_id, run_dir)
    found = begun(run, run_dir, Terminal(), abandoned=abandoned)
    refuse_changes(found, given, recipe=recipe, folder=folder)
    stated = found.checkpoint.stated
    train_one(watch, stated.params, recipe=stated.recipe, name=found.name, begun=found)
