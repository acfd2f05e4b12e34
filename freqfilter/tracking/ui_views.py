"""Saved views of MLflow's UI, and addresses of its pages."""

from __future__ import annotations

import base64
import json
import zlib
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from mlflow import MlflowClient
from mlflow.entities import Experiment
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_RUN_NOTE

from freqfilter.tracked_names import (
    BEST_HOLDOUT_MSE,
    COMPARED_OF_RECORDINGS,
    EPOCH_SECONDS,
    HOLDOUT_MSE,
    PEAK_MEMORY,
    TEST_MSE,
    TEST_MSE_AFTER,
    TEST_MSE_OVER_LIMIT,
    TEST_MSE_OVER_LIMIT_AFTER,
    TRAIN_LOSS,
    VAL_LIMIT_MSE,
    VAL_MSE,
    VAL_MSE_OVER_LIMIT,
)

if TYPE_CHECKING:
    from freqfilter.tracking.run import Run

TAG = "mlflow.sharedViewState."  # prefix that the UI reads
# Sections in which the UI draws each metric that the views do not.
FOLDED = ("holdout", "best", "fresh", "limit", "range_test", "test", "train", "val", "Model metrics", "System metrics")
# Charts in a row and their height in pixels, where the UI's defaults do not fit.
SIZES = {"Parameters": {"columns": 1, "cardHeight": 420}}


@dataclass(frozen=True)
class View:
    """A saved view of an experiment.

    Attributes:
        key: Name in its address, ``?viewStateShareKey=KEY``.
        name: Name in the menu.
        having: Filter of runs, in MLflow's syntax.
        order_by: Column by which runs are sorted, ascending.
        columns: Columns of the table, by their names in the UI.
        sections: Charts by section.
    """

    key: str
    name: str
    having: str
    order_by: str
    columns: tuple[str, ...]
    sections: dict[str, tuple[dict[str, Any], ...]]

    def tag(self) -> tuple[str, str]:
        """Name and value of the experiment's tag."""
        sections = [
            {"uuid": name, "name": name, "display": name in self.sections, "isReordered": True} | SIZES.get(name, {})
            for name in (*self.sections, *FOLDED)
        ]
        shared = {"deleted": False, "isGenerated": False, "runsCountToCompare": 20}
        charts = [
            shared | chart | {"uuid": f"{section} {number}", "metricSectionId": section}
            for section, drawn in self.sections.items()
            for number, chart in enumerate(drawn)
        ]
        state = {
            "searchFilter": self.having,
            "orderByKey": self.order_by,
            "orderByAsc": True,
            "selectedColumns": list(self.columns),
            "columnWidths": {"attributes.`Run Name`": 340} | dict.fromkeys(self.columns, 140),
            "compareRunSections": sections if charts else None,
            "compareRunCharts": charts or None,
            "isAccordionReordered": True,
            "hideEmptyCharts": True,
        }
        packed = base64.b64encode(zlib.compress(json.dumps(state).encode())).decode()
        value = {"name": self.name, "createdAt": 0, "updatedAt": 0, "state": f"deflate;{packed}"}
        return f"{TAG}{self.key}", json.dumps(value)


def _lines(*metrics: str, scale: str = "linear") -> dict[str, Any]:
    return {
        "type": "LINE",
        "metricKey": metrics[0],
        "selectedMetricKeys": list(metrics),
        "scaleType": scale,
        "xAxisScaleType": "linear",
        "xAxisKey": "step",
        "yAxisKey": "metric",
        "yAxisExpressions": [],
        "range": {},
        "lineSmoothness": 0,
        "ignoreOutliers": False,
        "useGlobalXaxisKey": False,
        "useGlobalLineSmoothing": False,
    }


def _bars(metric: str) -> dict[str, Any]:
    return {"type": "BAR", "metricKey": metric}


def _picture(key: str) -> dict[str, Any]:
    return {"type": "IMAGE", "imageKeys": [key], "step": 0, "showRunParams": False}


