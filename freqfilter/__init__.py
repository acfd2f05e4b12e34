"""freqfilter: train a filter that picks one sinusoid out of a noisy mixture, tracked in MLflow.

The parts follow the story, and import only from those before them: ``params`` (what is asked for), ``signals``
(the world, known without learning), ``filters`` (the learner), ``evaluation`` (judging), ``tracking`` (MLflow),
``workflows`` (one module per job) and ``cli``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from freqfilter.tracking.loading import Filter

__version__ = "0.1.0"
__all__ = ["load"]


def load(name: str, *, version: int | str = "latest") -> Filter:
    """Load a registered filter by version.

    Args:
        name: The registered model's name, such as ``frequency-filter``.
        version: Its version number; the newest one where none is given.

    Returns:
        A filter with ``predict(x)``, its ``module`` and its ``facts``.

    Raises:
        UserError: If the registry has no such model or version, or its files are not a filter of ours.
    """
    from freqfilter.tracking.loading import load_version

    return load_version(name, version)
