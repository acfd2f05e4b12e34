"""The Python interface: the jobs of the command line as functions with typed results.

A parameter is a keyword argument with the name and default of params.yaml. The functions use the tracking store that
MLflow uses: ``mlflow.set_tracking_uri``, ``MLFLOW_TRACKING_URI``, or else ``mlflow.db`` in the working directory.
"""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from freqfilter.config import TrackingParams, resolve
from freqfilter.config.ablation import ablation_variants, default_run_name
from freqfilter.config.load import DEFAULT_RECIPE, require_online
from freqfilter.config.schema import Bounds
from freqfilter.errors import UserError
from freqfilter.process import Interrupted, shutdown, tolerant_of_warnings
from freqfilter.progress import progress_output
from freqfilter.tracking import configure_environment

if TYPE_CHECKING:
    import pandas as pd

    from freqfilter.models.filter import Filter
    from freqfilter.pipelines.ablation import SweepResult
    from freqfilter.pipelines.compare import ComparisonResult
    from freqfilter.pipelines.evaluate import EvaluationResult
    from freqfilter.pipelines.promote import PromotionResult
    from freqfilter.pipelines.rollback import RollbackResult
    from freqfilter.pipelines.train import TrainingResult

DEFAULT_REALIZATIONS = 12  # of a comparison; fewer than six cannot show a difference between two filters


def train(
    *, recipe: str = DEFAULT_RECIPE, run_name: str | None = None, progress: bool = True, **parameters: Any
) -> TrainingResult:
    """Train a filter as one tracked run, and register it as a new version.

    Args:
        recipe: ``default``, ``original``, or the path of a file in the form of params.yaml.
        run_name: Name of the run; None: derived from the recipe and the parameters.
        progress: Print a line for each epoch.
        **parameters: Parameters by name, such as ``epochs=3`` or ``frequencies_hz=[2, 5]``.

    Raises:
        UserError: If a parameter or the store cannot be used, the data is refused, or training diverges.
        KeyboardInterrupt: If it was interrupted; the message has the command that resumes it.
    """
    params = resolve(parameters, recipe=recipe)
    name = run_name or default_run_name(recipe, parameters)
    with _job(progress):
        from freqfilter.pipelines.train import train as run_train

        return run_train(params, recipe=recipe, name=name)


def ablate(
    values: Mapping[str, Any],
    *,
    recipe: str = DEFAULT_RECIPE,
    run_name: str | None = None,
    progress: bool = True,
    **parameters: Any,
) -> SweepResult:
    """Train once with the parameters given, and once for each value that replaces one of them.

    The runs are children of a parent run. Nothing is registered unless ``register=True`` is given.

    Args:
        values: Values to try, by parameter, such as ``{"hidden_size": [64, 256], "cell": "gru"}``.
        recipe: As for ``train``.
        run_name: Name of the parent run.
        progress: Print a line for each epoch.
        **parameters: Parameters that all runs share.

    Raises:
        UserError: As ``train`` does, or if one of the runs has failed.
    """
    text = json.dumps(dict(values))
    given = {"register": False} | parameters
    variants = ablation_variants(text, given, recipe=recipe, folder=Path.cwd())
    name = run_name or default_run_name(recipe, {"values": text} | parameters)
    with _job(progress):
        from freqfilter.pipelines.ablation import train_variants

        return train_variants(variants, workflow="ablate", options={"values": text}, recipe=recipe, name=name)


def evaluate(
    *,
    version: int | None = None,
    run_id: str | None = None,
    realizations: int = 0,
    progress: bool = True,
    **tracking: Any,
) -> EvaluationResult:
    """Score a registered version, or the model of a run, on the test set of its own parameters.

    Args:
        version: Version of the registered model; None: the newest.
        run_id: Run whose model is scored, instead of a version.
        realizations: Number of fresh noise realizations to score on as well.
        progress: Print the scores.
        **tracking: Parameters of section ``tracking``, such as ``model_name`` and ``experiment``.

    Raises:
        UserError: If there is no such model, or its data file is missing.
    """
    with _job(progress):
        from freqfilter.pipelines.evaluate import evaluate as run_evaluate

        return run_evaluate(_tracking(tracking), version=version, run_id=run_id, realizations=realizations)


def compare(
    runs: str | Sequence[str | TrainingResult] | None = None,
    *,
    realizations: int = DEFAULT_REALIZATIONS,
    page: str | Path | None = None,
    progress: bool = True,
    **tracking: Any,
) -> ComparisonResult:
    """Compare trainings: parameters, errors with intervals, curves and cost.

    Args:
        runs: Results of ``train``, run ids, run names or versions (``3``, ``NAME/3``, ``@champion``); or a filter
            in MLflow's syntax; None: the newest ten finished trainings.
        realizations: Number of fresh noise realizations to score all of them on; 0: none.
        page: HTML file to write; None: the page is only logged to the comparison's run.
        progress: Print progress.
        **tracking: Parameters of section ``tracking``.

    Raises:
        UserError: If fewer than two trainings are found, or one of them cannot be read.
    """
    if runs is not None and not isinstance(runs, str):
        runs = json.dumps([run if isinstance(run, str) else run.run.run_id for run in runs])
    with _job(progress):
        from freqfilter.pipelines.compare import compare as run_compare

        file = None if page is None else Path(page)
        return run_compare(_tracking(tracking), runs=runs, realizations=realizations, page=file)


