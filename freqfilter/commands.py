"""The commands: words typed by a person become one call to a workflow."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING

import click

from freqfilter import __version__
from freqfilter.errors import UserError
from freqfilter.launch import launched_run
from freqfilter.options import (
    given_words,
    need_store,
    parameter_options,
    recipe_option,
    run_name,
    seeds_option,
    typing_folder,
)
from freqfilter.params.resolve import resolve, user_path
from freqfilter.params.variants import from_seeds, one_at_a_time
from freqfilter.stopping import Stopping

if TYPE_CHECKING:
    from freqfilter.params import Params
    from freqfilter.workflows.train import Begun

# What the heavy imports cost is paid by the jobs that need them, not by --help: they stand inside the commands.


@click.group(context_settings={"max_content_width": 110})
@click.version_option(__version__, prog_name="freqfilter")
def cli() -> None:
    """Train a filter that picks one sinusoid out of a noisy mixture, tracked in MLflow.

    Every job is also an entry point of the MLproject: `mlflow run . -e JOB -P name=value`.
    """


@cli.command()
@recipe_option
@seeds_option
@parameter_options()
@click.pass_obj
def train(watch: Stopping, /, recipe: str, seeds: str | None, **typed: str | None) -> None:
    """Train the filter: one tracked, registered run."""
    _train(watch, recipe, seeds, typed)


@cli.command()
@seeds_option
@parameter_options()
@click.pass_obj
def original(watch: Stopping, /, seeds: str | None, **typed: str | None) -> None:
    """Train as the original script does."""
    _train(watch, "original", seeds, typed)


@cli.command()
@recipe_option
@click.option(
    "--values", required=True, metavar="MAPPING", help='what to try, such as "{hidden_size: [64, 256], cell: gru}"'
)
@parameter_options()
@click.pass_obj
def vary(watch: Stopping, /, recipe: str, values: str, **typed: str | None) -> None:
    """Train once as the other parameters say, and once for each value in place of one of them.

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
@click.option("--n_steps", type=click.IntRange(min=3), default=100, show_default=True, help="steps of the test")
@parameter_options()
@click.pass_obj
def find_learning_rate(
    watch: Stopping, /, recipe: str, lowest: float, highest: float, n_steps: int, **typed: str | None
) -> None:
    """Find a learning rate: a hundred steps at growing rates, the loss as a curve, a suggestion."""
    if not (0 < lowest < highest < math.inf):
        raise UserError(f"lowest={lowest:g}, highest={highest:g}: needed are 0 < lowest < highest")
    given = given_words(typed)
    params = resolve(given, recipe=recipe, folder=typing_folder({"recipe": recipe} | given))
    need_store(params)
    from freqfilter.last_words import where_to_look
    from freqfilter.terminal import Terminal
    from freqfilter.workflows.find_learning_rate import find_learning_rate as run_range_test

    name, console = f"find_learning_rate {run_name(recipe, given)}", Terminal()
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
    click.echo(where_to_look(found.tracking_uri))


@cli.command()
@recipe_option
@click.option("--output", default="data/training_data.npz", show_default=True, help="the file to write")
@parameter_options(sections=("signals", "data", "tracking"))
@click.pass_obj
def prepare(watch: Stopping, /, recipe: str, output: str, **typed: str | None) -> None:
    """Draw the data, and write its windows as a file that data_file takes."""
    from freqfilter.last_words import where_to_look
    from freqfilter.terminal import Terminal
    from freqfilter.workflows.prepare import prepare as run_prepare

    given = given_words(typed)
    folder = typing_folder({"recipe": recipe, "output": output} | given)
    params = resolve({"noise": "fixed"} | given, recipe=recipe, folder=folder)
    if params.data.data_file is not None:
        raise UserError("data_file: it is a file of windows already; prepare draws and writes those of a signal model")
    if params.data.noise != "fixed":
        raise UserError(f"noise={params.data.noise}: a file holds one realization; the only value is fixed")
    need_store(params)
    name = f"prepare {run_name(recipe, given)}"
    where = run_prepare(
        params,
        output=user_path(output, folder),
        recipe=recipe,
        name=name,
        stopping=watch,
        console=Terminal(),
    )
    click.echo(where_to_look(where))


