"""Command-line entry point: a user error is printed on one line and exits with status 2."""

from __future__ import annotations

import atexit
import gc
import os
import sys

import click

from freqfilter.errors import UserError
from freqfilter.process import (
    Interrupted,
    launched_by_mlflow,
    launcher,
    set_status_after,
    shutdown,
    tolerant_of_warnings,
)
from freqfilter.progress import progress_output
from freqfilter.streams import safe_streams, standard_output
from freqfilter.tracking import configure_environment

USER_ERROR = 2  # exit status of errors that a user can fix
OUTPUT_ERROR = 1  # exit status of a command whose output is its only result, and could not be written


def load_commands() -> click.Group:
    """Import all commands and return their group. Each command imports its job when it runs, so ``--help`` is fast.

    Raises:
        UserError: If params.yaml cannot be read.
    """
    from freqfilter.cli import inspect, registry, train  # noqa: F401
    from freqfilter.cli.command import cli

    return cli


def main() -> None:
    """Run the command line."""
    atexit.register(gc.freeze)  # else the interpreter's last garbage collection delays each command by a second
    configure_environment()
    launcher()  # imports what finding it needs, before a signal can interrupt the import
    with safe_streams(), tolerant_of_warnings():
        if output := standard_output():
            output.forwards = False  # until a command starts that has results beside its output
        try:
            with shutdown.installed(), progress_output():  # inside: a signal may come as soon as it is handled
                commands = load_commands()
                commands(standalone_mode=False)
            if output and output.error and not output.forwards:
                sys.exit(OUTPUT_ERROR)
        except click.exceptions.NoArgsIsHelpError as error:
            click.echo(error.format_message())
            sys.exit(USER_ERROR)
        except click.ClickException as error:
            sys.exit(_fail(error.format_message().replace("No such option", "unknown parameter")))
        except UserError as error:
            sys.exit(_fail(str(error)))
        except Interrupted as interrupted:
            _stop_unopened_run()
            remedy = f"; resume with: {interrupted.remedy}" if interrupted.remedy else ""
            click.echo(f"freqfilter: stopped by {interrupted}{remedy}", err=True)
            sys.exit(interrupted.exit_code)


def _fail(message: str) -> int:
    click.echo(f"freqfilter: {' '.join(message.split())}", err=True)
    return USER_ERROR


def _stop_unopened_run() -> None:
    """Set the status KILLED of a run that `mlflow run` has created but this process has not opened."""
    if launched_by_mlflow() and (parent := launcher()):
        set_status_after(parent, os.environ["MLFLOW_RUN_ID"], "KILLED")
