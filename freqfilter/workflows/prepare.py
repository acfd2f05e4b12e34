"""Write the windows of a signal model as a file, in the format that training takes."""

from __future__ import annotations

from pathlib import Path

from freqfilter.params import Params
from freqfilter.signals import archive
from freqfilter.signals.splits import Splits
from freqfilter.workflows.console import Console


def prepare(params: Params, *, output: Path, console: Console) -> None:
    """Write ``X_train X_val X_test y_train y_val y_test``.

    Args:
        params: Resolved parameters, with fixed noise.
        output: The ``.npz`` file, replaced whole.
        console: Hears what was written.

    Raises:
        UserError: If the file cannot be written.
    """
    splits = Splits.from_params(params)
    parts = {"train": splits.train(1), "val": splits.validation, "test": splits.test}
    archive.write(output, parts)
    for part, windows in parts.items():
        shape = (len(windows), windows.n_samples)
        console.say(f"X_{part} {(*shape, 1 + windows.n_components)}, y_{part} {(*shape, 1)}")
    console.say(f"written: {output} ({output.stat().st_size / 1e6:.1f} MB)")
