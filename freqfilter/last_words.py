"""What the program says when a job has ended well."""

from __future__ import annotations

from collections.abc import Iterator

from freqfilter.workflows.description import over_limit, scores_table
from freqfilter.workflows.train import Trained


def of_training(trained: Trained) -> Iterator[str]:
    """The best epoch, the scores, the run, the version, and how to look at them, line by line."""
    progress = trained.progress
    best = progress.best
    yield (
        f"\nbest epoch {best.epoch} of {len(progress.history)}: training loss {best.train_loss:.4f}, "
        f"validation loss {best.val_loss:.4f}"
    )
    yield f"\n{scores_table(trained.compared.table, 'simple')}\n\n{over_limit(trained.metrics)}\n"
    if not trained.tracking_uri:
        yield f"offline: everything is in {trained.folder}; to send it and to register the model:"
        yield "python -m freqfilter sync"
        return
    yield f"run {trained.run_id} in experiment {trained.experiment}"
    if trained.version is None:
        yield "not registered (register=false)"
    else:
        yield f"registered: {trained.model_name} version {trained.version}"
        yield f"load it: freqfilter.load({trained.model_name!r}, version={trained.version})"
    yield where_to_look(trained.tracking_uri)


def where_to_look(tracking_uri: str) -> str:
    """How to open the store."""
    if tracking_uri.startswith("http"):
        return f"look at it: {tracking_uri}"
    return f"look at it: make ui, or: mlflow ui --backend-store-uri {tracking_uri}"
