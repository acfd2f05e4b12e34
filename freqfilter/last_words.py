"""The last lines of a command: what came of a job, and where its run is in MLflow's UI."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from freqfilter.workflows.run_ref import RunRef

if TYPE_CHECKING:
    from freqfilter.workflows.train import TrainingResult

UI = "http://127.0.0.1:5000"  # of `make ui` and `mlflow ui`


def of_training(trained: TrainingResult) -> Iterator[str]:
    """The best epoch, the scores, the run, the version, and the run's page, line by line."""
    from freqfilter.workflows.description import over_limit, scores_table

    progress, run = trained.progress, trained.run
    best = progress.best
    yield (
        f"\nbest epoch {best.epoch} of {len(progress.history)}: training loss {best.train_loss:.4f}, "
        f"validation loss {best.val_loss:.4f}"
    )
    yield f"\n{scores_table(trained.compared.table, 'simple')}\n\n{over_limit(trained.metrics)}\n"
    yield from (f"diagnosis: {line}" for line in trained.diagnoses.values())
    if not run.tracking_uri:
        yield f"offline: everything is in {trained.folder}; to send it and to register the model:"
        yield "python -m freqfilter sync"
        return
    yield f"run {run.run_id} in experiment {run.experiment}"
    if trained.version is None:
        yield "not registered (register=false)"
    else:
        yield f"registered: {trained.model_name} version {trained.version}"
        yield f"load it: freqfilter.load({trained.model_name!r}, version={trained.version})"
    yield from pages(run)


def pages(run: RunRef, view: str = "trainings") -> Iterator[str]:
    """How to open MLflow's UI, and the addresses of a run's page and of a saved view of its experiment."""
    server = run.tracking_uri if run.tracking_uri.startswith("http") else UI
    yield view_in_mlflow(run.tracking_uri)
    yield f"  this run: {run.page(server)}"
    yield f"  all {view}: {run.view(server, view)}"


def view_in_mlflow(tracking_uri: str) -> str:
    """How to open the store in MLflow's UI."""
    if tracking_uri.startswith("http"):
        return f"view in MLflow: {tracking_uri}"
    return f"view in MLflow: make ui, or: mlflow ui --backend-store-uri {tracking_uri}"
