"""Queries of runs, in the store and in run folders."""

from __future__ import annotations

import getpass
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import mlflow
import pandas as pd
from mlflow import MlflowClient
from mlflow.entities import Run as MlflowRun
from mlflow.entities import ViewType
from mlflow.exceptions import MlflowException
from mlflow.tracking.context.registry import resolve_tags
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID, MLFLOW_SOURCE_NAME, MLFLOW_SOURCE_TYPE, MLFLOW_USER

import freqfilter
from freqfilter.atomic_io import temporary_folder, write_error
from freqfilter.config import Params, TrackingParams, restore
from freqfilter.config.load import parse_yaml, read_sections
from freqfilter.errors import UserError
from freqfilter.process import launched_run, launcher_start_times
from freqfilter.tracked_names import EPOCH_SECONDS, HOLDOUT_MSE, LEGACY_NAMES, OUTBOX, VAL_MSE
from freqfilter.tracking import aliases
from freqfilter.tracking.client import (
    equality_filter,
    experiment_id,
    find_experiment,
    retry,
    temporary_env,
    wrap_store_errors,
)
from freqfilter.tracking.loading import NO_PICKLE_ENV, RUN_ID
from freqfilter.tracking.locations import check_location, check_not_moved
from freqfilter.tracking.outbox import messages
from freqfilter.tracking.owner import RunLock, RunOwner, owner_ids

OFFLINE_ID = "offline_id"  # tag with the former id of a run that was offline


@dataclass(frozen=True)
class RunRecord:
    """A run, read from a store or from the run's folder.

    Attributes:
        run_id: MLflow's id, or a generated one for a run that is in no store yet.
        experiment_id: Id of its experiment; empty if it is in no store yet.
        name: Name of the run.
        status: ``RUNNING``, ``FINISHED``, ``FAILED`` or ``KILLED``.
        started_ms: Start, milliseconds since 1970.
        tags: Tags of the run.
        folder: Folder that was read; None if a store was read.
        target_experiment: Experiment that ``sync`` will add it to; None if it is in a store.
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
        """Name of the job that recorded it."""
        return self.tags.get("workflow")

    @property
    def owner(self) -> RunOwner | None:
        """The process that runs it or ran it."""
        return RunOwner.from_tags(self.tags)


def stored_run(run_id: str) -> RunRecord:
    """Read a run from the store.

    Raises:
        UserError: If the store does not have it.
    """
    with wrap_store_errors(f"run {run_id}"):
        return _record(MlflowClient().get_run(run_id))


def training_run(version: aliases.RegisteredVersion) -> RunRecord | None:
    """The training that logged the model of a version; None if it is unknown, as for files registered by hand."""
    client, model_id = MlflowClient(), version.source.removeprefix("models:/")
    if not model_id.startswith("m-"):
        return None
    try:
        run = _record(client.get_run(client.get_logged_model(model_id).source_run_id))
    except MlflowException as error:
        if error.error_code in ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST"):
            return None
        raise
    return run if run.workflow in MODEL_WORKFLOWS else None


def stored_runs(having: str, *, experiment: str | None = None, deleted: bool = False) -> Iterator[RunRecord]:
    """Iterate over runs, the newest first.

    Args:
        having: Filter of runs, in MLflow's syntax.
        experiment: Name of their experiment; None: all experiments.
        deleted: Whether to include deleted runs and experiments, which the store still has.

    Raises:
        UserError: If the store cannot be read, or the experiment is deleted.
    """
    client, view = MlflowClient(), ViewType.ALL if deleted else ViewType.ACTIVE_ONLY
    with wrap_store_errors("cannot read the store's runs"):
        if experiment is None:
            ids = [each.experiment_id for each in client.search_experiments(view)]
        else:
            found = find_experiment(client, experiment)
            ids = [found.experiment_id] if found else []
        token = None
        while ids:
            page = client.search_runs(ids, having, view, order_by=["start_time DESC"], page_token=token)
            yield from map(_record, page)
            if not (token := page.token):
                return


def _record(run: MlflowRun) -> RunRecord:
    info = run.info
    return RunRecord(info.run_id, info.experiment_id, info.run_name, info.status, info.start_time, run.data.tags)


def run_folders(run_dir: Path) -> list[Path]:
    """Folders of runs that have an outbox, the newest first."""
    changed_ns = {}
    for path in run_dir.glob(f"*/{OUTBOX}"):
        with suppress(FileNotFoundError):  # another process has delivered it meanwhile
            changed_ns[path.parent] = path.stat().st_mtime_ns
    return sorted(changed_ns, key=changed_ns.__getitem__, reverse=True)


def folder_run(folder: Path) -> RunRecord:
    """Read a run from its folder.

    Raises:
        UserError: If its outbox is corrupt.
    """
    tags: dict[str, str] = {}
    name, target_experiment, status, started_ms = folder.name, None, "RUNNING", 0
    for message in messages(folder / OUTBOX):
        match message["kind"]:
            case "run":
                name, started_ms = message["name"], message["time_ms"]
                # The folder is renamed to the run's id in the store once the store has the run.
                target_experiment = message["experiment"] if message["run_id"] == folder.name else None
            case "tags":
                tags |= message["values"]
            case "no_tag":
                tags.pop(message["name"], None)
            case "end":
                status = message["status"]
    return RunRecord(folder.name, "", name, status, started_ms, tags, folder, target_experiment)


def download(run_id: str, artifact: str, folder: Path) -> None:
    """Copy a folder of a run's artifacts into ``folder``, if the run has it."""
    with temporary_env(MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR="false"), wrap_store_errors(f"artifacts of run {run_id}"):
        check_not_moved(MlflowClient().get_run(run_id).info.artifact_uri)
        if MlflowClient().list_artifacts(run_id, artifact):
            mlflow.artifacts.download_artifacts(run_id=run_id, artifact_path=artifact, dst_path=str(folder))


