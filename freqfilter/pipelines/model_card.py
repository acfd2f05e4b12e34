"""Model cards, and the descriptions of runs and versions, as Markdown."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import pandas as pd
from tabulate import tabulate

from freqfilter.config import Params
from freqfilter.evaluation.metrics import MODEL, OVERALL
from freqfilter.tracking.run import diagnoses
from freqfilter.training.state import Progress


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
    """Markdown with the test scores beside the baselines, the best epoch and the losses there.

    Args:
        progress: The run's history.
        scores: ``Comparison.table`` of the test.
        metrics: The metrics of the test.
        run_id: The run, where the text stands under a version.
        model_name: The registered model, where the text stands under a run.
        version: Its version, likewise; None: not registered.
        picture: Address of its losses, if there is one.
        diagnoses: The problems that were found in its training, a line each.
    """
    best = progress.best
    # MLflow's list of versions shows the first words alone, and as they are written here.
    lines = [f"Test MSE {scores['mse'][MODEL, OVERALL]:.4g}, {limit_summary(metrics)}, with the best weights."]
    lines += [f"Diagnosis: {line}." for line in diagnoses]
    lines.append(
        f"Best epoch {best.epoch} of {len(progress.history)}: "
        f"training loss {best.train_loss:.4g}, validation MSE {best.val_mse:.4g}."
    )
    if version is not None:
        lines.append(f"Registered as [{model_name} version {version}](#/models/{model_name}/versions/{version}).")
    if run_id is not None:
        lines.append(f"Trained by {run_link(run_id)}.")
    lines.append(scores_table(scores, "github"))
    if picture:
        lines.append(f"![losses over the epochs]({picture})")
    return "\n\n".join(lines)


def run_link(run_id: str) -> str:
    """Words for a run that lead to it on MLflow's pages."""
    return f"run [`{run_id}`](#/runs/{run_id})"


def format_interval(value: float, low: float | None, high: float | None, *, digits: int = 3) -> str:
    """A figure with its 95 % interval, where there is one.

    >>> format_interval(1.0184, 1.011, 1.03), format_interval(0.2, None, None), format_interval(0.2, math.nan, math.nan)
    ('1.018 (1.011 to 1.030)', '0.200', '0.200')
    """
    known = low is not None and high is not None and math.isfinite(low) and math.isfinite(high)
    return f"{value:.{digits}f}" + (f" ({low:.{digits}f} to {high:.{digits}f})" if known else "")


def limit_summary(metrics: Mapping[str, float], *, data: str = "test") -> str:
    """How far a model is from what is possible on its test set, or on other ``data``, in words.

    >>> interval = {"test/mse_over_limit_low": 1.01, "test/mse_over_limit_high": 1.03}
    >>> limit_summary({"test/mse_over_limit": 1.0184} | interval)
    '1.018 × the limit (95 % interval 1.010 to 1.030)'
    """
    ratio = metrics.get(f"{data}/mse_over_limit")
    if ratio is None:
        return "its limit is not known"
    low, high = metrics.get(f"{data}/mse_over_limit_low"), metrics.get(f"{data}/mse_over_limit_high")
    span = f" (95 % interval {low:.3f} to {high:.3f})" if low is not None and high is not None else ""
    return f"{ratio:.3f} × the limit{span}"


def heldout_summary(metrics: Mapping[str, float]) -> str:
    """How good a model is on fresh realizations, in words.

    >>> heldout_summary({"fresh/realizations": 20, "fresh/mse": 0.212, "fresh/mse_over_limit": 1.02})
    'On 20 fresh realizations: MSE 0.2120, 1.020 × the limit'
    """
    many = f"{metrics['fresh/realizations']:.0f} fresh realizations"
    low, high = metrics.get("fresh/mse_low"), metrics.get("fresh/mse_high")
    span = f" (95 % interval {low:.4f} to {high:.4f})" if low is not None and high is not None else ""
    return f"On {many}: MSE {metrics['fresh/mse']:.4f}{span}, {limit_summary(metrics, data='fresh')}"


