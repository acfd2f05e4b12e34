"""Commands that go on with what was interrupted, and keep the store in order."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from freqfilter.commands.going_on import resume_one
from freqfilter.commands.group import cli
from freqfilter.options import given_words, parameter_options, recipe_option, typing_folder
from freqfilter.params.resolve import resolve
from freqfilter.stopping import Stopping

if TYPE_CHECKING:
    from freqfilter.params import Params


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
    from freqfilter.last_words import view_in_mlflow
    from freqfilter.terminal import Terminal
    from freqfilter.workflows.sync import sync as run_sync

    console = Terminal()
    try:
        where = run_sync(Path(params.tracking.run_dir), stopping=watch, console=console)
    finally:
        console.close()
    click.echo(view_in_mlflow(where))


@cli.command("init_store")
def init_store() -> None:
    """Create the tables of the tracking store."""
    from freqfilter.tracking.store import open_store

    click.echo(f"tracking store: {open_store()}")


@cli.command()
@click.option("--run_dir", metavar="FOLDER", help="folder of the runs' files  [default: that of params.yaml]")
def doctor(run_dir: str | None) -> None:
    """Check the installation; close runs of dead processes."""
    params = _kept_in(run_dir)
    from freqfilter.terminal import Terminal
    from freqfilter.workflows.doctor import examine

    examine(params, console=Terminal())


def _kept_in(run_dir: str | None) -> Params:
    given = {"run_dir": run_dir} if run_dir else {}
    return resolve(given, folder=typing_folder(given))
