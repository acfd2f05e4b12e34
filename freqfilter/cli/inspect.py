"""Commands that inspect data, limits, models and stores: prepare, limit, evaluate, compare, ui, doctor, init_store."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from freqfilter.api import DEFAULT_REALIZATIONS
from freqfilter.cli.command import Request, cli, command, recipe_option, version_option
from freqfilter.config import TrackingParams
from freqfilter.errors import UserError
from freqfilter.process import launched_by_mlflow
from freqfilter.progress import quiet

if TYPE_CHECKING:
    from freqfilter.tracking.ui_views import RunRef

REALIZATIONS = click.IntRange(0, 1000)


@command(parameters=("signals", "data", "tracking"), paths=("output",))
@recipe_option
@click.option("--output", default="data/training_data.npz", help="file to write")
def prepare(request: Request, output: Path) -> RunRef:
    """Generate data and write its windows to a file."""
    params = request.resolve(online=True, noise="fixed")
    if params.data.data_file is not None:
        raise UserError("data_file: prepare generates windows from a signal model; omit it")
    if params.data.noise != "fixed":
        raise UserError(f"noise={params.data.noise}: a file holds one realization; use noise=fixed")
    from freqfilter.pipelines.prepare import prepare as run_prepare

    name = f"prepare {request.run_name()}"
    return run_prepare(params, output=output, recipe=request.recipe, name=name)


@command(paths=("picture",))
@recipe_option
@click.option(
    "--noise_seed",
    type=click.IntRange(0, 2**32 - 1),
    help="score all windows of this noise realization instead of the expectation",
)
@click.option("--json", "as_json", is_flag=True, help="print JSON; write a picture only if --picture is given")
@click.option("--picture", metavar="FILE", help="picture to write  [default: limit.png; none with --json]")
def limit(request: Request, noise_seed: int | None, as_json: bool, picture: Path | None) -> RunRef | None:
    """Compute the limit, the least expected error.

    Under `mlflow run` table, figures and picture are logged to the run.
    """
    launched = launched_by_mlflow()
    params = request.resolve(online=launched)
    if params.data.data_file is not None:
        raise UserError("data_file: a file has no signal model, so its limit is unknown; omit it")
    if launched and (picture or as_json):
        raise UserError("picture and json: under `mlflow run` both are artifacts of the run; omit them")
    from freqfilter.pipelines.prepare import compute_limit, log_limit

    if launched:
        name = f"limit {request.run_name()}"
        report, run = log_limit(params, noise_seed=noise_seed, recipe=request.recipe, name=name)
        click.echo(f"\n{report.table()}\n\n{report.remarks()}")
        return run
    if as_json:
        quiet()
    file = picture or (None if as_json else request.folder / "limit.png")
    report = compute_limit(params, noise_seed=noise_seed, picture=file)
    click.echo(json.dumps(report.to_dict()) if as_json else f"\n{report.table()}\n\n{report.remarks()}")
    return None


@command(parameters=("tracking",))
@version_option
@click.option("--run_id", metavar="ID", help="run whose model is scored instead of a version")
@click.option(
    "--realizations", type=REALIZATIONS, default=0, help="number of fresh noise realizations to score on as well"
)
def evaluate(tracking: TrackingParams, version: int | None, run_id: str | None, realizations: int) -> RunRef:
    """Score a version or a run's model on its test set.

    The default is the newest version.
    """
    from freqfilter.pipelines.evaluate import evaluate as run_evaluate

    result = run_evaluate(tracking, version=version, run_id=run_id, realizations=realizations)
    click.echo(f"\n{result.uri}, run {result.run.run_id}")
    return result.run


@command(parameters=("tracking",), paths=("page",))
@click.option(
    "--runs",
    metavar="LIST|FILTER",
    help="run ids, run names, versions (3, NAME/3, @champion), separated by commas; or a filter such as "
    "\"params.cell = 'gru'\"  [default: the newest ten that have finished]",
)
@click.option(
    "--realizations",
    type=REALIZATIONS,
    default=DEFAULT_REALIZATIONS,
    help="number of fresh noise realizations for the paired test: at least 6 for two trainings, more for more; 0: none",
)
@click.option("--page", metavar="FILE", default="comparison.html", help="HTML page to write")
def compare(tracking: TrackingParams, runs: str | None, realizations: int, page: Path) -> RunRef:
    """Compare trainings and test their differences.

    The page has parameters, errors with intervals, curves and cost.
    """
    from freqfilter.pipelines.compare import compare as run_compare

    report = run_compare(tracking, runs=runs, realizations=realizations, page=page)
    click.echo(
        f"\n{report.text}\n\nwritten: {page}\nrun {report.run.run_id}, comparison/report.html among its artifacts"
    )
    return report.run


@cli.command()
@click.option("--port", type=click.IntRange(1, 65535), default=5000, help="port of the server")
def ui(port: int) -> None:
    """Start MLflow's UI and print the newest run's address."""
    from freqfilter.pipelines.serve import ui as run_ui

    sys.exit(run_ui(port=port))


@cli.command("init_store")
def init_store() -> None:
    """Create the tables of the tracking store."""
    from freqfilter.tracking.client import open_store

    click.echo(f"tracking store: {open_store()}")


@command(parameters=("run_dir",))
def doctor(request: Request) -> None:
    """Check the installation; close runs of dead processes."""
    from freqfilter.pipelines.doctor import check_installation

    check_installation(request.resolve())
