"""Runs as the store, or their own folders, have them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Run as MlflowRun
from mlflow.exceptions import MlflowException
from mlflow.tracking.context.registry import resolve_tags

from freqfilter.artifact_names import OUTBOX
from freqfilter.files import cannot_be_written
from freqfilter.tracking.environment import environment
from freqfilter.tracking.outbox import messages
from freqfilter.tracking.processes import Worker
from freqfilter.tracking.store import patiently, translated

OFFLINE_ID = "offline_id"  # the tag of a run that was offline: what it was called there


@dataclass(frozen=True)
class RunRecord:
    """What a store, or a run's own folder, says of it.

    Attributes:
        run_id: MLflow's, or our own where it is in no store yet.
        experiment_id: Of its experiment; empty where it is in no store yet.
        name: What it is called.
        status: ``RUNNING``, ``FINISHED``, ``FAILED`` or ``KILLED``.
        started_ms: When it began, milliseconds since 1970.
        tags: Its tags.
        folder: The folder that says so; None where a store does.
        meant_for: The experiment that it is meant for, where no store has it yet.
    """

    run_id: str
    experiment_id: str
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


def newest_training() -> RunRecord | None:
    """The training of all experiments that began last; None where there is none."""
    return next(stored_runs(having="tags.workflow = 'train'"), None)


def _record(run: MlflowRun) -> RunRecord:
    info = run.info
    return RunRecord(info.run_id, info.experiment_id, info.run_name, info.status, info.start_time, run.data.tags)


def kept_folders(run_dir: Path) -> list[Path]:
    """Folders of runs that have left something, the newest first."""
    outboxes = sorted(run_dir.glob(f"*/{OUTBOX}"), key=lambda path: path.stat().st_mtime_ns, reverse=True)
    return [path.parent for path in outboxes]


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
            case "no_tag":
                tags.pop(message["name"], None)
            case "end":
                status = message["status"]
    return RunRecord(folder.name, "", name, status, started_ms, tags, folder, meant_for)


def download(run_id: str, artifact: str, folder: Path) -> None:
    """Copy a folder of a run's artifacts into ``folder``; nothing where the run has none of that name."""
    with environment(MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR="false"), translated(f"the files of run {run_id}"):
        if MlflowClient().list_artifacts(run_id, artifact):
            mlflow.artifacts.download_artifacts(run_id=run_id, artifact_path=artifact, dst_path=str(folder))


def upload(run_id: str, file: Path, folder: str) -> str:
    """Add a file to a folder of a run's artifacts; its URI.

    Raises:
        UserError: If the store does not take it.
    """
    with environment(MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR="false"), translated(f"the files of run {run_id}"):
        patiently(lambda: MlflowClient().log_artifact(run_id, str(file), folder))
    return f"runs:/{run_id}/{folder}/{file.name}"


def end_run(run_id: str, status: str) -> None:
    """Set the status of a run that nobody works on.

    Raises:
        UserError: If the store does not take it.
    """
    with translated(f"run {run_id}"):
        MlflowClient().set_terminated(run_id, status)


def adopt(kept: RunRecord) -> RunRecord:
    """Make a run of the store for one that was offline, and give its folder the name of that.

    Args:
        kept: As its folder says.

    Raises:
        UserError: If the store or the folder refuses it.
    """
    if kept.folder is None or kept.meant_for is None:
        raise ValueError(f"run {kept.run_id} has a store already")
    client = MlflowClient()
    with translated(f"run {kept.run_id}"):
        meant_for = experiment_id(client, kept.meant_for)
        # It may have been interrupted between the two.
        made = client.search_runs([meant_for], f"tags.{OFFLINE_ID} = '{kept.run_id}'")
        run = (
            made[0]
            if made
            else client.create_run(
                meant_for,
                start_time=kept.started_ms,
                tags=resolve_tags({OFFLINE_ID: kept.run_id}),
                run_name=kept.name,
            )
        )
    folder = kept.folder.with_name(run.info.run_id)
    try:
        kept.folder.rename(folder)
    except OSError as error:
        raise cannot_be_written(folder, error) from error
    return replace(kept, run_id=run.info.run_id, folder=folder, meant_for=None)


def experiment_id(client: MlflowClient, name: str) -> str:
    """Id of an experiment, which is made where it is missing."""
    if found := client.get_experiment_by_name(name):
        return str(found.experiment_id)
    with suppress(MlflowException):  # another process was faster
        return str(client.create_experiment(name))
    return str(client.get_experiment_by_name(name).experiment_id)