VIEWS = (
    View(
        "trainings",
        "Trainings",
        "tags.workflow = 'train'",
        f"metrics.`{TEST_MSE_OVER_LIMIT}`",
        (
            f"metrics.`{TEST_MSE_OVER_LIMIT}`",
            f"metrics.`{TEST_MSE}`",
            "metrics.`best/val_mse`",
            f"metrics.`{BEST_HOLDOUT_MSE}`",
            "metrics.`best/epoch`",
            "metrics.`epochs_run`",
            "tags.`model_version`",
        ),
        {
            "Losses": (
                _lines(TRAIN_LOSS, VAL_MSE, VAL_LIMIT_MSE, scale="log"),
                _lines(HOLDOUT_MSE, VAL_LIMIT_MSE, scale="log"),
                _lines(VAL_MSE_OVER_LIMIT),
            ),
            "Test": tuple(map(_bars, (TEST_MSE_OVER_LIMIT, TEST_MSE, TEST_MSE_OVER_LIMIT_AFTER, TEST_MSE_AFTER))),
            "Pictures": tuple(map(_picture, COMPARED_OF_RECORDINGS.values())),
            "Parameters": (
                {
                    "type": "DIFFERENCE",
                    "chartName": "parameters that differ",
                    "compareGroups": ["Parameters"],
                    "showChangeFromBaseline": False,
                    "showDifferencesOnly": True,
                    "baselineColumnUuid": "",
                },
            ),
            "Cost": (_lines(EPOCH_SECONDS), _bars(PEAK_MEMORY)),
        },
    ),
    View(
        "decisions",
        "Decisions",
        "tags.decision != ''",
        "attributes.start_time",
        tuple(f"tags.`{name}`" for name in ("decision", "model_name", "version", "champion_before", "reason")),
        {},
    ),
)


def view_url(experiment_id: str, key: str) -> str:
    """Address of a saved view, relative to MLflow's UI."""
    mode = "&compareRunsMode=CHART" if next(view for view in VIEWS if view.key == key).sections else ""
    return f"#/experiments/{experiment_id}/runs?{MODEL_TRAINING}&viewStateShareKey={key}{mode}"


# Without it the UI opens in its mode for language models.
MODEL_TRAINING = "workflowType=machine_learning"
# With it the UI shows runs and models, not prompts and traces.
KIND = ("mlflow.experimentKind", "custom_model_development")
DESCRIPTION = """\
Filters, compared with the least error that is possible: [trainings]({trainings}) · [decisions]({decisions})

That error is the *limit*: `test/mse_over_limit` is 1 for an optimal filter. The menu *Views* has the same two pages:
losses with the limit, scores, pictures and the parameters that differ; and which version became champion.
"""
MADE = "views"  # tag of an experiment that has them, so that views changed by a user are kept


def create_saved_views(client: MlflowClient, experiment: Experiment) -> None:
    """Create the saved views and the description of an experiment, unless it has them."""
    tags, experiment_id = experiment.tags, experiment.experiment_id
    if MADE in tags:
        return
    addresses = {view.key: view_url(experiment_id, view.key) for view in VIEWS}
    new_tags = [*(view.tag() for view in VIEWS), KIND, (MLFLOW_RUN_NOTE, DESCRIPTION.format(**addresses))]
    with suppress(MlflowException):  # of a store that refuses a tag which another run creates at the same time
        for name, value in (*new_tags, (MADE, " ".join(addresses))):
            if name not in tags:
                client.set_experiment_tag(experiment_id, name, value)


@dataclass(frozen=True)
class RunRef:
    """A run in a tracking store.

    Attributes:
        run_id: Id of the run.
        experiment: Name of its experiment.
        experiment_id: Id of its experiment; empty if the run is offline.
        tracking_uri: The store, without a password; empty if the run is offline.
    """

    run_id: str
    experiment: str
    experiment_id: str
    tracking_uri: str

    @classmethod
    def to(cls, run: Run, tracking_uri: str) -> Self:
        """Refer to an open run."""
        return cls(run.run_id, run.experiment, run.experiment_id, tracking_uri)

    def page(self, server: str) -> str:
        """Address of the run's page in MLflow's UI at ``server``, such as ``http://127.0.0.1:5000``."""
        return f"{server.rstrip('/')}/#/experiments/{self.experiment_id}/runs/{self.run_id}?{MODEL_TRAINING}"

    def view(self, server: str, key: str) -> str:
        """Address of a saved view of the run's experiment."""
        return f"{server.rstrip('/')}/{view_url(self.experiment_id, key)}"


def resume_command(run_id: str) -> str:
    """Command that resumes a run."""
    return f"python -m freqfilter resume {run_id}"