@cli.command()
@recipe_option
@click.option("--noise_seed", type=click.IntRange(0, 2**32 - 1), help="all windows of this realization, not the mean")
@click.option("--json", "as_json", is_flag=True, help="print JSON, for programs; draw nothing unless asked to")
@click.option("--picture", metavar="FILE", help="the picture to draw  [default: limit.png; none with --json]")
@parameter_options()
def limit(recipe: str, noise_seed: int | None, as_json: bool, picture: str | None, **typed: str | None) -> None:
    """State the least error that any filter can expect of the signal model."""
    given = given_words(typed)
    paths = {"picture": picture} if picture else {}
    folder = typing_folder({"recipe": recipe} | paths | given)
    params = resolve(given, recipe=recipe, folder=folder)
    if params.data.data_file is not None:
        raise UserError("data_file: a file has no signal model, so that nobody knows its limit; drop it")
    from freqfilter.terminal import Quiet, Terminal
    from freqfilter.workflows.limit import limit as run_limit

    name = picture or (None if as_json else "limit.png")
    found = run_limit(
        params,
        noise_seed=noise_seed,
        picture=user_path(name, folder) if name else None,
        console=Quiet() if as_json else Terminal(),
    )
    click.echo(json.dumps(found.to_dict()) if as_json else f"\n{found.table()}\n")
    if not as_json:
        click.echo(found.remarks())


@cli.command()
@click.option("--version", "version", metavar="N", help="version of model_name  [default: the newest]")
@click.option("--run_id", metavar="ID", help="the run whose model is scored, in place of a version")
@click.option(
    "--realizations",
    type=click.IntRange(0, 1000),
    default=0,
    show_default=True,
    help="score on so many fresh noise realizations too: their mean, its interval, and the limit on the same windows",
)
@parameter_options(sections=("tracking",))
@click.pass_obj
def evaluate(
    watch: Stopping, /, version: str | None, run_id: str | None, realizations: int, **typed: str | None
) -> None:
    """Score a registered version, or a run's model, on its test set."""
    given = given_words(typed)
    if version and run_id:
        raise UserError("version and run_id: both name a model; give one")
    params = resolve(given, folder=typing_folder(given))
    need_store(params)
    from freqfilter.last_words import where_to_look
    from freqfilter.terminal import Terminal
    from freqfilter.workflows.evaluate import evaluate as run_evaluate

    done = run_evaluate(
        params.tracking,
        version=version,
        run_id=run_id,
        realizations=realizations,
        stopping=watch,
        console=Terminal(),
    )
    click.echo(f"\n{done.uri}, run {done.run_id}")
    click.echo(where_to_look(done.tracking_uri))


@cli.command()
@click.argument("run_id", metavar="RUN_ID|auto")
@click.option("--abandoned", is_flag=True, help="nobody works on it, whatever it says of another machine")
@recipe_option
@parameter_options()
@click.pass_obj
def resume(watch: Stopping, /, run_id: str, abandoned: bool, recipe: str, **typed: str | None) -> None:
    """Go on with a training that was interrupted, in the same run.

    RUN_ID is that of the run; auto is the newest unfinished one of the parameters given. Its own parameters hold.
    """
    given = given_words(typed)
    _resume(watch, run_id, recipe, given, abandoned=abandoned)


@cli.command("init_store")
def init_store() -> None:
    """Make the tracking store ready, before many runs start at once."""
    from freqfilter.tracking.store import open_store

    click.echo(f"tracking store: {open_store()}")


def _train(watch: Stopping, recipe: str, seeds: str | None, typed: dict[str, str | None]) -> None:
    given = given_words(typed)
    folder = typing_folder({"recipe": recipe} | given)
    if seeds is not None:
        variants = from_seeds(seeds, given, recipe=recipe, folder=folder)
        _train_several(watch, variants, "seeds", {"seeds": seeds}, recipe, given)
        return
    params = resolve(given, recipe=recipe, folder=folder)
    if run_id := launched_run():
        need_store(params)
        from freqfilter.workflows.resume import was_begun

        if was_begun(run_id):
            _resume(watch, run_id, recipe, given, abandoned=False)
            return
    _train_one(watch, params, recipe=recipe, name=run_name(recipe, given))


def _resume(watch: Stopping, run_id: str, recipe: str, given: dict[str, str], *, abandoned: bool) -> None:
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
    _train_one(watch, stated.params, recipe=stated.recipe, name=found.name, begun=found)


def _train_one(watch: Stopping, params: Params, *, recipe: str, name: str, begun: Begun | None = None) -> None:
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


def _train_several(
    watch: Stopping,
    variants: dict[str, Params],
    workflow: str,
    asked: dict[str, str],
    recipe: str,
    given: dict[str, str],
) -> None:
    for params in variants.values():
        need_store(params)
    from freqfilter.last_words import where_to_look
    from freqfilter.terminal import Terminal
    from freqfilter.workflows.several import train_several

    name, console = run_name(recipe, asked | given), Terminal()
    try:
        done = train_several(
            variants, workflow=workflow, asked=asked, recipe=recipe, name=name, stopping=watch, console=console
        )
    finally:
        console.close()
    click.echo(f"run {done.run_id} in experiment {done.experiment}, with a run of its own for each line")
    click.echo(where_to_look(done.tracking_uri))
