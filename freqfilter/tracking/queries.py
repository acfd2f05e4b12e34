"""Queries of runs, in the store and in run folders."""

from __future__ import annotations

import getpass
import re
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import mlflow
import pandas as pd
import psutil
from mlflow import MlflowClient
from mlflow.entities import Run as MlflowRun
from mlflow.exceptions import MlflowException
from mlflow.tracking.context.registry import resolve_tags
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID, MLFLOW_SOURCE_NAME, MLFLOW_SOURCE_TYPE, MLFLOW_USER

import freqfilter
from freqfilter.atomic_io import write_error
from freqfilter.config import Params, TrackingParams, restore
from freqfilter.config.load import parse_yaml, read_sections
from freqfilter.errors import UserError
from freqfilter.process import launched_run
from freqfilter.tracked_names import EPOCH_SECONDS, HOLDOUT_MSE, LEGACY_METRICS, OUTBOX, VAL_MSE
from freqfilter.tracking import aliases
from freqfilter.tracking.client import retry, temporary_env, wrap_store_errors
from freqfilter.tracking.loading import NO_PICKLE_ENV, RUN_ID
from freqfilter.tracking.outbox import messages
from freqfilter.tracking.owner import RunOwner

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
        target_experiment: The experiment that it is meant for, where no store has it yet.
    """

    run_id: str
    experiment_id: str
    name: str
    status: str
    started_ms: int
    tags: dict[str, str]
    folder: Path | None = None
    target_experiment: str | None = None

    @property
    def workflow(self) -> str | None:
        """The job that it is of."""
        return self.tags.get("workflow")

    @property
    def owner(self) -> RunOwner | None:
        """The process that works on it, or did."""
        return RunOwner.from_tags(self.tags)


def stored_run(run_id: str) -> RunRecord:
    """The run of an id, as the store has it.

    Raises:
        UserError: If it has none.
    """
    with wrap_store_errors(f"run {run_id}"):
        return _record(MlflowClient().get_run(run_id))


def stored_runs(*, experiment: str | None = None, having: str = "") -> Iterator[RunRecord]:
    """Runs of an experiment, or of all of them, the newest first.

    Args:
        experiment: Its name; None: all.
        having: MLflow's filter of runs.
    """
    client = MlflowClient()
    with wrap_store_errors("the store's runs"):
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


def run_folders(run_dir: Path) -> list[Path]:
    """Folders of runs that have left something, the newest first."""
    outboxes = sorted(run_dir.glob(f"*/{OUTBOX}"), key=lambda path: path.stat().st_mtime_ns, reverse=True)
    return [path.parent for path in outboxes]


def folder_run(folder: Path) -> RunRecord:
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
    with temporary_env(MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR="false"), wrap_store_errors(f"the files of run {run_id}"):
        if MlflowClient().list_artifacts(run_id, artifact):
            mlflow.artifacts.download_artifacts(run_id=run_id, artifact_path=artifact, dst_path=str(folder))


def upload(run_id: str, file: Path, folder: str) -> str:
    """Add a file to a folder of a run's artifacts; its URI.

    Raises:
        UserError: If the store does not take it.
    """
    with temporary_env(MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR="false"), wrap_store_errors(f"the files of run {run_id}"):
        retry(lambda: MlflowClient().log_artifact(run_id, str(file), folder))
    return f"runs:/{run_id}/{folder}/{file.name}"


def end_run(run_id: str, status: str) -> None:
    """Set the status of a run that nobody works on.

    Raises:
        UserError: If the store does not take it.
    """
    with wrap_store_errors(f"run {run_id}"):
        MlflowClient().set_terminated(run_id, status)


def upload_run(kept: RunRecord) -> RunRecord:
    """Make a run of the store for one that was offline, and give its folder the name of that.

    Args:
        kept: As its folder says.

    Raises:
        UserError: If the store or the folder refuses it.
    """
    if kept.folder is None or kept.target_experiment is None:
        raise ValueError(f"run {kept.run_id} has a store already")
    client = MlflowClient()
    with wrap_store_errors(f"run {kept.run_id}"):
        meant_for = experiment_id(client, kept.target_experiment)
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
        raise write_error(folder, error) from error
    return replace(kept, run_id=run.info.run_id, folder=folder, target_experiment=None)


def experiment_id(client: MlflowClient, name: str) -> str:
    """Id of an experiment, which is made where it is missing."""
    if found := client.get_experiment_by_name(name):
        return str(found.experiment_id)
    with suppress(MlflowException):  # another process was faster
        return str(client.create_experiment(name))
    return str(client.get_experiment_by_name(name).experiment_id)


DEFAULT_N_RUNS = 10  # where nobody names any
MAX_RUNS = 30  # more are no table that anybody would read
CURVES = {VAL_MSE, HOLDOUT_MSE, EPOCH_SECONDS}  # a request for each, so that no others are asked for
TRAININGS = "tags.workflow = 'train'"
VERSION = re.compile(r"(?:models:/)?(?:(?P<model>[^/@]+)/)?(?P<number>\d+)")
ALIAS = re.compile(r"(?:models:/)?(?P<model>[^/@]*)@(?P<alias>[^/@]+)")
OUTSIDE_BRACKETS = re.compile(r",(?![^\[\]]*\])")  # a name may have a list in it, as `default frequencies_hz=[2,5]`
FILTER = re.compile(
    r"(params?|metrics?|tags?|attributes?|attr|run|datasets?)\.|(status|run_name|start_time|end_time)\b"
)


@dataclass(frozen=True)
class Training:
    """A training as the store has it.

    Attributes:
        run_id: Its run.
        name: What that is called.
        status: ``FINISHED``, or how else it ended.
        params: Its parameters.
        metrics: The last value of each metric.
        tags: Its tags.
        curves: The values of ``CURVES`` by step, as far as they were logged.
        test_digest: Of the data that it was tested on; empty where it was not.
        has_model: Whether it has logged one.
    """

    run_id: str
    name: str
    status: str
    params: Params
    metrics: dict[str, float]
    tags: dict[str, str]
    curves: dict[str, pd.Series]
    test_digest: str
    has_model: bool


def trainings(words: str | None, tracking: TrackingParams) -> list[Training]:
    """The trainings that are meant, in the order in which they are named, each once.

    Args:
        words: A list, in YAML or parted by commas, of run ids, run names, versions (``3``, ``NAME/3``,
            ``NAME@champion``); or a filter of MLflow's, such as ``metrics."test/mse" < 0.3``. A name means the newest
            run that has it. A run that others belong to means those. None: the newest that have ended well.
        tracking: The experiment for filters, and the model for bare version numbers.

    Raises:
        UserError: If something that is named is not there or no training, or there are too many.
    """
    client = MlflowClient()
    with wrap_store_errors("the store's runs"):
        if words is not None and not words.strip():
            raise UserError("runs is empty: name runs, or leave it out for the newest")
        if words is None:
            found = _search(client, f"{TRAININGS} AND status = 'FINISHED'", tracking, most=DEFAULT_N_RUNS)
        elif FILTER.match(words.strip()):
            found = _search(client, f"{TRAININGS} AND {words}", tracking, most=MAX_RUNS + 1)
        else:
            found = [run for word in split_list(words) for run in _named(client, word, tracking)]
        every = {run.info.run_id: run for run in found}
        if len(every) > MAX_RUNS:
            raise UserError(f"runs={words}: more than {MAX_RUNS} trainings; name fewer")
        return [_training(client, run) for run in every.values()]


def split_list(words: str) -> list[str]:
    """The words of a list, in YAML or parted by commas.

    >>> split_list("default frequencies_hz=[2,5], base"), split_list("[1, base]")
    (['default frequencies_hz=[2,5]', 'base'], ['1', 'base'])
    """
    parts = parse_yaml(words) if words.strip().startswith("[") else OUTSIDE_BRACKETS.split(words)
    return [str(word).strip() for word in parts if str(word).strip()]


def _search(client: MlflowClient, having: str, tracking: TrackingParams, *, most: int) -> list[MlflowRun]:
    """Runs of the experiment, the newest first."""
    if launched := launched_run():
        experiment_id = client.get_run(launched).info.experiment_id
    else:
        experiment = client.get_experiment_by_name(tracking.experiment)
        if experiment is None:
            raise UserError(f"experiment={tracking.experiment}: there is none of that name")
        experiment_id = experiment.experiment_id
    return list(client.search_runs([experiment_id], having, max_results=most, order_by=["start_time DESC"]))


def _named(client: MlflowClient, word: str, tracking: TrackingParams) -> list[MlflowRun]:
    """The trainings that a word means: one, or those that belong to one run."""
    run = _one(client, word, tracking)
    if run.data.tags.get("workflow") == "train":
        return [run]
    having = f"tags.`{MLFLOW_PARENT_RUN_ID}` = '{run.info.run_id}' AND {TRAININGS}"
    found = client.search_runs([run.info.experiment_id], having, max_results=MAX_RUNS + 1, order_by=["start_time ASC"])
    if not found:
        raise UserError(f"runs: {word} is of `{run.data.tags.get('workflow', 'another program')}`, not a training")
    return list(found)


def _one(client: MlflowClient, word: str, tracking: TrackingParams) -> MlflowRun:
    if RUN_ID.fullmatch(word):
        return client.get_run(word)
    if match := ALIAS.fullmatch(word):
        model_name = match["model"] or tracking.model_name
        version = aliases.version_at_alias(model_name, match["alias"])
        if version is None:
            raise UserError(f"runs: no version of {model_name} is called {match['alias']}")
        return client.get_run(version.run_id)
    if match := VERSION.fullmatch(word):
        version = aliases.candidate_version(match["model"] or tracking.model_name, int(match["number"]))
        return client.get_run(version.run_id)
    every = [experiment.experiment_id for experiment in client.search_experiments()]
    quoted = word.replace("'", "''")
    found = client.search_runs(every, f"run_name = '{quoted}'", max_results=1, order_by=["start_time DESC"])
    if not found:
        raise UserError(f"runs: {word!r} is neither a run's id nor its name nor a version; see `make ui`")
    return found[0]


def _training(client: MlflowClient, run: MlflowRun) -> Training:
    run_id, tested = run.info.run_id, ""
    for given in run.inputs.dataset_inputs if run.inputs else []:
        if given.dataset.name == "test":
            tested = str(given.dataset.digest)
    curves = {}
    names = {name: LEGACY_METRICS.get(name, name) for name in run.data.metrics}
    for stored_name, name in names.items():
        if name in CURVES:
            points = {point.step: point.value for point in client.get_metric_history(run_id, stored_name)}
            curves[name] = pd.Series(points).sort_index()
    return Training(
        run_id=run_id,
        name=run.info.run_name,
        status=run.info.status,
        params=_params(run_id),
        metrics={name: run.data.metrics[stored_name] for stored_name, name in names.items()},
        tags=dict(run.data.tags),
        curves=curves,
        test_digest=tested,
        has_model=bool(run.outputs and run.outputs.model_outputs),
    )


def _params(run_id: str) -> Params:
    with (
        tempfile.TemporaryDirectory() as folder,
        wrap_store_errors(f"run {run_id}: params.yaml"),
        temporary_env(**NO_PICKLE_ENV),
    ):
        path = mlflow.artifacts.download_artifacts(run_id=run_id, artifact_path="params.yaml", dst_path=folder)
        return restore(read_sections(Path(path)))


RUNNING_HERE, RUNNING_ELSEWHERE, DIED, NEVER_STARTED, NOT_OWNED = (
    "at work",
    "elsewhere",
    "died",
    "never begun",
    "not ours",
)
LAUNCHING_S = 3600.0  # what making an environment may take; on a server others may be at it


def stale_runs(*, on_server: bool) -> Iterator[tuple[RunRecord, str]]:
    """Every run that is RUNNING, and whether somebody works on it.

    ``mlflow run`` makes its run before it looks for conda or the program's parameters, and leaves it RUNNING where it
    fails at that (``mlflow.projects.backend.local``, 3.17.2). Such a run names no process of ours. It is known by the
    folder of this project, its user, and that no `mlflow run` as old as it is still there.

    Args:
        on_server: Whether the store is one that other machines write to.
    """
    launchers = _launchers()
    for run in stored_runs(having="attributes.status = 'RUNNING'"):
        if run.owner is not None:
            alive = run.owner.is_alive
            yield run, RUNNING_ELSEWHERE if alive is None else RUNNING_HERE if alive else DIED
        elif not _launched_from_here(run):
            yield run, NOT_OWNED
        elif any(began <= run.started_ms / 1000 + 1 for began in launchers):
            yield run, RUNNING_HERE
        elif on_server and time.time() - run.started_ms / 1000 < LAUNCHING_S:
            yield run, RUNNING_ELSEWHERE
        else:
            yield run, NEVER_STARTED


def _launched_from_here(run: RunRecord) -> bool:
    root = Path(freqfilter.__file__).resolve().parents[1]
    source = run.tags.get(MLFLOW_SOURCE_NAME, "").removeprefix("file://")
    is_project = run.tags.get(MLFLOW_SOURCE_TYPE) == "PROJECT" and bool(source)
    return is_project and Path(source) == root and run.tags.get(MLFLOW_USER) == getpass.getuser()


def _launchers() -> list[float]:
    """When each `mlflow run` of this machine began, seconds since 1970."""
    found = []
    for process in psutil.process_iter(["cmdline", "create_time"]):
        words = process.info["cmdline"] or []
        if "run" in words and any(Path(word).name == "mlflow" for word in words):
            found.append(process.info["create_time"])
    return found
