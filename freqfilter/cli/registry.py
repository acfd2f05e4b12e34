"""Commands of the model registry: promote, rollback, history, copy, export, serve."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from freqfilter.cli.command import Request, command, recipe_option, run_links, version_option
from freqfilter.config import TrackingParams
from freqfilter.config.schema import Bounds
from freqfilter.errors import without_credentials
from freqfilter.process import launcher, set_status_after

if TYPE_CHECKING:
    from freqfilter.tracking.ui_views import RunRef

REFUSAL = 1  # exit status of a refusal; that of an error is 2


def bound_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Decorator that adds an option for each acceptance criterion."""
    for bound in reversed(fields(Bounds)):
        kind = click.BOOL if isinstance(bound.default, bool) else click.FloatRange(min=0)
        option = click.option(f"--{bound.name}", type=kind, default=bound.default, help=bound.metadata["help"])
        option(function)
    return function


@command()
@recipe_option
@click.option("--method", default="kalman", help="kalman: the Kalman filter of a random signal model")
def register_classical(request: Request, method: str) -> RunRef:
    """Test a classical filter of the signals and register it.

    The filter has no training; it becomes champion through the same checks as a trained one.
    """
    params = request.resolve(online=True)
    from freqfilter.pipelines.classical import register_classical as run_register
    from freqfilter.pipelines.model_card import scores_table

    name = f"{method} {request.run_name()}"
    result = run_register(params, method=method, recipe=request.recipe, name=name)
    click.echo(f"\n{scores_table(result.compared.table, 'simple')}\n")
    if result.version:
        click.echo(f"registered: {result.model_name} version {result.version}")
    return result.run


@command(parameters=("tracking",))
@version_option
@bound_options
@click.option(
    "--noise_seed",
    type=click.IntRange(0, 2**32 - 101),
    help="seed of the first noise realization  [default: derived from both models' digests]",
)
@click.option("--force", metavar="REASON", help="promote even if checks fail; the reason is recorded")
def promote(
    tracking: TrackingParams, version: int | None, noise_seed: int | None, force: str | None, **bounds: Any
) -> None:
    """Make a version the champion if it is better.

    It has to be near the limit, and significantly better than the champion. The default is the newest version.
    The exit status is 1 if it is refused, else 0.
    """
    process = launcher()
    from freqfilter.pipelines.promote import Outcome
    from freqfilter.pipelines.promote import promote as run_promote

    decision = run_promote(tracking, version=version, bounds=Bounds(**bounds), noise_seed=noise_seed, force=force)
    for check in decision.report.checks:
        click.echo(f"{ {True: 'passed', False: 'FAILED', None: '–'}[check.passed]:8} {check.name}: {check.summary}")
    click.echo(f"\n{decision.outcome}: {decision.candidate.model_name} version {decision.candidate.version}")
    click.echo(f"{decision.reason}\nrun {decision.run.run_id}, decision/report.md among its artifacts")
    click.echo("\n".join(run_links(decision.run, "decisions")))
    if decision.outcome == Outcome.REJECTED:
        if process:
            set_status_after(
                process, decision.run.run_id, "FINISHED", owner_id=None
            )  # a refusal is not a failure of the run
        sys.exit(REFUSAL)


@command(parameters=("tracking",), view="decisions")
@version_option
@click.option("--reason", default="not stated", help="reason, which is recorded")
def rollback(tracking: TrackingParams, version: int | None, reason: str) -> RunRef:
    """Make the previous champion the champion again.

    With --version, that version becomes the champion.
    """
    from freqfilter.pipelines.rollback import rollback as run_rollback

    result = run_rollback(tracking, version=version, reason=reason)
    before = f"version {result.before.version}" if result.before else "none"
    click.echo(f"champion of {tracking.model_name}: {before} before, version {result.after.version} now")
    click.echo(f"run {result.run.run_id}")
    return result.run


@command(parameters=("tracking",))
@click.option("--csv", "form", flag_value="csv", help="print CSV")
@click.option("--json", "form", flag_value="json", help="print JSON")
def history(tracking: TrackingParams, form: str | None) -> None:
    """Show a model's registrations and decisions."""
    from tabulate import tabulate

    from freqfilter.tracking.history import history as run_history

    table = run_history(tracking)
    if form == "csv":
        click.echo(table.to_csv(index=False), nl=False)
    elif form == "json":
        click.echo(table.to_json(orient="records", indent=2))
    else:
        shown = table.assign(evidence=table["evidence"].str[:8], why=table["why"].str.slice(0, 60))
        click.echo(tabulate(shown.to_numpy().tolist(), headers=list(table.columns)))


@command(parameters=("tracking",))
@version_option
@click.option("--to", required=True, metavar="URI", help="tracking URI of the other registry")
@click.option("--to_name", metavar="NAME", help="name of the model there  [default: the same]")
def copy(tracking: TrackingParams, version: int | None, to: str, to_name: str | None) -> None:
    """Copy a version to another model registry.

    The default is the newest version.
    """
    from freqfilter.pipelines.deploy import copy_version

    number = copy_version(tracking, version=version, to=to, to_name=to_name)
    click.echo(f"{to_name or tracking.model_name} version {number} at {without_credentials(to)}")


@command(parameters=("tracking",), paths=("output",))
@version_option
@click.option("--output", metavar="FILE", default="filter.onnx", help="file to write")
def export(tracking: TrackingParams, version: int | None, output: Path) -> None:
    """Write a version as an ONNX file.

    The default is the newest version.
    """
    from freqfilter.pipelines.deploy import export as run_export

    exported, difference = run_export(tracking, version=version, output=output)
    click.echo(
        f"written: {output}, {exported.model_name} version {exported.version}; its estimates differ from the version's "
        f"by at most {difference:.0e}"
    )


@command(parameters=("tracking",))
@version_option
@click.option("--port", type=click.IntRange(1, 65535), default=5001, help="port of the server")
def serve(tracking: TrackingParams, version: int | None, port: int) -> None:
    """Serve a version, by default the champion, over HTTP."""
    from freqfilter.pipelines.serve import serve as run_serve

    sys.exit(run_serve(tracking, version=version, port=port))
