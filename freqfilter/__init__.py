"""freqfilter: filters that extract one sinusoid from a noisy mixture, trained with PyTorch and tracked in MLflow.

``freqfilter.train(epochs=3)`` trains a filter and registers it as a version, and
``freqfilter.load("frequency-filter", version=1)`` loads that version.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from freqfilter.api import ablate, compare, evaluate, history, load, promote, rollback, train
    from freqfilter.data.npz import cut_windows
    from freqfilter.errors import UserError

__version__ = "0.1.0"
__all__ = [
    "UserError", "ablate", "compare", "cut_windows", "evaluate", "history", "load", "promote", "rollback", "train",
]  # fmt: skip
ELSEWHERE = {"UserError": "freqfilter.errors", "cut_windows": "freqfilter.data.npz"}  # modules


def __getattr__(name: str) -> Any:
    """Import a name of ``__all__`` on first use, so that the command line starts faster."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(ELSEWHERE.get(name, "freqfilter.api")), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