def promote(
    version: int | None = None,
    *,
    max_mse_ratio: float = Bounds.max_mse_ratio,
    max_mse_ratio_per_frequency: float = Bounds.max_mse_ratio_per_frequency,
    margin: float = Bounds.margin,
    max_latency_ms: float = Bounds.max_latency_ms,
    max_size_mb: float = Bounds.max_size_mb,
    allow_unknown_training: bool = Bounds.allow_unknown_training,
    noise_seed: int | None = None,
    force: str | None = None,
    progress: bool = True,
    **tracking: Any,
) -> PromotionResult:
    """Compare a version with the champion and the limit, and make it the champion if it is better.

    Args:
        version: Version of the registered model; None: the newest.
        max_mse_ratio: Largest ratio of its mean squared error to the limit.
        max_mse_ratio_per_frequency: The same for each component.
        margin: Share of the champion's error by which it may be worse; 0: it has to be better.
        max_latency_ms: Largest latency for one window, milliseconds.
        max_size_mb: Largest size of its files, MB.
        allow_unknown_training: Accept a version that was registered without the record of its training, hence of its
            leak alarms.
        noise_seed: Seed of the first noise realization; None: derived from both models' digests.
        force: Reason to promote it even if checks fail.
        progress: Print progress.
        **tracking: Parameters of section ``tracking``, such as ``model_name``.

    Raises:
        UserError: If there is no such version.
    """
    bounds = Bounds(
        max_mse_ratio, max_mse_ratio_per_frequency, margin, max_latency_ms, max_size_mb, allow_unknown_training
    )
    with _job(progress):
        from freqfilter.pipelines.promote import promote as run_promote

        return run_promote(_tracking(tracking), version=version, bounds=bounds, noise_seed=noise_seed, force=force)


def rollback(version: int | None = None, *, reason: str, **tracking: Any) -> RollbackResult:
    """Make the previous champion, or a version, the champion again, also if there is no champion at present.

    Args:
        version: Version of the registered model; None: the previous champion.
        reason: Reason, which is recorded.
        **tracking: Parameters of section ``tracking``, such as ``model_name``.

    Raises:
        UserError: If there is no such version, or it cannot be loaded.
    """
    with _job(progress=False):
        from freqfilter.pipelines.rollback import rollback as run_rollback

        return run_rollback(_tracking(tracking), version=version, reason=reason)


def history(**tracking: Any) -> pd.DataFrame:
    """Registrations, decisions and rollbacks of a registered model, the oldest first.

    Args:
        **tracking: Parameters of section ``tracking``, such as ``model_name``.

    Raises:
        UserError: If there is no such model.
    """
    configure_environment()
    from freqfilter.tracking.history import history as run_history

    return run_history(_tracking(tracking))


def load(
    name: str | None = None, *, version: int | str | None = None, alias: str | None = None, run_id: str | None = None
) -> Filter:
    """Load a filter: a registered version, the version of an alias, or the model of a run.

    Args:
        name: Name of the registered model, such as ``frequency-filter``.
        version: Version number; None: the newest, unless an alias is given.
        alias: Alias, such as ``champion``.
        run_id: Id of a run, instead of a name.

    Returns:
        A filter with ``predict(x)``, ``extract(signal, frequency_hz)``, ``stream(frequency_hz)``, its ``module`` and
        its ``facts``.

    Raises:
        UserError: If there is no such model, its files are not a filter of this package, or they differ from those
            that were registered.
    """
    configure_environment()
    from freqfilter.tracking import aliases, loading

    if run_id is not None and name is None:
        return loading.load_run(run_id)
    if name is None or run_id is not None or (version is not None and alias is not None):
        raise UserError("load: give a name, with a version or an alias, or a run_id")
    if version is not None:
        return loading.load_uri(f"models:/{name}/{version}")
    chosen = aliases.candidate_version(name, None) if alias is None else aliases.require_alias(name, alias)
    return loading.load_uri(chosen.uri)


def _tracking(given: Mapping[str, Any]) -> TrackingParams:
    """The parameters of section ``tracking``; others belong to the model that is loaded."""
    known = TrackingParams.model_fields
    for name in given:
        if name not in known:
            raise UserError(f"{name}: not a parameter of this function; it takes {', '.join(known)}")
    params = resolve(given)
    require_online(params)
    return params.tracking


@contextmanager
def _job(progress: bool) -> Iterator[None]:
    """Context manager that prints progress, and that signals interrupt at safe points.

    Jobs are imported inside it, since MLflow reads its environment when it is imported.
    """
    in_main_thread = threading.current_thread() is threading.main_thread()  # the only one that can handle signals
    handled = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if in_main_thread else ()
    before = {number: signal.getsignal(number) for number in handled}
    configure_environment()
    try:
        with progress_output(progress), tolerant_of_warnings(), shutdown.installed() if handled else nullcontext():
            yield
    except Interrupted as interrupted:
        remedy = f"; resume with: {interrupted.remedy}" if interrupted.remedy else ""
        raise KeyboardInterrupt(f"stopped by {interrupted}{remedy}") from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
