"""Draw the README's first picture from the newest finished runs of the original and the default recipe.

`make story` calls it. Both need to have been trained in the store that MLFLOW_TRACKING_URI names.
"""

from __future__ import annotations

import sys
from pathlib import Path

from mlflow import MlflowClient

from freqfilter.data.splits import Splits
from freqfilter.data.windows import evenly_spaced
from freqfilter.evaluation import limits
from freqfilter.plots.style import BLUE, ORANGE, label_axes, new_figure
from freqfilter.tracking.loading import load_run

PICTURE = Path(__file__).parent / "pictures" / "story.png"
RECIPES = {"original": ORANGE, "default": BLUE}
CURVES = {"val": ("-", "validation"), "holdout": ("--", "holdout on unseen noise")}


def main(experiment: str) -> None:
    """Draw and write the picture.

    Args:
        experiment: Where the runs are.
    """
    client = MlflowClient()
    figure = new_figure(10, 5)
    axes = figure.subplots()
    for recipe, colour in RECIPES.items():
        run_id = newest(client, experiment, recipe)
        params = load_run(run_id).params
        splits = Splits.from_params(params)
        scored = {"val": splits.validation, "holdout": evenly_spaced(splits.holdout, params.evaluation.holdout_windows)}
        for name, (line, label) in CURVES.items():
            limit = limits.validation_limit(params, scored[name])
            points = sorted(client.get_metric_history(run_id, f"{name}/mse"), key=lambda point: point.step)
            millions = [point.step * splits.n_epoch / 1e6 for point in points]
            ratios = [point.value / limit.mse for point in points]
            axes.plot(millions, ratios, line, color=colour, label=f"{recipe}, {label}")
    axes.axhline(1, color="black", linewidth=1, label="limit: no filter can expect less")
    label_axes(axes, xlabel="windows trained on, millions", ylabel="MSE over the limit on the same windows")
    axes.legend(loc="lower left")
    figure.savefig(PICTURE, dpi=120)


def newest(client: MlflowClient, experiment: str, recipe: str) -> str:
    """The id of the newest finished training of a recipe that is no part of a comparison."""
    found = client.get_experiment_by_name(experiment)
    wanted = f"tags.workflow = 'train' AND tags.recipe = '{recipe}' AND attributes.status = 'FINISHED'"
    runs = client.search_runs([found.experiment_id], wanted, order_by=["start_time DESC"]) if found else []
    alone = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    if not alone:
        sys.exit(f"no finished run of the recipe {recipe} in experiment {experiment}: train it first")
    return str(alone[0].info.run_id)


if __name__ == "__main__":
    main(sys.argv[1])
