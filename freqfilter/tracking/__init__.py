"""The only part that imports mlflow: store, runs, provenance and registry."""

import os

# MLflow reads this when it is imported. What a user has set stays as it is.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
