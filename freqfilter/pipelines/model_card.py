"""Model cards, and the descriptions of runs and versions, as Markdown."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from freqfilter.config import Params
from freqfilter.evaluation.metrics import MODEL, OVERALL, ZERO_MSE
from freqfilter.evaluation.recordings import CONTEXTS
from freqfilter.tracked_names import MAIN_CONTEXT
from freqfilter.tracking.run import diagnoses
from freqfilter.training.state import Progress

UNKNOWN = "–"  # a figure that was not measured


def run_description(
    progress: Progress | None,
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
        progress: Progress of the training; None for a classical filter.
        scores: ``Comparison.table`` of the test set.
        metrics: Metrics of the test set.
        run_id: ID of the run, for the description of a version.
        model_name: Name of the registered model, for the description of a run.
        version: Number of its registered version, if any.
        picture: URL of the loss figure, if any.
        diagnoses: Problems of the training, a line each.
    """
    # MLflow's list of versions shows only the start, unformatted.
    weights = ", with the best weights" if progress else ""
    lines = [f"Test MSE {scores['mse'][MODEL, OVERALL]:.4g}, {limit_summary(metrics)}{weights}."]
    lines += [f"After {text}." for text in [after_summary(metrics)] if text]
    lines += [f"Diagnosis: {line}." for line in diagnoses]
    if progress:
        best = progress.best
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
    r"""Escape text of a user, so that Markdown shows it as it is, also in a cell of a table.

    >>> print(escape_markdown("a|b <i> *c*"))
    a\|b &lt;i&gt; \*c\*
    """
    return re.sub(r"([\\`*_|\[\]~])", r"\\\1", html.escape(text, quote=False))


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
    """Format the ratio of a model's MSE to the limit with its interval, on its test set or on other ``data``.

    >>> interval = {"test/mse_over_limit_low": 1.01, "test/mse_over_limit_high": 1.03}
    >>> limit_summary({"test/mse_over_limit": 1.0184} | interval)
    '1.018 × the limit (95 % interval 1.010 to 1.030)'
    >>> limit_summary({"test/mse_over_limit": 1.0184})
    '1.018 × the limit (95 % interval unknown, too little data)'
    """
    name = f"{data}/mse_over_limit"
    if name not in metrics:
        return "limit zero, no ratio to it" if f"{data}/limit_mse" in metrics else "limit unknown"
    interval = format_interval(metrics, name, ".3f", "95 % interval ") or " (95 % interval unknown, too little data)"
    return f"{metrics[name]:.3f} × the limit{interval}"


def after_summary(metrics: Mapping[str, float]) -> str:
    """Format the MSE after the largest number of samples up to ``MAIN_CONTEXT``, and its ratio to the limit.

    >>> after_summary({"test/mse_after_1000": 0.003, "test/mse_over_limit_after_1000": 1.15})
    '1,000 samples: MSE 0.003, 1.150 × the limit'
    """
    known = [samples for samples in CONTEXTS if samples <= MAIN_CONTEXT and f"test/mse_after_{samples}" in metrics]
    if not known:
        return ""
    samples = known[-1]
    text = f"{samples:,} samples: MSE {metrics[f'test/mse_after_{samples}']:.4g}"
    for name, reference in (("mse_over_limit", "the limit"), ("measured_over_linear_mmse", "the best linear filter")):
        if (metric := f"test/{name}_after_{samples}") in metrics:
            interval = format_interval(metrics, metric, ".3f", "95 % interval ")
            return f"{text}, {metrics[metric]:.3f} × {reference}{interval}"
    return text


