"""The group that all commands belong to."""

from __future__ import annotations

import click

from freqfilter import __version__
from freqfilter.options import Command

GROUPS = {
    "Everyday": ("train", "original", "compare", "evaluate", "promote", "ui"),
    "More": (
        "vary", "find_learning_rate", "limit", "prepare", "rollback", "history", "serve", "export", "copy",
    ),
    "Upkeep": ("resume", "sync", "doctor", "init_store"),
}  # fmt: skip


class Group(click.Group):
    """A group whose help lists the commands under the headings of ``GROUPS``."""

    command_class = Command

    def format_commands(self, _context: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands, each with the first sentence of its help."""
        widest = max(map(len, self.commands))
        for heading, names in GROUPS.items():
            with formatter.section(heading):
                room = formatter.width - widest - 6
                formatter.write_dl(
                    [(name.ljust(widest), self.commands[name].get_short_help_str(room)) for name in names]
                )


@click.group(cls=Group, context_settings={"max_content_width": 110})
@click.version_option(__version__, prog_name="freqfilter")
def cli() -> None:
    """Train a filter that extracts one sinusoid from a noisy mixture, tracked in MLflow.

    A job that records a run is also an entry point of the MLproject: `mlflow run . -e JOB -P name=value`; `main` is
    train.
    """