def check_files(run_id: str) -> None:
    """Check that a run's files can be added to, since they are where the store has them.

    Raises:
        UserError: If they were moved.
    """
    client = MlflowClient()
    with wrap_store_errors(f"run {run_id}"):
        check_location(client, client.get_experiment(client.get_run(run_id).info.experiment_id))


def upload(run_id: str, file: Path, folder: str) -> str:
    """Add a file to a folder of a run's artifacts and return its URI.

    Raises:
        UserError: If the store refuses it.
    """
    with temporary_env(MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR="false"), wrap_store_errors(f"artifacts of run {run_id}"):
        check_files(run_id)
        retry(lambda: MlflowClient().log_artifact(run_id, str(file), folder))
    return f"runs:/{run_id}/{folder}/{file.name}"


def end_run(run_id: str, status: str) -> None:
    """Set the status of a run that no process owns.

    Raises:
        UserError: If the store refuses it.
    """
    with wrap_store_errors(f"run {run_id}"):
        MlflowClient().set_terminated(run_id, status)


def upload_run(kept: RunRecord, lock: RunLock) -> RunRecord:
    """Create a run in the store for a run that was offline, and rename its folder to the new id.

    Args:
        kept: The run, read from its folder.
        lock: Lock of its folder.

    Raises:
        UserError: If the store or the folder refuses it.
    """
    client = MlflowClient()
    with wrap_store_errors(f"run {kept.run_id}"):
        target_id = experiment_id(client, str(kept.target_experiment))
        # A former upload may have been interrupted before it renamed the folder.
        uploaded = client.search_runs([target_id], f"tags.{OFFLINE_ID} = '{kept.run_id}'")
        tags = resolve_tags({OFFLINE_ID: kept.run_id})
        run = uploaded[0] if uploaded else client.create_run(target_id, kept.started_ms, tags, kept.name)
        client.set_terminated(run.info.run_id, "KILLED")  # until it is delivered, which may be interrupted
    folder = lock.folder.with_name(run.info.run_id)
    try:
        lock.move(folder)
    except OSError as error:
        raise write_error(folder, error) from error
    return replace(kept, run_id=run.info.run_id, folder=folder, target_experiment=None)


DEFAULT_N_RUNS = 10  # where no runs are named
MAX_RUNS = 30  # a table of more is unreadable
CURVES = {VAL_MSE, HOLDOUT_MSE, EPOCH_SECONDS}  # each needs a request of its own
TRAININGS = "tags.workflow = 'train'"
MODEL_WORKFLOWS = ("train", "register_classical")  # jobs that log a model of their own
VERSION = re.compile(r"(?:models:/)?(?:(?P<model>[^/@]+)/)?(?P<number>\d+)")
ALIAS = re.compile(r"(?:models:/)?(?P<model>[^/@]*)@(?P<alias>[^/@]+)")
OUTSIDE_BRACKETS = re.compile(r",(?![^\[\]]*\])")  # a name may have a list in it, as `default frequencies_hz=[2,5]`
FILTER = re.compile(r"(params?|metrics?|tags?|attributes?|attr|run|datasets?)\.|(status|run_name|(start|end)_time)\b")


