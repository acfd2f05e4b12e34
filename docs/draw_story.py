"""Draw the README's first picture from the newest finished runs of the original and the default recipe.

`make story` calls it. Both need to have been trained in the store that MLFLOW_TRACKING_URI names.
"""

from __future__ import annotations

import sys
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Run

from freqfilter.evaluation.figures.style import BLUE, ORANGE, dress, new_figure
from freqfilter.signals.splits import Splits
from freqfilter.tracking.registry import load_run

PICTURE = Path(__file__).parent / "pictures" / "story.png"
RECIPES = {"original": ORANGE, "default": BLUE}
CURVES = {"val/mse": ("validation", "-"), "audit/mse": ("audit: noise that nobody has seen", "--")}


def main(experiment: str) -> None:
    """Draw and write the picture.

    Args:
        experiment: Where the runs are.
    """
    client = MlflowClient()
    figure = new_figure(10, 5)
    axes = figure.subplots()
    limits = []
    for recipe, colour in RECIPES.items():
        run = newest(client, experiment, recipe)
        windows_per_epoch = Splits.from_params(load_run(run.info.run_id).params).n_epoch
        for metric, (label, line) in CURVES.items():
            points = sorted(client.get_metric_history(run.info.run_id, metric), key=lambda point: point.step)
            millions = [point.step * windows_per_epoch / 1e6 for point in points]
            axes.plot(millions, [point.value for point in points], line, color=colour, label=f"{recipe}, {label}")
        limits.append(run.data.metrics["limit/expected_mse"])
    axes.axhline(limits[0], color="black", linewidth=1, label=f"limit: no filter can expect less than {limits[0]:.3f}")
    dress(axes, xlabel="windows trained on, millions", ylabel="mean squared error", legend=True)
    figure.savefig(PICTURE, dpi=120)


def newest(client: MlflowClient, experiment: str, recipe: str) -> Run:
    """The newest finished training of a recipe that is no part of a comparison."""
    found = client.get_experiment_by_name(experiment)
    wanted = f"tags.workflow = 'train' AND tags.recipe = '{recipe}' AND attributes.status = 'FINISHED'"
    runs = client.search_runs([found.experiment_id], wanted, order_by=["start_time DESC"]) if found else []
    alone = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    if not alone:
        sys.exit(f"no finished run of the recipe {recipe} in experiment {experiment}: train it first")
    return alone[0]


if __name__ == "__main__":
    main(sys.argv[1])
