"""Runs as the store, or their own folders, have them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Run as MlflowRun

from freqfilter.tracking.environment import environment
from freqfilter.tracking.outbox import messages
from freqfilter.tracking.processes import Worker
from freqfilter.tracking.runs import OUTBOX
from freqfilter.tracking.store import STORE_ERRORS, translated


@dataclass(frozen=True)
class RunRecord:
    """What a store, or a run's own folder, says of it.

    Attributes:
        run_id: MLflow's, or our own where it is in no store yet.
        name: What it is called.
        status: ``RUNNING``, ``FINISHED``, ``FAILED`` or ``KILLED``.
        started_ms: When it began, milliseconds since 1970.
        tags: Its tags.
        folder: The folder that says so; None where a store does.
        meant_for: The experiment that it is meant for, where no store has it yet.
    """

    run_id: str
    name: str
    status: str
    started_ms: int
    tags: dict[str, str]
    folder: Path | None = None
    meant_for: str | None = None

    @property
    def workflow(self) -> str | None:
        """The job that it is of."""
        return self.tags.get("workflow")

    @property
    def worker(self) -> Worker | None:
        """The process that works on it, or did."""
        return Worker.named_in(self.tags)


def stored_run(run_id: str) -> RunRecord:
    """The run of an id, as the store has it.

    Raises:
        UserError: If it has none.
    """
    with translated(f"run {run_id}"):
        return _record(MlflowClient().get_run(run_id))


def stored_runs(*, experiment: str | None = None, having: str = "") -> Iterator[RunRecord]:
    """Runs of an experiment, or of all of them, the newest first.

    Args:
        experiment: Its name; None: all.
        having: MLflow's filter of runs.
    """
    client = MlflowClient()
    with translated("the store's runs"):
        ids = [found.experiment_id for found in client.search_experiments() if experiment in (None, found.name)]
        token = None
        while ids:
            page = client.search_runs(ids, having, order_by=["attributes.start_time DESC"], page_token=token)
            yield from map(_record, page)
            if not (token := page.token):
                return


def _record(run: MlflowRun) -> RunRecord:
    info = run.info
    return RunRecord(info.run_id, info.run_name, info.status, info.start_time, run.data.tags)


def kept_runs(run_dir: Path) -> Iterator[RunRecord]:
    """Runs that have left something in a folder, as that says; the newest first.

    Raises:
        UserError: If an outbox is damaged.
    """
    outboxes = sorted(run_dir.glob(f"*/{OUTBOX}"), key=lambda path: path.stat().st_mtime_ns, reverse=True)
    yield from (kept_run(path.parent) for path in outboxes)


def kept_run(folder: Path) -> RunRecord:
    """A run as its folder says.

    Raises:
        UserError: If its outbox is damaged.
    """
    tags: dict[str, str] = {}
    name, meant_for, status, started_ms = folder.name, None, "RUNNING", 0
    for message in messages(folder / OUTBOX):
        match message["kind"]:
            case "run":
                name, started_ms = message["name"], message["time_ms"]
                # A folder has the name of its run: once a store has the run, the one that the store has given it.
                meant_for = message["experiment"] if message["run_id"] == folder.name else None
            case "tags":
                tags |= message["values"]
            case "end":
                status = message["status"]
    return RunRecord(folder.name, name, status, started_ms, tags, folder, meant_for)


def download(run_id: str, artifact: str, folder: Path) -> None:
    """Copy a folder of a run's artifacts into ``folder``; nothing where the run has none of that name."""
    with environment(MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR="false"), translated(f"the files of run {run_id}"):
        if MlflowClient().list_artifacts(run_id, artifact):
            mlflow.artifacts.download_artifacts(run_id=run_id, artifact_path=artifact, dst_path=str(folder))


def end_run(run_id: str, status: str) -> bool:
    """Set the status of a run that nobody works on; whether the store took it."""
    try:
        MlflowClient().set_terminated(run_id, status)
    except STORE_ERRORS:
        return False
    return True
