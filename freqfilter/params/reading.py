"""Reading YAML from people: every scalar stays the text that was written, so that the schema alone gives types.

YAML 1.1 would read ``1e-3`` as text, ``no`` as false, ``010`` as 8 and ``1:30`` as 90.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from freqfilter.errors import UserError, one_line

LARGEST_FILE = 1_000_000  # bytes; a file of parameters has a few thousand


class _TextLoader(yaml.BaseLoader):
    """YAML without types, aliases or doubled keys."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases (*name) are not allowed")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if not isinstance(key.value, str) or key.value in seen:
                raise yaml.YAMLError(f"line {key.start_mark.line + 1}: {key.value!r} stands twice or is no name")
            seen.add(key.value)
        return dict(super().construct_mapping(node, deep=deep))


def parse(text: str) -> Any:
    """The value that YAML text states, its scalars as text and ``null``, ``~`` and nothing as None.

    >>> parse("[1e-3, no, null]")
    ['1e-3', 'no', None]

    Raises:
        UserError: If the text is not YAML, has aliases or doubled keys.
    """
    try:
        return _nulls(yaml.load(text, Loader=_TextLoader))  # noqa: S506 (BaseLoader makes text only)
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise UserError(f"not valid YAML: {line}{error.problem}") from None
    except (yaml.YAMLError, RecursionError) as error:
        raise UserError(f"not valid YAML: {one_line(error)}") from None


def _nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _nulls(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_nulls(inner) for inner in value]
    return None if value in ("", "~", "null") else value


def read_sections(path: Path) -> dict[str, dict[str, Any]]:
    """The sections of a file of parameters.

    Raises:
        UserError: If the file cannot be read or is not a mapping of sections to names and values.
    """
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise UserError(f"{path}: larger than {LARGEST_FILE:,} bytes, so not a file of parameters")
        content = parse(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8 text, so not a file of parameters") from None
    except UserError as error:
        raise UserError(str(error) if str(error).startswith(str(path)) else f"{path}: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds no sections; see params.yaml for the form")
    for section, values in content.items():
        if not isinstance(values, dict):
            raise UserError(f"{path}: section {section!r} holds no `name: value` lines")
    return content
