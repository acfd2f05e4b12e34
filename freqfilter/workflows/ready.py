"""All that a training needs, before there is a run."""

from __future__ import annotations

from dataclasses import dataclass

from freqfilter.errors import UserError
from freqfilter.filters.checkpoints import Checkpoint, Stated
from freqfilter.filters.compute import Compute
from freqfilter.filters.loaded import Filter
from freqfilter.filters.state import TrainingState
from freqfilter.params import Params
from freqfilter.signals.splits import Splits
from freqfilter.tracking.loading import load_origin
from freqfilter.tracking.opening import check_folders
from freqfilter.tracking.store import open_store


@dataclass(frozen=True)
class Ready:
    """All that a training needs, before there is a run.

    Attributes:
        params: Its parameters, with the origin of the weights named for good.
        tracking_uri: To show; empty where it is offline.
        origin: The filter that the first weights are of, if any.
    """

    params: Params
    compute: Compute
    splits: Splits
    tracking_uri: str
    origin: Filter | None
    state: TrainingState


def get_ready(params: Params, checkpoint: Checkpoint | None = None) -> Ready:
    """See that everything is there, and make the training as it begins, or as a checkpoint has it.

    Raises:
        UserError: If store, folders, device, precision, data or origin cannot be used, or the data is not that of the
            checkpoint.
    """
    tracking_uri = open_store() if params.tracking.tracking == "online" else ""
    compute = Compute.open(params.training)
    splits = Splits.from_params(params)
    origin = _origin(params, splits) if checkpoint is None else None
    if origin:
        params = params.starting_from(origin.pinned_uri)
    check_folders(params.tracking)  # the last check, since it may make them
    state = TrainingState(
        n_components=splits.validation.n_components, model=params.model, training=params.training, compute=compute
    )
    if origin:
        state.start_from(origin.module.state_dict())
    if checkpoint:
        _compare(splits.digests, checkpoint.stated)
        try:
            state.load_state_dict(checkpoint.state)
        except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise UserError("the checkpoint is not of the network that its parameters state: start anew") from error
    return Ready(params, compute, splits, tracking_uri, origin, state)


def _compare(found: dict[str, str], stated: Stated) -> None:
    for purpose, digest in stated.data.items():
        if found.get(purpose) != digest:
            raise UserError(
                f"{stated.params.data.data_file or 'the signal model'}: its data for {purpose} is not what this "
                "training began with; bring that back, or train anew"
            )


def _origin(params: Params, splits: Splits) -> Filter | None:
    """The filter whose weights training goes on from, if any; its network has to be the one asked for."""
    start_from = params.training.start_from
    if start_from is None:
        return None
    origin = load_origin(start_from)
    asked = {"n_components": splits.validation.n_components} | params.model.model_dump()
    for name, theirs in origin.facts["network"].items():
        if name != "dropout" and theirs != asked[name]:  # dropout has no weights
            remedy = "frequencies_hz" if name == "n_components" else f"{name}={str(theirs).lower()}"
            raise UserError(
                f"start_from={start_from}: its network has {name}={theirs} and {name}={asked[name]} is asked for: "
                f"add {remedy}"
            )
    return origin
