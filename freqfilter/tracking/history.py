"""History of a registered model: registrations, decisions and rollbacks."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from mlflow.utils.mlflow_tags import MLFLOW_USER

from freqfilter.config import TrackingParams
from freqfilter.tracking import aliases
from freqfilter.tracking.client import open_store
from freqfilter.tracking.queries import TRAININGS, RunRecord, stored_runs

REGISTERED_MS = "version_registered_ms"  # tag of a decision that tells a version apart from those of other models
HISTORY_COLUMNS = ["time", "event", "version", "champion_before", "champion_after", "who", "why", "evidence"]


def history(tracking: TrackingParams) -> pd.DataFrame:
    """Return the registrations, decisions and rollbacks of a registered model, oldest first.

    Args:
        tracking: Tracking parameters with the name of the model.

    Returns:
        A row for each: time in UTC, event, version, champion before and after, user, reason, and ID of the run with the
        evidence.

    Raises:
        UserError: If there is no such model.
    """
    open_store()
    rows, versions = list[tuple[str | int, ...]](), aliases.all_versions(tracking.model_name)
    users = {run.run_id: run.tags.get(MLFLOW_USER, "") for run in stored_runs(TRAININGS)}
    for version in versions:
        copied = version.tags.get("copied_from")
        why = f"copied from {copied}" if copied else f"recipe {version.tags.get('recipe', 'unknown')}"
        who = users.get(version.run_id, "")
        rows.append((version.registered_ms, "registered", version.version, "", "", who, why, version.run_id))
    for run in decisions(tracking.model_name, versions):
        tags = run.tags
        event, before, carried_out = tags["decision"], tags.get("champion_before", ""), "carried_out" in tags
        moves = event in ("PROMOTED", "ROLLED BACK")
        after = tags["version"] if moves and carried_out else before
        if moves and not carried_out:
            event = f"{event}, not carried out"
        who, why = tags.get(MLFLOW_USER, ""), tags.get("reason", "")
        rows.append((run.started_ms, event, int(tags["version"]), before, after, who, why, run.run_id))
    table = pd.DataFrame(rows, columns=HISTORY_COLUMNS).sort_values("time", kind="stable", ignore_index=True)
    return table.assign(time=pd.to_datetime(table["time"], unit="ms").dt.strftime("%Y-%m-%d %H:%M:%S"))


def decisions(model_name: str, versions: Sequence[aliases.RegisteredVersion]) -> list[RunRecord]:
    """Return the decisions on a model and its rollbacks, the newest first, also deleted runs.

    A run belongs to the model if it decided on one of the versions, under whatever name, or on a deleted one under the
    present name or a former name that no other model has now.

    Args:
        model_name: Name of the registered model.
        versions: Its versions.
    """
    having = "tags.decision != '' AND tags.model_name != '' AND tags.version != ''"
    found = list(stored_runs(having, deleted=True))
    registered = {(str(version.version), str(version.registered_ms)) for version in versions}
    linked = {version.tags.get(tag) for version in versions for tag in ("decision_run", "rollback_run")}
    others = {*aliases.registered_models()} - {model_name}
    own = {
        run.run_id: run.tags["model_name"]
        for run in found
        if (run.tags["version"], run.tags.get(REGISTERED_MS)) in registered
        or (run.run_id in linked and run.tags["model_name"] not in others)
    }
    names, created_ms = {model_name, *own.values()} - others, aliases.created_ms(model_name)

    def of_deleted_version(run: RunRecord) -> bool:
        # Another model may have had the name before.
        return run.tags["model_name"] in names and int(run.tags.get(REGISTERED_MS, run.started_ms)) >= created_ms

    return [run for run in found if run.run_id in own or of_deleted_version(run)]


def version_tags(version: aliases.RegisteredVersion) -> dict[str, str]:
    """Tags of a decision's run that ``decisions`` reads."""
    number, registered_ms = str(version.version), str(version.registered_ms)
    return {"model_name": version.model_name, "version": number, REGISTERED_MS: registered_ms}


def last_champion(model_name: str) -> str | None:
    """Return the version that became champion last, as text; None if none ever did."""
    found = decisions(model_name, aliases.all_versions(model_name))
    return next((run.tags["version"] for run in found if "carried_out" in run.tags), None)
