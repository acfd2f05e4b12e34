"""The commands: words typed by a person become one call to a workflow.

What the heavy imports cost is paid by the jobs that need them, not by ``--help``: they stand inside the commands.
"""

from freqfilter.commands import champions, looking, training, upkeep
from freqfilter.commands.group import cli

__all__ = ["champions", "cli", "looking", "training", "upkeep"]
