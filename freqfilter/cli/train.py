"""Commands that train or resume: train, original, ablate, find_learning_rate, resume, sync."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from freqfilter.cli.command import Request, command, recipe_option, store_link
from freqfilter.config.ablation import ablation_variants, seed_variants
from freqfilter.config.load import resolve
from freqfilter.errors import UserError
from freqfilter.process import launched_run

if TYPE_CHECKING:
    from freqfilter.config import Params
    from freqfilter.pipelines.train import TrainingResult
    from freqfilter.tracking.ui_views import RunRef


seeds_option = click.option(
    "--seeds", metavar="LIST", help='train once with each seed, such as "[1, 2, 3]", for mean and spread'
)


@command()
@recipe_option
@seeds_option
def train(request: Request, seeds: str | None) -> RunRef | None:
    """Train a filter as one tracked run and register it."""
    return _train(request, seeds)


@command()
@seeds_option
def original(request: Request, seeds: str | None) -> RunRef | None:
    """Train with the recipe of the original script."""
    return _train(replace(request, recipe="original"), seeds)


@command()
@recipe_option
@click.option(
    "--values", required=True, metavar="MAPPING", help='values to try, such as "{hidden_size: [64, 256], cell: gru}"'
)
def ablate(request: Request, values: str) -> RunRef:
    """Train once for each value of a parameter.

    The first run has the parameters given; in each of the others one value replaces one of them.

    Nothing is registered unless register=true is given.
    """
    given = {"register": "false"} | request.overrides
    variants = ablation_variants(values, given, recipe=request.recipe, folder=request.folder)
    return _train_variants(request, variants, workflow="ablate", values=values)


@command()
@recipe_option
@click.option("--lowest", type=float, default=1e-6, help="learning rate of the first step")
@click.option("--highest", type=float, default=1.0, help="learning rate of the last step")
@click.option("--n_steps", type=click.IntRange(min=3), default=100, help="number of steps")
def find_learning_rate(request: Request, lowest: float, highest: float, n_steps: int) -> RunRef:
    """Suggest a learning rate by a range test."""
    if not (0 < lowest < highest < math.inf):
        raise UserError(f"lowest={lowest:g}, highest={highest:g}: give 0 < lowest < highest")
    params = request.resolve(online=True)
    from freqfilter.pipelines.find_learning_rate import find_learning_rate as run_range_test

    name = f"find_learning_rate {request.run_name()}"
    run = run_range_test(params, lowest=lowest, highest=highest, n_steps=n_steps, recipe=request.recipe, name=name)
    click.echo(f"run {run.run_id} in experiment {run.experiment}")
    return run


@command()
@click.argument("run_id", metavar="RUN_ID|auto")
@click.option("--take-over", is_flag=True, help="resume a run of another machine, whose process stops if it still runs")
@recipe_option
def resume(request: Request, run_id: str, take_over: bool) -> RunRef | None:
    """Resume an interrupted training in the same run.

    RUN_ID is the run's id; auto is the newest unfinished run with the given parameters. The run's own parameters apply.
    """
    return _resume(request, run_id, take_over=take_over)


@command(parameters=("run_dir",))
def sync(request: Request) -> None:
    """Deliver runs that were offline.

    Runs whose tracking store became unreachable are delivered too.
    """
    run_dir = Path(request.resolve().tracking.run_dir)
    from freqfilter.pipelines.sync import sync as run_sync

    click.echo(store_link(run_sync(run_dir)))


def _train(request: Request, seeds: str | None) -> RunRef | None:
    if seeds is not None:
        variants = seed_variants(seeds, request.overrides, recipe=request.recipe, folder=request.folder)
        return _train_variants(request, variants, workflow="seeds", seeds=seeds)
    run_id = launched_run()
    params = request.resolve(online=run_id is not None)
    if run_id:
        from freqfilter.pipelines.resume import is_started

        if is_started(run_id):
            return _resume(request, run_id)
    from freqfilter.pipelines.train import train as run_train

    return _print_summary(run_train(params, recipe=request.recipe, name=request.run_name()))


def _train_variants(request: Request, variants: dict[str, Params], *, workflow: str, **options: str) -> RunRef:
    from freqfilter.pipelines.ablation import train_variants

    name = request.run_name(**options)
    run = train_variants(variants, workflow=workflow, options=options, recipe=request.recipe, name=name).run
    click.echo(f"run {run.run_id} in experiment {run.experiment}, with a child run for each line")
    return run


def _resume(request: Request, run_id: str, *, take_over: bool = False) -> RunRef | None:
    """Lock a run, load its resume point with the overrides, and train."""
    own = {name: value for name, value in request.overrides.items() if name == "run_dir"}
    # The other parameters of a named run are in its checkpoint.
    params = request.resolve() if run_id == "auto" else resolve(own, folder=request.folder)
    from freqfilter.pipelines.resume import claim, find_run, load_resume_point, newest_unfinished, with_changes

    run_dir = Path(params.tracking.run_dir)
    run = newest_unfinished(params) if run_id == "auto" else find_run(run_id, run_dir)
    with claim(run, run_dir, take_over=take_over) as lock:
        run = find_run(run.run_id, run_dir)  # again, now that no other process changes it
        resume_point = load_resume_point(run, lock)
        resume_point = with_changes(resume_point, request.overrides, recipe=request.recipe, folder=request.folder)
        from freqfilter.pipelines.train import train as run_train

        spec = resume_point.checkpoint.spec
        return _print_summary(
            run_train(spec.params, recipe=spec.recipe, name=resume_point.name, resume_point=resume_point)
        )


def _print_summary(trained: TrainingResult) -> RunRef | None:
    """Print best epoch, scores, run and version; return the run unless it is offline."""
    from freqfilter.pipelines.model_card import after_summary, limit_summary, scores_table

    best, run = trained.progress.best, trained.run
    click.echo(
        f"\nbest epoch {best.epoch} of {len(trained.progress.history)}: training loss {best.train_loss:.4f}, "
        f"validation MSE {best.val_mse:.4f}"
    )
    click.echo(f"\n{scores_table(trained.compared.table, 'simple')}\n\n{limit_summary(trained.metrics)}\n")
    if after := after_summary(trained.metrics):
        click.echo(f"after {after}\n")
    for line in trained.diagnoses.values():
        click.echo(f"diagnosis: {line}")
    if not run.tracking_uri:
        click.echo(f"offline: everything is in {trained.folder}; deliver it and register the model with:")
        click.echo("python -m freqfilter sync")
        return None
    click.echo(f"run {run.run_id} in experiment {run.experiment}")
    if trained.version is None:
        click.echo("not registered (register=false)")
    else:
        click.echo(f"registered: {trained.model_name} version {trained.version}")
        click.echo(f"load with: freqfilter.load({trained.model_name!r}, version={trained.version})")
    return run