@dataclass(frozen=True, kw_only=True)
class Training(RunRecord):
    """A training, read from the store.

    Attributes:
        params: Parameters of the run.
        metrics: Last value of each metric.
        curves: Logged values of the metrics in ``CURVES``, by step.
        test_digest: Digest of its test data; empty if it was not tested.
        has_model: Whether it has logged a model.
    """

    params: Params
    metrics: dict[str, float]
    curves: dict[str, pd.Series]
    test_digest: str
    has_model: bool


def trainings(runs: str | None, tracking: TrackingParams) -> list[Training]:
    """Return the selected trainings without duplicates, in the order of the selection.

    Args:
        runs: A list, in YAML or separated by commas, of run ids, run names, versions (``3``, ``NAME/3``,
            ``NAME@champion``); or a filter in MLflow's syntax, such as ``metrics."test/mse" < 0.3``. A name selects the
            newest run of that name, a parent run its children. None: the newest finished trainings.
        tracking: The experiment for filters, and the model for bare version numbers.

    Raises:
        UserError: If a selected run is missing or not a training, or there are too many.
    """
    client = MlflowClient()
    with wrap_store_errors("cannot read the store's runs"):
        if runs is not None and not runs.strip():
            raise UserError("runs is empty; name runs, or omit it for the newest")
        if runs is None:
            selected = _search(client, f"{TRAININGS} AND status = 'FINISHED'", tracking, max_results=DEFAULT_N_RUNS)
        elif FILTER.match(runs.strip()):
            selected = _search(client, f"{TRAININGS} AND {runs}", tracking, max_results=MAX_RUNS + 1)
        else:
            selected = [run for word in split_list(runs) for run in _select(client, word, tracking)]
        unique = {run.info.run_id: run for run in selected}
        if len(unique) > MAX_RUNS:
            raise UserError(f"runs={runs}: more than {MAX_RUNS} trainings; name fewer")
        return [_training(client, run) for run in unique.values()]


def split_list(text: str) -> list[str]:
    """Split a list, in YAML or separated by commas.

    >>> split_list("default frequencies_hz=[2,5], base"), split_list("[1, base]")
    (['default frequencies_hz=[2,5]', 'base'], ['1', 'base'])
    """
    parts = parse_yaml(text) if text.strip().startswith("[") else OUTSIDE_BRACKETS.split(text)
    return [str(part).strip() for part in parts if str(part).strip()]


def _search(client: MlflowClient, having: str, tracking: TrackingParams, *, max_results: int) -> list[MlflowRun]:
    """Search runs of the experiment, the newest first."""
    if launched := launched_run():
        searched = client.get_run(launched).info.experiment_id
    elif experiment := find_experiment(client, tracking.experiment):
        searched = experiment.experiment_id
    else:
        raise UserError(f"experiment={tracking.experiment}: no such experiment; give the name of one in the store")
    return list(client.search_runs([searched], having, max_results=max_results, order_by=["start_time DESC"]))


def _select(client: MlflowClient, word: str, tracking: TrackingParams) -> list[MlflowRun]:
    """Return the training that ``word`` selects, or the children of the run that it selects."""
    run = _find_run(client, word, tracking)
    if run.data.tags.get("workflow") in MODEL_WORKFLOWS:
        return [run]
    having = f"tags.`{MLFLOW_PARENT_RUN_ID}` = '{run.info.run_id}' AND {TRAININGS}"
    runs = client.search_runs([run.info.experiment_id], having, max_results=MAX_RUNS + 1, order_by=["start_time ASC"])
    if not runs:
        raise UserError(f"runs: {word} is of `{run.data.tags.get('workflow', 'another program')}`, not a training")
    return list(runs)


def _find_run(client: MlflowClient, word: str, tracking: TrackingParams) -> MlflowRun:
    if RUN_ID.fullmatch(word):
        return client.get_run(word)
    if match := ALIAS.fullmatch(word):
        version = aliases.require_alias(match["model"] or tracking.model_name, match["alias"])
        return _training_run(client, version)
    if match := VERSION.fullmatch(word):
        version = aliases.candidate_version(match["model"] or tracking.model_name, int(match["number"]))
        return _training_run(client, version)
    named = next((run for run in stored_runs(equality_filter("run_name", word)) if run.name == word), None)
    if named is None:
        raise UserError(f"runs: {word!r} is no run id, run name or version; look it up with `make ui`")
    return client.get_run(named.run_id)


