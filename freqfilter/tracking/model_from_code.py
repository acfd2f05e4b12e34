"""The code of a registered model, as MLflow loads it. It needs torch and MLflow; this package need not be there.

MLflow runs this file from the version's own folder. The network's source lies beside it and is imported under a
name made of its digest, so that versions with different code live in one process.
"""

import hashlib
import importlib.util
import json
import sys
from pathlib import Path

import mlflow
import numpy as np
import torch


class FrequencyFilterModel(mlflow.pyfunc.PythonModel):
    """The filter behind ``mlflow.pyfunc``: float32 (N, T, 1 + components) in, (N, T, 1) out, any N and T.

    Attributes:
        facts: Schema, network arguments, signal model and parameters of the training run.
        module: The network, in evaluation mode.
    """

    def load_context(self, context):
        """Build the network from its source, its arguments and its weights; nothing is unpickled."""
        files = {name: Path(path) for name, path in context.artifacts.items()}
        self.facts = json.loads(files["facts"].read_text(encoding="utf-8"))
        self._network = _import_source(files["network"])
        self.module = self._network.FrequencyFilterLSTM(**self.facts["network"])
        self.module.load_state_dict(torch.load(files["weights"], map_location="cpu", weights_only=True))
        self.module.eval()

    def predict(self, context, model_input: np.ndarray, params=None):  # noqa: ARG002 (MLflow's names)
        """Estimates (N, T, 1) of inputs (N, T, 1 + components)."""
        if not np.isfinite(model_input).all():
            raise mlflow.exceptions.MlflowException.invalid_parameter_value("inputs have NaN or Inf")
        device = next(self.module.parameters()).device
        inputs = torch.as_tensor(model_input, dtype=torch.float32, device=device)
        return self._network.estimate(self.module, inputs).cpu().numpy()


def _import_source(path):
    name = f"frequency_filter_{hashlib.sha256(path.read_bytes()).hexdigest()[:16]}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        sys.modules[name] = module
    return sys.modules[name]


mlflow.models.set_model(FrequencyFilterModel())