def heldout_summary(metrics: Mapping[str, float]) -> str:
    """Format the MSE of a model on fresh realizations.

    >>> heldout_summary({"fresh/realizations": 20, "fresh/mse": 0.212})
    'On 20 fresh realizations: MSE 0.2120, limit unknown'
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
    table = table.where(table >= ZERO_MSE, 0)
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
    if table_format == "github":
        table = table.rename(index=escape_markdown)
    alignment = ["left", *["right"] * table.shape[1]]
    text = table.map(_format_value).rename_axis("run")
    return text.to_markdown(tablefmt=table_format, disable_numparse=True, colalign=alignment)


def _format_value(value: float | None) -> str:
    if value is None or math.isnan(value):
        return UNKNOWN
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:.4f}"


def model_card(
    params: Params,
    network: Mapping[str, Any],
    scores: pd.DataFrame,
    metrics: Mapping[str, float],
    tags: Mapping[str, str],
) -> str:
    """Return the model card of a filter, in Markdown.

    Args:
        params: Parameters of its run.
        network: Arguments of its network (``models.network.create_network``).
        scores: ``Comparison.table`` of its test set.
        metrics: Metrics of its test set.
        tags: Tags of its run.
    """
    frequencies = ", ".join(f"{frequency:g}" for frequency in params.signals.frequencies_hz)
    after = after_summary(metrics)
    problems = "\n".join(f"- {line}" for line in diagnoses(tags).values()) or "None."
    return f"""# Frequency filter for {frequencies} Hz

**Task.** {_task(params, frequencies)}

**{"Filter" if network["cell"] == "kalman" else "Network"}.** {_filter(network, metrics)}

**Data.** {_data(params, frequencies)}

**Evaluation.** Test MSE {scores["mse"][MODEL, OVERALL]:.4g}: {limit_summary(metrics)}.
{f"After {after}. " if after else ""}MSE of the model and its baselines:

{scores_table(scores, "github")}

**Problems of the training run.**

{problems}

**Out of scope.** {_out_of_scope(params)}

Trained by run `{tags.get("run_id")}`, recipe {tags.get("recipe")}, freqfilter {tags.get("freqfilter_version")}, commit
{tags.get("git_commit", "unknown")}.
"""


def _task(params: Params, frequencies: str) -> str:
    n_components = len(params.signals.frequencies_hz)
    if params.of_recordings:
        return f"""Extracts the {n_components} components ({frequencies} Hz) of a mixture, sample by sample, in
recordings of any length. It is causal: an estimate uses all samples so far. Input: (recordings, samples), the
mixture; output: (recordings, samples, {n_components})."""
    direction = (
        "uses the whole window" if params.model.bidirectional else "is causal: an estimate uses the samples so far"
    )
    return f"""Extracts one of {n_components} components ({frequencies} Hz) from a mixture, sample by sample. It
{direction}. Input: (windows, samples, {1 + n_components}), the mixture and a one-hot selector; output: (windows,
samples, 1). Trained on windows of {params.data.window_length} samples."""


def _filter(network: Mapping[str, Any], metrics: Mapping[str, float]) -> str:
    if network["cell"] == "kalman":
        return "Kalman filter of the signal model, in float64; nothing is trained."
    return f"""{network["cell"].upper()}, {network["num_layers"]} layers of {network["hidden_size"]} features,
{metrics["parameter_count"]:,.0f} parameters."""


def _data(params: Params, frequencies: str) -> str:
    signals, data = params.signals, params.data
    if data.data_file is not None:
        return "Windows of a data file; the signal model is unknown."
    mixture = (
        f"The mean of sinusoids of {frequencies} Hz with Gaussian noise of standard deviation {signals.noise_std:g}, "
        f"{signals.sample_rate_hz:g} samples per second"
    )
    if not params.of_recordings:
        return f"{mixture}, training noise {data.noise}, validation {data.split}."
    drift = ""
    if signals.memory_s:
        drift = f" that drift with a memory of {', '.join(f'{memory:g}' for memory in sorted({*signals.memory_s}))} s"
    amplitudes = "Rayleigh-distributed" if signals.gaussian else "fixed"
    return f"{mixture}, in recordings with uniform phases and {amplitudes} amplitudes{drift}."


def _out_of_scope(params: Params) -> str:
    rate = f"{params.signals.sample_rate_hz:g} samples per second"
    components = "components with other relative phases than in its data"
    if params.of_recordings:
        components = "components of much larger amplitude"
    elif params.data.data_file is not None:
        rate = "the file's sample rate"
    return f"""Other frequencies, sample rates other than {rate}, much stronger noise or noise of another
distribution, {components}. The filter does not estimate its own
uncertainty."""
