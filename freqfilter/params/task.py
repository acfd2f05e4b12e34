"""What a filter is for. Filters of the same task have the same limit, and can be held against each other."""

from __future__ import annotations

from freqfilter.params.schema import Params


def other_task(params: Params, than: Params) -> list[str]:
    """In what a filter is for something else than another, such as ``window_length=100 and not 50``.

    A task is the signal model or the data file, the length of a window, and whether all of it is seen.

    Args:
        params: The parameters that the filter was trained with.
        than: Those of the other.
    """
    ours, theirs = (
        of.signals.model_dump()
        | of.data.model_dump(include={"window_length", "data_file"})
        | of.model.model_dump(include={"bidirectional"})
        for of in (params, than)
    )
    return [f"{name}={ours[name]} and not {theirs[name]}" for name in ours if ours[name] != theirs[name]]
