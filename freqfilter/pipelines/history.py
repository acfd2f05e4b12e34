"""History of a registered model: registrations, decisions and rollbacks."""

from __future__ import annotations

import time

import pandas as pd

from freqfilter.config import TrackingParams
from freqfilter.tracking.aliases import all_versions
from freqfilter.tracking.client import open_store
from freqfilter.tracking.queries import stored_runs

COLUMNS = ("time", "event", "version", "champion_before", "champion_after", "who", "why", "evidence")


def history(tracking: TrackingParams) -> pd.DataFrame:
    """Return the registrations, decisions and rollbacks of a model, oldest first.

    Args:
        tracking: Tracking parameters with the name of the model.

    Returns:
        A row for each, columns ``COLUMNS``: time in UTC, event, version, champion before and after, user, reason, and
        ID of the run with the evidence.

    Raises:
        UserError: If there is no such model.
    """
    open_store()
    name, rows = tracking.model_name, list[tuple[str | int, ...]]()
    users = {run.run_id: run.tags.get("mlflow.user", "") for run in stored_runs(having="tags.workflow = 'train'")}
    for version in all_versions(name):
        copied = version.tags.get("copied_from")
        why = f"copied from {copied}" if copied else f"recipe {version.tags.get('recipe', 'unknown')}"
        who = users.get(version.run_id, "")
        rows.append((version.registered_ms, "registered", version.version, "", "", who, why, version.run_id))
    for run in stored_runs(having="tags.decision != ''"):
        tags = run.tags
        if tags.get("model_name") != name:
            continue
        moved = tags["decision"] in ("PROMOTED", "ROLLED BACK")
        before, carried_out = tags.get("champion_before", ""), tags.get("carried_out") == "true"
        after = tags["version"] if moved and carried_out else before
        event = tags["decision"] if carried_out or not moved else f"{tags['decision']}, not carried out"
        who, why = tags.get("mlflow.user", ""), tags.get("reason", "")
        rows.append((run.started_ms, event, int(tags["version"]), before, after, who, why, run.run_id))
    table = pd.DataFrame(rows, columns=list(COLUMNS)).sort_values("time", kind="stable", ignore_index=True)
    return table.assign(time=[_format_time(stamp) for stamp in table["time"]])


def _format_time(milliseconds: int) -> str:
    """Format a time stamp of MLflow in UTC.

    >>> _format_time(0)
    '1970-01-01 00:00:00'
    """
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(milliseconds / 1000))
