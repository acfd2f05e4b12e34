"""Model cards, and the descriptions of runs and versions, as Markdown."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import pandas as pd

from freqfilter.config import Params
from freqfilter.evaluation.metrics import MODEL, OVERALL
from freqfilter.tracking.run import diagnoses
from freqfilter.training.state import Progress

UNKNOWN = "–"  # a figure that was not measured


def run_description(
    progress: Progress,
    scores: pd.DataFrame,
    metrics: Mapping[str, float],
    *,
    run_id: str | None = None,
    model_name: str | None = None,
    version: int | None = None,
    picture: str | None = None,
    diagnoses: Iterable[str] = (),
) -> str:
    """Describe a training in Markdown: test scores and baselines, the best epoch and its losses.

    Args:
        progress: Progress of the training.
        scores: ``Comparison.table`` of the test set.
        metrics: Metrics of the test set.
        run_id: ID of the run, for the description of a version.
        model_name: Name of the registered model, for the description of a run.
        version: Number of its registered version, if any.
        picture: URL of the loss figure, if any.
        diagnoses: Problems of the training, a line each.
    """
    best = progress.best
    # MLflow's list of versions shows only the start, unformatted.
    lines = [f"Test MSE {scores['mse'][MODEL, OVERALL]:.4g}, {limit_summary(metrics)}, with the best weights."]
    lines += [f"Diagnosis: {line}." for line in diagnoses]
    lines.append(
        f"Best epoch {best.epoch} of {len(progress.history)}: "
        f"training loss {best.train_loss:.4g}, validation MSE {best.val_mse:.4g}."
    )
    if version:
        lines.append(f"Registered as [{model_name} version {version}](#/models/{model_name}/versions/{version}).")
    if run_id:
        lines.append(f"Trained by {run_link(run_id)}.")
    lines.append(scores_table(scores, "github"))
    if picture:
        lines.append(f"![losses over epochs]({picture})")
    return "\n\n".join(lines)


def escape_markdown(text: str) -> str:
    """Text that Markdown shows as it is: HTML, links, code and the borders of table cells become entities."""
    return text.translate({ord(character): f"&#{ord(character)};" for character in "<>[]`|"})


def run_link(run_id: str) -> str:
    """Return a Markdown link to a run in MLflow's UI."""
    return f"run [`{run_id}`](#/runs/{run_id})"


def format_interval(metrics: Mapping[str, float], name: str, spec: str, prefix: str = "") -> str:
    """Format the 95 % interval of a metric in parentheses, after a space; empty if it is unknown."""
    low, high = metrics.get(f"{name}_low"), metrics.get(f"{name}_high")
    return "" if low is None or high is None else f" ({prefix}{low:{spec}} to {high:{spec}})"


def format_metric(metrics: Mapping[str, float], name: str, spec: str) -> str:
    """Format a metric with its 95 % interval, if known.

    >>> format_metric({"mse": 1.0184, "mse_low": 1.011, "mse_high": 1.03}, "mse", ".3f")
    '1.018 (1.011 to 1.030)'
    """
    return f"{metrics[name]:{spec}}{format_interval(metrics, name, spec)}" if name in metrics else UNKNOWN


def limit_summary(metrics: Mapping[str, float], *, data: str = "test") -> str:
    """Format the ratio of a model's MSE to the limit, on its test set or on other ``data``.

    >>> interval = {"test/mse_over_limit_low": 1.01, "test/mse_over_limit_high": 1.03}
    >>> limit_summary({"test/mse_over_limit": 1.0184} | interval)
    '1.018 × the limit (95 % interval 1.010 to 1.030)'
    """
    name = f"{data}/mse_over_limit"
    if name not in metrics:
        return "limit unknown"
    return f"{metrics[name]:.3f} × the limit{format_interval(metrics, name, '.3f', '95 % interval ')}"


