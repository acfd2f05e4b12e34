"""Commands of the model registry: promote, rollback, history, copy, export, serve."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from freqfilter.cli.command import cli, given_words, parameter_options, typing_folder
from freqfilter.config.load import require_online, resolve, user_path
from freqfilter.config.schema import Bounds
from freqfilter.process import Stopping, launcher

if TYPE_CHECKING:
    from freqfilter.config import TrackingParams

REFUSAL = 1  # the exit code of a refusal; an error has another

version_option = click.option(
    "--version", "number", type=click.IntRange(min=1), metavar="N", help="version of model_name"
)


@cli.command()
@version_option
@click.option(
    "--most_over_limit",
    type=float,
    default=Bounds.most_over_limit,
    show_default=True,
    help="largest ratio of its MSE to the limit",
)
@click.option(
    "--most_over_limit_per_frequency",
    type=float,
    default=Bounds.most_over_limit_per_frequency,
    show_default=True,
    help="the same for each component",
)
@click.option(
    "--margin",
    type=click.FloatRange(min=0),
    default=Bounds.margin,
    show_default=True,
    help="share of the champion's MSE by which it may be worse, for example if it is faster; 0: it must be better",
)
@click.option(
    "--most_milliseconds",
    type=float,
    default=Bounds.most_milliseconds,
    show_default=True,
    help="largest latency for one window on one thread, milliseconds",
)
@click.option(
    "--most_megabytes",
    type=float,
    default=Bounds.most_megabytes,
    show_default=True,
    help="largest size of its files, MB",
)
@click.option(
    "--noise_seed",
    type=click.IntRange(0, 2**32 - 101),
    help="seed of the first noise realization  [default: derived from both models' digests]",
)
@click.option("--force", metavar="REASON", help="promote it whatever the checks say; the reason is recorded")
@parameter_options(sections=("tracking",))
@click.pass_obj
def promote(
    watch: Stopping,
    /,
    number: int | None,
    most_over_limit: float,
    most_over_limit_per_frequency: float,
    margin: float,
    most_milliseconds: float,
    most_megabytes: float,
    noise_seed: int | None,
    force: str | None,
    **typed: str | None,
) -> None:
    """Make a version the champion if it is better.

    It has to be near the limit, and better than the champion by more than chance. The default is the newest version.
    The exit code is 1 if it is refused, else 0.
    """
    tracking, process = _tracking(typed), launcher()
    from freqfilter.cli.command import pages
    from freqfilter.pipelines.promote import Outcome
    from freqfilter.pipelines.promote import promote as run_promote
    from freqfilter.progress import Terminal

    bounds = Bounds(most_over_limit, most_over_limit_per_frequency, margin, most_milliseconds, most_megabytes)
    decision = run_promote(
        tracking,
        number=number,
        bounds=bounds,
        noise_seed=noise_seed,
        force=force,
        stopping=watch,
        console=Terminal(),
    )
    for rung in decision.evidence.rungs:
        click.echo(f"{ {True: 'passed', False: 'FAILED', None: '–'}[rung.passed]:8} {rung.name}: {rung.words}")
    click.echo(f"\n{decision.outcome}: {decision.candidate.model_name} version {decision.candidate.number}")
    click.echo(f"{decision.reason}\nrun {decision.run.run_id}, decision/report.md among its artifacts")
    click.echo("\n".join(pages(decision.run, "decisions")))
    if decision.outcome == Outcome.REFUSED:
        if process:
            from freqfilter.tracking.owner import set_status_after

            set_status_after(process, decision.run.run_id, "FINISHED")  # a refusal is a decision made
        sys.exit(REFUSAL)


@cli.command()
@version_option
@click.option("--reason", default="not stated", show_default=True, help="the reason, which is recorded")
@parameter_options(sections=("tracking",))
@click.pass_obj
def rollback(watch: Stopping, /, number: int | None, reason: str, **typed: str | None) -> None:
    """Make the previous champion the champion again.

    With --version it is that version.
    """
    tracking = _tracking(typed)
    from freqfilter.cli.command import pages
    from freqfilter.pipelines.promote import rollback as run_rollback

    done = run_rollback(tracking, number=number, reason=reason, stopping=watch)
    click.echo(
        f"champion of {tracking.model_name}: version {done.before.number} before, version {done.after.number} now"
    )
    click.echo(f"run {done.run.run_id}")
    click.echo("\n".join(pages(done.run, "decisions")))


@cli.command()
@click.option("--csv", "form", flag_value="csv", help="print CSV, for programs")
@click.option("--json", "form", flag_value="json", help="print JSON, for programs")
@parameter_options(sections=("tracking",))
def history(form: str | None, **typed: str | None) -> None:
    """Show a model's registrations and decisions."""
    tracking = _tracking(typed)
    from tabulate import tabulate

    from freqfilter.pipelines.history import history as run_history

    table = run_history(tracking)
    if form == "csv":
        click.echo(table.to_csv(index=False), nl=False)
    elif form == "json":
        click.echo(table.to_json(orient="records", indent=2))
    else:
        shown = table.assign(evidence=table["evidence"].str[:8], why=table["why"].str.slice(0, 60))
        click.echo(tabulate(shown.to_numpy().tolist(), headers=list(table.columns)))


@cli.command()
@version_option
@click.option("--to", required=True, metavar="URI", help="tracking URI of the other registry")
@click.option("--to_name", metavar="NAME", help="name of the model there  [default: the same]")
@parameter_options(sections=("tracking",))
def copy(number: int | None, to: str, to_name: str | None, **typed: str | None) -> None:
    """Copy a version to another model registry."""
    tracking = _tracking(typed)
    from freqfilter.pipelines.deploy import copy_version

    copied = copy_version(tracking, number=number, to=to, to_name=to_name)
    click.echo(f"{copied.model_name} version {copied.number} at {copied.tracking_uri}")


@cli.command()
@version_option
@click.option("--output", metavar="FILE", default="filter.onnx", show_default=True, help="the file to write")
@parameter_options(sections=("tracking",))
@click.pass_obj
def export(watch: Stopping, /, number: int | None, output: str, **typed: str | None) -> None:
    """Write a version as an ONNX file."""
    tracking = _tracking(typed)
    path = user_path(output, typing_folder({"output": output} | given_words(typed)))
    from freqfilter.pipelines.deploy import export as run_export

    done = run_export(tracking, number=number, output=path, stopping=watch)
    click.echo(
        f"written: {path}, {done.version.model_name} version {done.version.number}; its estimates differ from the "
        f"version's by {done.largest_difference:.0e} at most"
    )


@cli.command()
@version_option
@click.option("--port", type=click.IntRange(1, 65535), default=5001, show_default=True, help="port of the server")
@parameter_options(sections=("tracking",))
@click.pass_obj
def serve(watch: Stopping, /, number: int | None, port: int, **typed: str | None) -> None:
    """Serve a version, by default the champion, over HTTP."""
    tracking = _tracking(typed)
    from freqfilter.pipelines.serve import serve as run_serve
    from freqfilter.progress import Terminal

    sys.exit(run_serve(tracking, number=number, port=port, stopping=watch, console=Terminal()))


def _tracking(typed: dict[str, str | None]) -> TrackingParams:
    given = given_words(typed)
    params = resolve(given, folder=typing_folder(given))
    require_online(params)
    return params.tracking
