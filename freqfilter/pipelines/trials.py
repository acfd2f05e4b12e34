"""Trials of a champion: the candidates that were compared with it, and the error rate that is left for the next one."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from freqfilter.config import Params
from freqfilter.evaluation.heldout import N_FILE_PARTS, score_realizations
from freqfilter.evaluation.metrics import MODEL, Estimator
from freqfilter.evaluation.significance import FALSE_PROMOTION_RATE, error_rate, min_parts
from freqfilter.tracking.aliases import RegisteredVersion
from freqfilter.tracking.loading import MODEL_DIGEST
from freqfilter.tracking.queries import stored_runs

IDENTITY_SEED = 9_999_999  # noise seed of the realization on which candidates are told apart
SAME_ERRORS = 1e-4  # relative difference of two candidates' errors that makes them the same; see INDIFFERENCE
MAX_ERRORS = 100  # that are stored, since tags are limited in length


@dataclass(frozen=True)
class Trial:
    """Comparison of a candidate with a champion.

    Equal candidates have the same trial, whatever their version is: the same noise and share of the error rate.

    Attributes:
        number: Number of the candidate among those that were compared with the champion, from 1.
        noise: Origin of its noise seeds, as text: ``digest …``, of the candidate, or ``noise_seed …``, of the user.
        errors: Its mean squared errors on the realization of ``IDENTITY_SEED``, or on a file's test windows, as text.
        version: Version that it was first made with.
    """

    number: int
    noise: str
    errors: str
    version: str

    @property
    def rate(self) -> float:
        """Its false-promotion rate."""
        return error_rate(self.number)

    def tags(self, champion: RegisteredVersion) -> dict[str, str]:
        """Tags of the decision's run, which ``trials`` reads."""
        return {
            "champion_registered_ms": str(champion.registered_ms),
            "trial": str(self.number),
            "trial_noise": self.noise,
            "trial_errors": self.errors,
            "trial_version": self.version,
        }

    def summary(self, candidate: RegisteredVersion) -> str:
        """Its number and error rate, as text."""
        same = "" if self.version == str(candidate.version) else f", with the same errors as version {self.version}"
        rate = f"{100 * self.rate:.2g} % of the false-promotion rate of {100 * FALSE_PROMOTION_RATE:g} %"
        return f"Candidate {self.number} compared with this champion{same}: it may spend {rate}."


def trials(champion: RegisteredVersion) -> list[Trial]:
    """Return the trials of a champion, from the runs of the decisions, deleted ones included."""
    having = f"tags.champion_registered_ms = '{champion.registered_ms}' AND tags.champion_before = '{champion.version}'"
    runs = stored_runs(having, deleted=True)
    values = [run.tags for run in runs]
    return [Trial(int(v["trial"]), v["trial_noise"], v["trial_errors"], v["trial_version"]) for v in values]


def next_trial(
    earlier: Iterable[Trial], candidate: RegisteredVersion, errors: pd.Series[float], noise_seed: int | None
) -> Trial:
    """Return the trial of a candidate: that of an equal earlier one on the same noise, or a new one.

    Args:
        earlier: Trials of the champion.
        candidate: The candidate.
        errors: Its errors; see ``identity_errors``.
        noise_seed: Noise seed that the user has given; None: noise is derived from the digest of the first of the
            equal candidates, so that training it again brings no new noise.
    """
    number, noise = 0, f"noise_seed {noise_seed}"
    if noise_seed is None:
        noise = f"digest {candidate.tags.get(MODEL_DIGEST, candidate.uri)}"
    for trial in sorted(earlier, key=lambda trial: trial.number):
        number = max(number, trial.number)
        on_same_noise = trial.noise.startswith("digest ") if noise_seed is None else trial.noise == noise
        if on_same_noise and _same_errors(trial.errors, errors):
            return trial
    text = " ".join(f"{error:.8g}" for error in errors.iloc[:MAX_ERRORS])
    return Trial(number + 1, noise, text, str(candidate.version))


def _same_errors(stored: str, errors: pd.Series[float]) -> bool:
    before, now = np.array(stored.split(), dtype=float), errors.to_numpy()[:MAX_ERRORS]
    return before.shape == now.shape and bool(np.allclose(before, now, rtol=SAME_ERRORS, atol=1e-12))


def identity_errors(estimator: Estimator, params: Params) -> pd.Series[float]:
    """Mean squared errors of a candidate, overall and for each component, that tell candidates apart."""
    noise_seeds = [IDENTITY_SEED] if params.data.data_file is None else None
    scored = score_realizations({MODEL: estimator}, params, noise_seeds, device=torch.device("cpu"))
    return pd.DataFrame([table.loc[MODEL] for _, table in scored]).mean()


def too_few_windows(n_parts: int, params: Params, rate: float) -> str | None:
    """State that the parts of a data file are too few for a verdict; None if they are enough."""
    needed = min_parts(rate)
    if params.data.data_file is None or n_parts >= min(needed, N_FILE_PARTS):
        return None
    return (
        f"too few test windows for a verdict: {params.data.data_file} has {n_parts} of one of the components, "
        f"and at least {needed} of each are needed"
    )