def _training_run(client: MlflowClient, version: aliases.RegisteredVersion) -> MlflowRun:
    if not version.run_id:
        raise UserError(f"runs: {version.uri} was registered without a run; name versions that a training registered")
    try:
        return client.get_run(version.run_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        raise UserError(
            f"runs: run {version.run_id}, which trained {version.uri}, was deleted from the store; name other runs"
        ) from error


def _training(client: MlflowClient, run: MlflowRun) -> Training:
    run_id, curves = run.info.run_id, {}
    datasets = [logged.dataset for logged in run.inputs.dataset_inputs] if run.inputs else []
    names = {name: LEGACY_NAMES.get(name, name) for name in run.data.metrics}
    for stored_name, name in names.items():
        if name in CURVES:
            points = {point.step: point.value for point in client.get_metric_history(run_id, stored_name)}
            curves[name] = pd.Series(points).sort_index()
    check_not_moved(run.info.artifact_uri)
    with (
        temporary_folder() as folder,
        wrap_store_errors(f"run {run_id}: params.yaml"),
        temporary_env(**NO_PICKLE_ENV),
    ):
        path = mlflow.artifacts.download_artifacts(run_id=run_id, artifact_path="params.yaml", dst_path=str(folder))
        params = restore(read_sections(Path(path)))
    return Training(
        **vars(_record(run)),
        params=params,
        metrics={name: run.data.metrics[stored_name] for stored_name, name in names.items()},
        curves=curves,
        test_digest=next((str(dataset.digest) for dataset in datasets if dataset.name == "test"), ""),
        has_model=bool(run.outputs and run.outputs.model_outputs),
    )


RUNNING_HERE, RUNNING_ELSEWHERE = "running here", "running elsewhere"
DIED, NEVER_STARTED, NOT_OWNED = "died", "never started", "not owned"
LAUNCHING_S = 3600.0  # longest creation of a conda environment, possibly on another machine


def stale_runs(*, on_server: bool) -> Iterator[tuple[RunRecord, str]]:
    """Iterate over RUNNING runs and the condition of their owners.

    ``mlflow run`` creates its run before it looks for conda or the program's parameters, and leaves it RUNNING if that
    fails (3.17.2). Such a run has no owner: it has this project's folder and this user, and no `mlflow run` process is
    as old as the run.

    While a caller handles a run that died, no other process can resume it.

    Args:
        on_server: Whether other machines write to the store.
    """
    launchers = launcher_start_times()
    for run in stored_runs("attributes.status = 'RUNNING'"):
        if run.owner is not None:
            with suppress(UserError), _lock_if_died(run, run.owner) as condition:
                yield run, condition
        elif not _launched_from_here(run):
            yield run, NOT_OWNED
        elif any(start <= run.started_ms / 1000 + 1 for start in launchers):
            yield run, RUNNING_HERE
        elif on_server and time.time() - run.started_ms / 1000 < LAUNCHING_S:
            yield run, RUNNING_ELSEWHERE
        else:
            yield run, NEVER_STARTED


@contextmanager
def _lock_if_died(run: RunRecord, owner: RunOwner) -> Iterator[str]:
    """Lock the folder of a run whose owner died; the condition of its owner."""
    # A process that died before the run's folder had its name left it under the owner's id.
    folders = [owner.folder(name) for name in (run.run_id, f".{owner.id}")]
    folder = next((each for each in folders if owner.id in owner_ids(each) and each.is_dir()), None)
    if folder is None:
        yield RUNNING_ELSEWHERE
        return
    try:
        lock = RunLock(folder)
    except (BlockingIOError, FileNotFoundError):
        yield RUNNING_HERE
        return
    with lock:
        yield DIED


def _launched_from_here(run: RunRecord) -> bool:
    root = Path(freqfilter.__file__).resolve().parents[1]
    source = run.tags.get(MLFLOW_SOURCE_NAME, "").removeprefix("file://")
    is_project = run.tags.get(MLFLOW_SOURCE_TYPE) == "PROJECT" and bool(source)
    return is_project and Path(source) == root and run.tags.get(MLFLOW_USER) == getpass.getuser()
