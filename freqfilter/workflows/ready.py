"""All that a training needs, before there is a run."""

from __future__ import annotations

from dataclasses import dataclass

from freqfilter.errors import UserError
from freqfilter.filters.compute import Compute
from freqfilter.filters.state import TrainingState
from freqfilter.params import Params
from freqfilter.signals.splits import Splits
from freqfilter.tracking import registry
from freqfilter.tracking.runs import check_folders
from freqfilter.tracking.store import open_store


@dataclass(frozen=True)
class Ready:
    """All that a training needs, before there is a run.

    Attributes:
        params: Its parameters, with the origin of the weights named for good.
        origin: The filter that the first weights are of, if any.
    """

    params: Params
    compute: Compute
    splits: Splits
    tracking_uri: str
    origin: registry.Filter | None
    state: TrainingState


def get_ready(params: Params) -> Ready:
    """See that everything is there, and make the training as it begins.

    Raises:
        UserError: If store, folders, device, precision, data or origin cannot be used.
    """
    compute = Compute.open(params.training)
    splits = Splits.from_params(params)
    tracking_uri = open_store()
    origin = _origin(params, splits)
    if origin:
        params = params.starting_from(origin.pinned_uri)
    check_folders(params.tracking)  # the last check, since it may make them
    state = TrainingState(
        n_components=splits.validation.n_components, model=params.model, training=params.training, compute=compute
    )
    if origin:
        state.start_from(origin.module.state_dict())
    return Ready(params, compute, splits, tracking_uri, origin, state)


def _origin(params: Params, splits: Splits) -> registry.Filter | None:
    """The filter whose weights training goes on from, if any; its network has to be the one asked for."""
    start_from = params.training.start_from
    if start_from is None:
        return None
    origin = registry.load_origin(start_from)
    asked = {"n_components": splits.validation.n_components} | params.model.model_dump()
    for name, theirs in origin.facts["network"].items():
        if name != "dropout" and theirs != asked[name]:  # dropout has no weights
            remedy = "frequencies_hz" if name == "n_components" else f"{name}={str(theirs).lower()}"
            raise UserError(
                f"start_from={start_from}: its network has {name}={theirs} and {name}={asked[name]} is asked for: "
                f"add {remedy}"
            )
    return origin