def heldout_summary(metrics: Mapping[str, float]) -> str:
    """Format the MSE of a model on fresh realizations.

    >>> heldout_summary({"fresh/realizations": 20, "fresh/mse": 0.212, "fresh/mse_over_limit": 1.02})
    'On 20 fresh realizations: MSE 0.2120, 1.020 × the limit'
    """
    mse = f"MSE {metrics['fresh/mse']:.4f}{format_interval(metrics, 'fresh/mse', '.4f', '95 % interval ')}"
    n_realizations = f"{metrics['fresh/realizations']:.0f} fresh realizations"
    return f"On {n_realizations}: {mse}, {limit_summary(metrics, data='fresh')}"


def scores_table(scores: pd.DataFrame, table_format: str) -> str:
    """Format the test MSE: a row for each estimator, a column for each component.

    Args:
        scores: ``Comparison.table``.
        table_format: A format of tabulate, such as ``github`` or ``simple``.
    """
    components = scores.index.get_level_values("component").unique()
    estimators = scores.index.get_level_values("estimator").unique()
    table = scores["mse"].unstack("component").loc[estimators, components].rename_axis("test MSE")
    return table.to_markdown(tablefmt=table_format, floatfmt=".4g")


def runs_table(table: pd.DataFrame, table_format: str, *, with_spread: bool = False) -> str:
    """Format a table of runs.

    Args:
        table: A row for each run.
        table_format: A format of tabulate.
        with_spread: Whether to add rows with mean and sample standard deviation.
    """
    if with_spread:
        table = pd.concat([table, table.agg(["mean", "std"])])
    alignment = ["left", *["right"] * table.shape[1]]
    text = table.map(_format_value).rename_axis("run")
    return text.to_markdown(tablefmt=table_format, disable_numparse=True, colalign=alignment)


def _format_value(value: float | None) -> str:
    if value is None or math.isnan(value):
        return UNKNOWN
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:.4f}"


def model_card(params: Params, scores: pd.DataFrame, metrics: Mapping[str, float], tags: Mapping[str, str]) -> str:
    """Return the model card of a trained filter, in Markdown.

    Args:
        params: Parameters of its run.
        scores: ``Comparison.table`` of its test set.
        metrics: Metrics of its test set.
        tags: Tags of its run.
    """
    signals, data, model = params.signals, params.data, params.model
    frequencies = ", ".join(f"{frequency:g}" for frequency in signals.frequencies_hz)
    n_components, from_file = len(signals.frequencies_hz), data.data_file is not None
    origin = (
        "Windows of a data file; the signal model is unknown."
        if from_file
        else f"The mean of sinusoids of {frequencies} Hz with Gaussian noise of standard deviation "
        f"{signals.noise_std:g}, {signals.sample_rate_hz:g} samples per second, training noise {data.noise}, "
        f"validation {data.split}."
    )
    direction = "uses the whole window" if model.bidirectional else "is causal: an estimate uses the samples so far"
    rate = "the file's sample rate" if from_file else f"{signals.sample_rate_hz:g} samples per second"
    problems = "\n".join(f"- {line}" for line in diagnoses(tags).values()) or "None."
    return f"""# Frequency filter for {frequencies} Hz

**Task.** Extracts one of {n_components} components ({frequencies} Hz) from a mixture, sample by sample. It
{direction}. Input: (windows, samples, {1 + n_components}), the mixture and a one-hot selector; output: (windows,
samples, 1). Trained on windows of {data.window_length} samples.

**Network.** {model.cell.upper()}, {model.num_layers} layers of {model.hidden_size} features,
{metrics["parameter_count"]:,.0f} parameters.

**Data.** {origin}

**Evaluation.** Test MSE {scores["mse"][MODEL, OVERALL]:.4g}: {limit_summary(metrics)}.
MSE of the model and its baselines:

{scores_table(scores, "github")}

**Problems of the training run.**

{problems}

**Out of scope.** Other frequencies, sample rates other than {rate}, much stronger noise or noise of another
distribution, components with other relative phases than in its data. The filter does not estimate its own
uncertainty.

Trained by run `{tags.get("run_id")}`, recipe {tags.get("recipe")}, freqfilter {tags.get("freqfilter_version")}, commit
{tags.get("git_commit", "unknown")}.
"""
