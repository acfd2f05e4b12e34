"""Commands that inspect data, limits, models and stores, and resume or deliver interrupted runs."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from freqfilter.api import DEFAULT_REALIZATIONS
from freqfilter.cli.command import cli, given_words, parameter_options, recipe_option, typing_folder
from freqfilter.cli.train import resume_one
from freqfilter.config.ablation import default_run_name
from freqfilter.config.load import require_online, resolve, user_path
from freqfilter.errors import UserError
from freqfilter.process import Stopping, launched_by_mlflow

if TYPE_CHECKING:
    from freqfilter.config import Params


@cli.command()
@recipe_option
@click.option("--output", default="data/training_data.npz", show_default=True, help="the file to write")
@parameter_options(sections=("signals", "data", "tracking"))
@click.pass_obj
def prepare(watch: Stopping, /, recipe: str, output: str, **typed: str | None) -> None:
    """Draw the data and write its windows to a file."""
    from freqfilter.cli.command import pages
    from freqfilter.pipelines.prepare import prepare as run_prepare
    from freqfilter.progress import Terminal

    given = given_words(typed)
    folder = typing_folder({"recipe": recipe, "output": output} | given)
    params = resolve({"noise": "fixed"} | given, recipe=recipe, folder=folder)
    if params.data.data_file is not None:
        raise UserError("data_file: it is a file of windows already; prepare draws and writes those of a signal model")
    if params.data.noise != "fixed":
        raise UserError(f"noise={params.data.noise}: a file holds one realization; the only value is fixed")
    require_online(params)
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
    from freqfilter.cli.command import pages
    from freqfilter.pipelines.limit import limit as run_limit
    from freqfilter.pipelines.limit import log_limit
    from freqfilter.progress import Quiet, Terminal

    if launched:
        require_online(params)
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
    require_online(params)
    from freqfilter.cli.command import pages
    from freqfilter.pipelines.evaluate import evaluate as run_evaluate
    from freqfilter.progress import Terminal

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
    from freqfilter.pipelines.serve import ui as run_ui
    from freqfilter.progress import Terminal

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
    require_online(params)
    from freqfilter.cli.command import pages
    from freqfilter.pipelines.compare import compare as run_compare
    from freqfilter.progress import Terminal

    path = user_path(page, folder)
    report = run_compare(
        params.tracking, runs=runs, realizations=realizations, page=path, stopping=watch, console=Terminal()
    )
    click.echo(
        f"\n{report.text}\n\nwritten: {path}\nrun {report.run.run_id}, comparison/report.html among its artifacts"
    )
    click.echo("\n".join(pages(report.run)))


@cli.command()
@click.argument("run_id", metavar="RUN_ID|auto")
@click.option("--abandoned", is_flag=True, help="resume even if another machine is recorded as working on it")
@recipe_option
@parameter_options()
@click.pass_obj
def resume(watch: Stopping, /, run_id: str, abandoned: bool, recipe: str, **typed: str | None) -> None:
    """Resume an interrupted training in the same run.

    RUN_ID is the run's id; auto is the newest unfinished run with the given parameters. The run's own parameters apply.
    """
    given = given_words(typed)
    resume_one(watch, run_id, recipe, given, abandoned=abandoned)


@cli.command()
@click.option("--run_dir", metavar="FOLDER", help="folder of the runs' files  [default: that of params.yaml]")
@click.pass_obj
def sync(watch: Stopping, run_dir: str | None) -> None:
    """Deliver runs that were offline.

    Also runs whose tracking store went away.
    """
    params = _kept_in(run_dir)
    from freqfilter.cli.command import view_in_mlflow
    from freqfilter.pipelines.sync import sync as run_sync
    from freqfilter.progress import Terminal

    console = Terminal()
    try:
        where = run_sync(Path(params.tracking.run_dir), stopping=watch, console=console)
    finally:
        console.close()
    click.echo(view_in_mlflow(where))


@cli.command("init_store")
def init_store() -> None:
    """Create the tables of the tracking store."""
    from freqfilter.tracking.client import open_store

    click.echo(f"tracking store: {open_store()}")


@cli.command()
@click.option("--run_dir", metavar="FOLDER", help="folder of the runs' files  [default: that of params.yaml]")
def doctor(run_dir: str | None) -> None:
    """Check the installation; close runs of dead processes."""
    params = _kept_in(run_dir)
    from freqfilter.pipelines.doctor import examine
    from freqfilter.progress import Terminal

    examine(params, console=Terminal())


def _kept_in(run_dir: str | None) -> Params:
    given = {"run_dir": run_dir} if run_dir else {}
    return resolve(given, folder=typing_folder(given))
