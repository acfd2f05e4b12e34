"""Commands that train: train, original, vary, find_learning_rate."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import click

from freqfilter.cli.command import cli, given_words, parameter_options, recipe_option, seeds_option, typing_folder
from freqfilter.config.ablation import default_run_name, from_seeds, one_at_a_time
from freqfilter.config.load import require_online, resolve
from freqfilter.errors import UserError
from freqfilter.process import Stopping, launched_run

if TYPE_CHECKING:
    from freqfilter.config import Params
    from freqfilter.pipelines.train import Begun


@cli.command()
@recipe_option
@seeds_option
@parameter_options()
@click.pass_obj
def train(watch: Stopping, /, recipe: str, seeds: str | None, **typed: str | None) -> None:
    """Train a filter as one tracked run and register it."""
    _train(watch, recipe, seeds, typed)


@cli.command()
@seeds_option
@parameter_options()
@click.pass_obj
def original(watch: Stopping, /, seeds: str | None, **typed: str | None) -> None:
    """Train with the recipe of the original script."""
    _train(watch, "original", seeds, typed)


@cli.command()
@recipe_option
@click.option(
    "--values", required=True, metavar="MAPPING", help='values to try, such as "{hidden_size: [64, 256], cell: gru}"'
)
@parameter_options()
@click.pass_obj
def vary(watch: Stopping, /, recipe: str, values: str, **typed: str | None) -> None:
    """Train once for each value of a parameter.

    The first run has the parameters given; in each of the others one value replaces one of them.

    Nothing is registered unless register=true is given.
    """
    given = given_words(typed)
    folder = typing_folder({"recipe": recipe} | given)
    variants = one_at_a_time(values, {"register": "false"} | given, recipe=recipe, folder=folder)
    _train_several(watch, variants, "vary", {"values": values}, recipe, given)


@cli.command("find_learning_rate")
@recipe_option
@click.option("--lowest", type=float, default=1e-6, show_default=True, help="learning rate of the first step")
@click.option("--highest", type=float, default=1.0, show_default=True, help="learning rate of the last step")
@click.option("--n_steps", type=click.IntRange(min=3), default=100, show_default=True, help="number of steps")
@parameter_options()
@click.pass_obj
def find_learning_rate(
    watch: Stopping, /, recipe: str, lowest: float, highest: float, n_steps: int, **typed: str | None
) -> None:
    """Suggest a learning rate by a range test."""
    if not (0 < lowest < highest < math.inf):
        raise UserError(f"lowest={lowest:g}, highest={highest:g}: needed are 0 < lowest < highest")
    given = given_words(typed)
    params = resolve(given, recipe=recipe, folder=typing_folder({"recipe": recipe} | given))
    require_online(params)
    from freqfilter.cli.command import pages
    from freqfilter.pipelines.find_learning_rate import find_learning_rate as run_range_test
    from freqfilter.progress import Terminal

    name, console = f"find_learning_rate {default_run_name(recipe, given)}", Terminal()
    try:
        found = run_range_test(
            params,
            lowest=lowest,
            highest=highest,
            n_steps=n_steps,
            recipe=recipe,
            name=name,
            stopping=watch,
            console=console,
        )
    finally:
        console.close()
    click.echo(f"run {found.run_id} in experiment {found.experiment}")
    click.echo("\n".join(pages(found)))


def _train(watch: Stopping, recipe: str, seeds: str | None, typed: dict[str, str | None]) -> None:
    given = given_words(typed)
    folder = typing_folder({"recipe": recipe} | given)
    if seeds is not None:
        variants = from_seeds(seeds, given, recipe=recipe, folder=folder)
        _train_several(watch, variants, "seeds", {"seeds": seeds}, recipe, given)
        return
    params = resolve(given, recipe=recipe, folder=folder)
    if run_id := launched_run():
        require_online(params)
        from freqfilter.pipelines.resume import was_begun

        if was_begun(run_id):
            resume_one(watch, run_id, recipe, given, abandoned=False)
            return
    train_one(watch, params, recipe=recipe, name=default_run_name(recipe, given))


def _train_several(
    watch: Stopping,
    variants: dict[str, Params],
    workflow: str,
    asked: dict[str, str],
    recipe: str,
    given: dict[str, str],
) -> None:
    for params in variants.values():
        require_online(params)
    from freqfilter.cli.command import pages
    from freqfilter.pipelines.ablation import train_several
    from freqfilter.progress import Terminal

    name, console = default_run_name(recipe, asked | given), Terminal()
    try:
        done = train_several(
            variants, workflow=workflow, asked=asked, recipe=recipe, name=name, stopping=watch, console=console
        )
    finally:
        console.close()
    click.echo(f"run {done.run.run_id} in experiment {done.run.experiment}, with a run of its own for each line")
    click.echo("\n".join(pages(done.run)))


def train_one(watch: Stopping, params: Params, *, recipe: str, name: str, begun: Begun | None = None) -> None:
    """Train, and say what came of it."""
    from freqfilter.cli.command import of_training
    from freqfilter.pipelines.train import train as run_train
    from freqfilter.progress import Terminal

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
    from freqfilter.pipelines.resume import begun, newest_unfinished, refuse_changes, run_of
    from freqfilter.progress import Terminal

    run_dir = Path(asked.tracking.run_dir)
    run = newest_unfinished(asked) if run_id == "auto" else run_of(run_id, run_dir)
    found = begun(run, run_dir, Terminal(), abandoned=abandoned)
    refuse_changes(found, given, recipe=recipe, folder=folder)
    stated = found.checkpoint.stated
    train_one(watch, stated.params, recipe=stated.recipe, name=found.name, begun=found)
