"""Trainings that a person names: by a run's id or name, by a version, or by a filter."""

from __future__ import annotations

import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

import mlflow
import pandas as pd
from mlflow import MlflowClient
from mlflow.entities import Run as MlflowRun
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from freqfilter.errors import UserError
from freqfilter.launch import launched_run
from freqfilter.params import Params, TrackingParams, restore
from freqfilter.params.reading import parse, read_sections
from freqfilter.tracking import champions
from freqfilter.tracking.environment import environment
from freqfilter.tracking.loading import RUN_ID, SAFE
from freqfilter.tracking.metric_names import AUDIT_MSE, EPOCH_SECONDS, VAL_MSE
from freqfilter.tracking.store import translated

NEWEST = 10  # where nobody names any
MOST = 30  # more are no table that anybody would read
CURVES = {VAL_MSE, AUDIT_MSE, EPOCH_SECONDS}  # a request for each, so that no others are asked for
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
    with translated("the store's runs"):
        if words is not None and not words.strip():
            raise UserError("runs is empty: name runs, or leave it out for the newest")
        if words is None:
            found = _search(client, f"{TRAININGS} AND status = 'FINISHED'", tracking, most=NEWEST)
        elif FILTER.match(words.strip()):
            found = _search(client, f"{TRAININGS} AND {words}", tracking, most=MOST + 1)
        else:
            found = [run for word in listed(words) for run in _named(client, word, tracking)]
        every = {run.info.run_id: run for run in found}
        if len(every) > MOST:
            raise UserError(f"runs={words}: more than {MOST} trainings; name fewer")
        return [_training(client, run) for run in every.values()]


def listed(words: str) -> list[str]:
    """The words of a list, in YAML or parted by commas.

    >>> listed("default frequencies_hz=[2,5], base"), listed("[1, base]")
    (['default frequencies_hz=[2,5]', 'base'], ['1', 'base'])
    """
    parts = parse(words) if words.strip().startswith("[") else OUTSIDE_BRACKETS.split(words)
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
    found = client.search_runs([run.info.experiment_id], having, max_results=MOST + 1, order_by=["start_time ASC"])
    if not found:
        raise UserError(f"runs: {word} is of `{run.data.tags.get('workflow', 'another program')}`, not a training")
    return list(found)


def _one(client: MlflowClient, word: str, tracking: TrackingParams) -> MlflowRun:
    if RUN_ID.fullmatch(word):
        return client.get_run(word)
    if match := ALIAS.fullmatch(word):
        model_name = match["model"] or tracking.model_name
        version = champions.named(model_name, match["alias"])
        if version is None:
            raise UserError(f"runs: no version of {model_name} is called {match['alias']}")
        return client.get_run(version.run_id)
    if match := VERSION.fullmatch(word):
        version = champions.candidate(match["model"] or tracking.model_name, int(match["number"]))
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
    for name in CURVES & run.data.metrics.keys():
        points = {point.step: point.value for point in client.get_metric_history(run_id, name)}
        curves[name] = pd.Series(points).sort_index()
    return Training(
        run_id=run_id,
        name=run.info.run_name,
        status=run.info.status,
        params=_params(run_id),
        metrics=dict(run.data.metrics),
        tags=dict(run.data.tags),
        curves=curves,
        test_digest=tested,
        has_model=bool(run.outputs and run.outputs.model_outputs),
    )


def _params(run_id: str) -> Params:
    with tempfile.TemporaryDirectory() as folder, translated(f"run {run_id}: params.yaml"), environment(**SAFE):
        path = mlflow.artifacts.download_artifacts(run_id=run_id, artifact_path="params.yaml", dst_path=folder)
        return restore(read_sections(Path(path)))
