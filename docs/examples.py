"""Examples in docstrings, which begin with >>>, as code on the site: a fence around each."""

from __future__ import annotations

import re
from typing import Any

import griffe

EXAMPLE = re.compile(r"(?:^>>> .*\n(?:^(?:\.\.\. |[^\s>]).*(?:\n|\Z))*)+", re.MULTILINE)


class Examples(griffe.Extension):
    """What mkdocstrings asks to look at every object that it documents."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Put fences into its docstring."""
        if obj.docstring:
            obj.docstring.value = fenced(obj.docstring.value)


def fenced(docstring: str) -> str:
    r"""A docstring with a fence around each run of examples and what they give.

    >>> fenced("Twice.\n\n>>> 1 + 1\n2\n").split("\n")
    ['Twice.', '', '```pycon', '>>> 1 + 1', '2', '```', '']
    """
    return EXAMPLE.sub(lambda found: f"```pycon\n{found[0].rstrip()}\n```\n", docstring)