def scores_table(scores: pd.DataFrame, table_format: str) -> str:
    """Test MSE as text: a row for each extractor, a column for each component.

    Args:
        scores: Rows (extractor, component).
        table_format: One of tabulate's, such as ``github`` or ``simple``.
    """
    components = scores.index.get_level_values("component").unique()
    extractors = scores.index.get_level_values("extractor").unique()
    table = scores["mse"].unstack("component").loc[extractors, components]
    return tabulate(
        [[name, *row] for name, row in zip(table.index, table.to_numpy().tolist(), strict=True)],
        headers=["test MSE", *components],
        tablefmt=table_format,
        floatfmt=".4g",
    )


def runs_table(table: pd.DataFrame, table_format: str, *, with_spread: bool = False) -> str:
    """Runs side by side as text.

    Args:
        table: A row for each run.
        table_format: One of tabulate's.
        with_spread: Whether two more rows state mean and sample standard deviation.
    """
    if with_spread:
        table = pd.concat([table, table.agg(["mean", "std"])])
    rows = zip(table.index, table.to_numpy().tolist(), strict=True)
    return tabulate(
        [[name, *map(_shown, row)] for name, row in rows],
        headers=["run", *table.columns],
        tablefmt=table_format,
        disable_numparse=True,
        colalign=["left", *["right"] * table.shape[1]],
    )


def _shown(value: float | None) -> str:
    if value is None or math.isnan(value):
        return "–"
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:.4f}"


def model_card(params: Params, scores: pd.DataFrame, metrics: Mapping[str, float], tags: Mapping[str, str]) -> str:
    """The card of a trained filter.

    Args:
        params: The parameters of its run.
        scores: ``Comparison.table`` of its test.
        metrics: The metrics of its test.
        tags: Tags of its run.
    """
    signals, data, model = params.signals, params.data, params.model
    frequencies = ", ".join(f"{frequency:g}" for frequency in signals.frequencies_hz)
    n_components, own = len(signals.frequencies_hz), data.data_file is not None
    origin = (
        "Windows of a file; nobody has said what signal model they follow."
        if own
        else f"The mean of sinusoids of {frequencies} Hz with Gaussian noise of standard deviation "
        f"{signals.noise_std:g}, {signals.sample_rate_hz:g} samples per second, training noise {data.noise}, "
        f"validation {data.split}."
    )
    direction = "sees the whole window" if model.bidirectional else "is causal: an estimate uses the samples so far"
    rate = "the file's sample rate" if own else f"{signals.sample_rate_hz:g} samples per second"
    told = "\n".join(f"- {line}" for line in diagnoses(tags).values()) or "Nothing."
    return f"""# Frequency filter for {frequencies} Hz

**What it does.** Picks one of {n_components} components ({frequencies} Hz) out of a mixture, sample by sample. It
{direction}. Input: (windows, samples, {1 + n_components}), the mixture and a one-hot selector; output: (windows,
samples, 1). Trained on windows of {data.window_length} samples.

**Network.** {model.cell.upper()}, {model.num_layers} layers of {model.hidden_size} features,
{metrics["parameter_count"]:,.0f} parameters.

**Data.** {origin}

**How good it is.** Test MSE {scores["mse"][MODEL, OVERALL]:.4g}: {limit_summary(metrics)}.
Beside the baselines:

{scores_table(scores, "github")}

**What its training run was told.**

{told}

**What it is not for.** Other frequencies than these, another sample rate than {rate}, noise that is much stronger or of
another kind, components whose phases against one another are not those of its data. It gives no measure of its own
uncertainty.

Trained by run `{tags.get("run_id")}`, recipe {tags.get("recipe")}, freqfilter {tags.get("freqfilter_version")}, commit
{tags.get("git_commit", "unknown")}.
"""
