"""Commands that look at data, limits and models."""

from __future__ import annotations

import json
import sys

import click

from freqfilter.api import DEFAULT_REALIZATIONS
from freqfilter.commands.group import cli
from freqfilter.errors import UserError
from freqfilter.launch import launched_by_mlflow
from freqfilter.options import given_words, need_store, parameter_options, recipe_option, typing_folder
from freqfilter.params.resolve import resolve, user_path
from freqfilter.params.variants import default_run_name
from freqfilter.stopping import Stopping


@cli.command()
@recipe_option
@click.option("--output", default="data/training_data.npz", show_default=True, help="the file to write")
@parameter_options(sections=("signals", "data", "tracking"))
@click.pass_obj
def prepare(watch: Stopping, /, recipe: str, output: str, **typed: str | None) -> None:
    """Draw the data and write its windows to a file."""
    from freqfilter.last_words import pages
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
    name = f"prepare {default_run_name(recipe, given)}"
    where = run_prepare(
        params,
        output=user_path(output, folder),
        recipe=recipe,
        name=name,
        stopping=watch,
        console=Terminal(),
    )
    click.echo("\n".join(pages(where)))


@cli.command()
@recipe_option
@click.option(
    "--noise_seed",
    type=click.IntRange(0, 2**32 - 1),
    help="score all windows of this noise realization in place of the expectation",
)
@click.option("--json", "as_json", is_flag=True, help="print JSON; draw nothing unless --picture is given")
@click.option("--picture", metavar="FILE", help="the picture to draw  [default: limit.png; none with --json]")
@parameter_options()
@click.pass_obj
def limit(
    watch: Stopping,
    /,
    recipe: str,
    noise_seed: int | None,
    as_json: bool,
    picture: str | None,
    **typed: str | None,
) -> None:
    """Compute the limit, the least error to be expected.

    Under `mlflow run` table, figures and picture are those of the run.
    """
    given = given_words(typed)
    paths = {"picture": picture} if picture else {}
    folder = typing_folder({"recipe": recipe} | paths | given)
    params = resolve(given, recipe=recipe, folder=folder)
    if params.data.data_file is not None:
        raise UserError("data_file: a file has no signal model, so its limit is not known; drop it")
    launched = launched_by_mlflow()
    if launched and (picture or as_json):
        raise UserError("picture and json: under `mlflow run` both are artifacts of the run; drop them")
    from freqfilter.last_words import pages
    from freqfilter.terminal import Quiet, Terminal
    from freqfilter.workflows.limit import limit as run_limit
    from freqfilter.workflows.limit import log_limit

    if launched:
        need_store(params)
        name = f"limit {default_run_name(recipe, given)}"
        found, run = log_limit(
            params, noise_seed=noise_seed, recipe=recipe, name=name, stopping=watch, console=Terminal()
        )
    else:
        file = picture or (None if as_json else "limit.png")
        path = user_path(file, folder) if file else None
        found = run_limit(params, noise_seed=noise_seed, picture=path, console=Quiet() if as_json else Terminal())
    click.echo(json.dumps(found.to_dict()) if as_json else f"\n{found.table()}\n\n{found.remarks()}")
    if launched:
        click.echo("\n".join(pages(run)))


@cli.command()
@click.option("--version", "version", metavar="N", help="version of model_name  [default: the newest]")
@click.option("--run_id", metavar="ID", help="the run whose model is scored, in place of a version")
@click.option(
    "--realizations",
    type=click.IntRange(0, 1000),
    default=0,
    show_default=True,
    help="number of fresh noise realizations to score on as well",
)
@parameter_options(sections=("tracking",))
@click.pass_obj
def evaluate(
    watch: Stopping, /, version: str | None, run_id: str | None, realizations: int, **typed: str | None
) -> None:
    """Score a version or a run's model on its test set."""
    given = given_words(typed)
    params = resolve(given, folder=typing_folder(given))
    need_store(params)
    from freqfilter.last_words import pages
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
    click.echo(f"\n{done.uri}, run {done.run.run_id}")
    click.echo("\n".join(pages(done.run)))


@cli.command()
@click.option("--port", type=click.IntRange(1, 65535), default=5000, show_default=True, help="port of the server")
@click.pass_obj
def ui(watch: Stopping, port: int) -> None:
    """Open MLflow's UI and print the newest run's address."""
    from freqfilter.terminal import Terminal
    from freqfilter.workflows.ui import ui as run_ui

    sys.exit(run_ui(port=port, stopping=watch, console=Terminal()))


@cli.command()
@click.option(
    "--runs",
    metavar="LIST|FILTER",
    help="run ids, run names, versions (3, NAME/3, @champion), separated by commas; or a filter such as "
    "\"params.cell = 'gru'\"  [default: the newest ten that have finished]",
)
@click.option(
    "--realizations",
    type=click.IntRange(0, 1000),
    default=DEFAULT_REALIZATIONS,
    show_default=True,
    help="number of fresh noise realizations for the paired test: at least 6 for two trainings, more for more; 0: none",
)
@click.option("--page", metavar="FILE", default="comparison.html", show_default=True, help="the page to write")
@parameter_options(sections=("tracking",))
@click.pass_obj
def compare(watch: Stopping, /, runs: str | None, realizations: int, page: str, **typed: str | None) -> None:
    """Compare trainings and test their differences.

    The page has parameters, errors with intervals, curves and cost.
    """
    given = given_words(typed)
    folder = typing_folder({"page": page} | given)
    params = resolve(given, folder=folder)
    need_store(params)
    from freqfilter.last_words import pages
    from freqfilter.terminal import Terminal
    from freqfilter.workflows.compare import compare as run_compare

    path = user_path(page, folder)
    report = run_compare(
        params.tracking, runs=runs, realizations=realizations, page=path, stopping=watch, console=Terminal()
    )
    click.echo(
        f"\n{report.text}\n\nwritten: {path}\nrun {report.run.run_id}, comparison/report.html among its artifacts"
    )
    click.echo("\n".join(pages(report.run)))
