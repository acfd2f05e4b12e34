"""The group that all commands belong to."""

from __future__ import annotations

import click

from freqfilter import __version__


@click.group(context_settings={"max_content_width": 110})
@click.version_option(__version__, prog_name="freqfilter")
def cli() -> None:
    """Train a filter that picks one sinusoid out of a noisy mixture, tracked in MLflow.

    Every job is also an entry point of the MLproject: `mlflow run . -e JOB -P name=value`.
    """
