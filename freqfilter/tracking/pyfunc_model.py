"""The code of a registered model as MLflow loads it; it needs PyTorch and MLflow alone.

MLflow runs this file from the version's folder. The network's source lies beside it and is imported under a name
derived from its digest, so that versions with different code can be loaded in one process.
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
    """A filter as a ``pyfunc`` model.

    Inputs are (n_windows, n_samples, 1 + n_components): the mixture, then a one-hot selector, as an array or tensor of
    any real type, or as nested lists. Estimates are (n_windows, n_samples, 1), float32. A filter of recordings takes
    their mixtures, (n_recordings, n_samples), and estimates all components, (n_recordings, n_samples, n_components).

    Attributes:
        facts: Schema, network arguments, signal model and parameters of the training run.
        module: The network, in evaluation mode.
    """

    def load_context(self, context):
        """Build the network from its source, its arguments and its weights; nothing is unpickled."""
        files = {name: Path(path) for name, path in context.artifacts.items()}
        self.facts = json.loads(files["facts"].read_text(encoding="utf-8"))
        self._network = _import_source(files["network"])
        self.module = self._network.create_network(**self.facts["network"])
        self.module.load_state_dict(torch.load(files["weights"], map_location="cpu", weights_only=True))
        self.module.eval()

    def predict(self, context, model_input: np.ndarray, params=None):  # noqa: ARG002 (MLflow's names)
        """Compute estimates of windows or recordings."""
        inputs, network = _as_array(model_input), self.facts["network"]
        features, expected = (1 + network["n_components"],), f"(n_windows, n_samples, {1 + network['n_components']})"
        if not network["selector"]:
            features, expected = (), "(n_recordings, n_samples)"
        if inputs.ndim != 2 + len(features) or inputs.shape[2:] != features or inputs.shape[1] == 0:
            _refuse(f"inputs have shape {inputs.shape}, not {expected}")
        if not np.isfinite(inputs).all():
            _refuse("inputs contain NaN or Inf")
        device = next(iter(self.module.state_dict().values())).device
        return self._network.estimate(self.module, torch.from_numpy(inputs).to(device)).cpu().numpy()


def _as_array(model_input):
    """Copy the input to a float32 array; values beyond its range become Inf."""
    if isinstance(model_input, torch.Tensor):
        model_input = model_input.detach().cpu()
    try:
        array = np.asarray(model_input)
    except ValueError:
        _refuse("inputs are not an array: their lists differ in length")
    if array.dtype.kind not in "fiub":
        _refuse(f"inputs are not real numbers: their type is {array.dtype}")
    with np.errstate(over="ignore"):
        return array.astype(np.float32)


def _refuse(reason):
    raise mlflow.exceptions.MlflowException.invalid_parameter_value(reason)


def _import_source(path):
    name = f"frequency_filter_{hashlib.sha256(path.read_bytes()).hexdigest()[:16]}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        sys.modules[name] = module
    return sys.modules[name]


mlflow.models.set_model(FrequencyFilterModel())
