"""The only part that imports mlflow: store, runs, provenance and registry."""

import os

# MLflow reads these when it is imported or asks its server. What a user has set stays as it is. Its own patience is
# four minutes for a server that is away and two for one that says nothing; ours is in the outbox, where nobody waits.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
