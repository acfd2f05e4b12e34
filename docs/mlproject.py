"""The comment block of the MLproject, made from params.yaml and the schema: `make mlproject` writes it."""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from freqfilter.config.load import default_text, defaults, fields, is_everyday  # noqa: E402

FIRST = "# Everyday parameters, their defaults and units; made by `make mlproject` from params.yaml and its schema:\n"
LAST = "# End of what `make mlproject` makes.\n"
# An example for each entry point, executed by tests/test_documentation.py.
EXAMPLES = {
    "main": "-P epochs=3 -P learning_rate=0.002",
    "original": "-P epochs=10",
    "ablate": '-P values="{cell: gru, hidden_size: [64, 256]}" -P epochs=3',
    "find_learning_rate": "-P n_steps=200",
    "register_classical": "-P method=kalman -P recipe=stochastic_cycles",
    "prepare": "-P output=data/training_data.npz -P noise_std=0.2",
    "limit": "-P window_length=100",
    "evaluate": "-P version=1 -P realizations=20",
    "compare": '-P runs="1, 2"',
    "promote": "-P version=2",
    "rollback": '-P reason="the new champion is too slow"',
    "export": "-P version=1 -P output=filter.onnx",
}


def block() -> str:
    """The comment lines between ``FIRST`` and ``LAST``, both included."""
    stated = defaults()
    rows = [
        (name, default_text(stated[name]), str(field.description)) for _, name, field in fields() if is_everyday(field)
    ]
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    lines = [f"#   {name:{widths[0]}}  {default:{widths[1]}}  {words}\n" for name, default, words in rows]
    lines.append("# An example for each entry point:\n")
    lines += [f"#   {example}\n" for example in examples()]
    return "".join([FIRST, *lines, LAST])


def examples() -> list[str]:
    """A command for each entry point."""
    return [f"mlflow run .{'' if name == 'main' else f' -e {name}'} {words}" for name, words in EXAMPLES.items()]


def with_block(mlproject: str) -> str:
    """The text of an MLproject with the block of now."""
    return re.sub(re.escape(FIRST) + ".*?" + re.escape(LAST), lambda _: block(), mlproject, flags=re.DOTALL)


if __name__ == "__main__":
    path = ROOT / "MLproject"
    path.write_text(with_block(path.read_text()))
