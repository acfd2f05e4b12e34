"""A version's card: what it does, how well, and what it is not for, as Markdown that travels with it."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from freqfilter.evaluation.scores import MODEL, OVERALL
from freqfilter.params import Params
from freqfilter.tracking.runs import diagnoses
from freqfilter.workflows.description import over_limit, scores_table


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

**How good it is.** Test MSE {scores["mse"][MODEL, OVERALL]:.4g}: {over_limit(metrics)}. Beside what it is held against:

{scores_table(scores, "github")}

**What its training run was told.**

{told}

**What it is not for.** Other frequencies than these, another sample rate than {rate}, noise that is much stronger or of
another kind, components whose phases against one another are not those of its data. It gives no measure of its own
uncertainty.

Trained by run `{tags.get("run_id")}`, recipe {tags.get("recipe")}, freqfilter {tags.get("freqfilter_version")}, commit
{tags.get("git_commit", "unknown")}.
"""
