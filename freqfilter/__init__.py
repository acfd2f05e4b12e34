"""freqfilter: train a filter that picks one sinusoid out of a noisy mixture, tracked in MLflow.

The parts follow the story, and import only from those before them: ``params`` (what is asked for), ``signals``
(the world, known without learning), ``filters`` (the learner), ``evaluation`` (judging), ``tracking`` (MLflow),
``workflows`` (one module per job) and ``cli``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from freqfilter.filters.loaded import Filter

__version__ = "0.1.0"
__all__ = ["load"]


def load(
    name: str | None = None, *, version: int | str | None = None, alias: str | None = None, run_id: str | None = None
) -> Filter:
    """Load a filter: a registered version, the one that an alias names, or the model of a run.

    Args:
        name: The registered model's name, such as ``frequency-filter``.
        version: Its version number; the newest one where neither it nor an alias is given.
        alias: Such as ``champion``.
        run_id: A run's id, in place of a name.

    Returns:
        A filter with ``predict(x)``, ``extract(signal, frequency_hz)``, ``stream(frequency_hz)``, its ``module`` and
        its ``facts``.

    Raises:
        UserError: If there is no such model, its files are not a filter of ours, or not those that were registered.
    """
    from freqfilter.errors import UserError
    from freqfilter.tracking import loading

    if (name is None) == (run_id is None) or (version is not None and alias is not None):
        raise UserError("load: give a name, with a version or an alias, or a run_id")
    if run_id is not None:
        return loading.load_run(run_id)
    if alias is not None:
        return loading.load_alias(str(name), alias)
    return loading.load_version(str(name), "latest" if version is None else version)
