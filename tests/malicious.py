"""A pickle that does something when it is opened."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path


class Malicious:
    """What writes a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
        return Path.touch, (self.target,)
