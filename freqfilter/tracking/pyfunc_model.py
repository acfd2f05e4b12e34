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
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE


class FrequencyFilterModel(mlflow.pyfunc.PythonModel):
    """A filter as a ``pyfunc`` model.

    Inputs are (n_windows, n_samples, 1 + n_components): the mixture, then a one-hot selector, constant over the window,
    as an array or tensor of any real type, or as nested lists. Estimates are (n_windows, n_samples, 1), float32. A
    filter of recordings takes their mixtures, (n_recordings, n_samples), and estimates all components, (n_recordings,
    n_samples, n_components).

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
        network = self.facts["network"]
        try:
            inputs = _as_array(model_input)
            _check(inputs, network)
        except ValueError as error:
            raise InvalidInput(f"inputs {error}; pass {_expected(network)}") from error
        device = next(iter(self.module.state_dict().values())).device
        return self._network.estimate(self.module, torch.from_numpy(inputs).to(device)).cpu().numpy()


class InvalidInput(mlflow.exceptions.MlflowException):
    """Inputs that a model refuses: status 400 of MLflow's scoring server, with the reason.

    The message cannot be changed: the server would write the whole request before it.
    """

    def __init__(self, message):
        super().__init__(message, error_code=INVALID_PARAMETER_VALUE)

    @property
    def message(self):
        """The reason."""
        return self.args[0] if self.args else ""

    @message.setter
    def message(self, message):
        pass


def _as_array(model_input):
    """Copy the input to a float32 array; values beyond its range become Inf."""
    if isinstance(model_input, torch.Tensor):
        model_input = model_input.detach().cpu()
    try:
        array = np.asarray(model_input)
    except ValueError:
        raise ValueError("are not an array: their lists differ in length or depth") from None
    if array.dtype.kind not in "fiub":
        raise ValueError(f"are not real numbers: their type is {array.dtype}")
    with np.errstate(over="ignore"):
        return array.astype(np.float32)


def _expected(network):
    if not network["selector"]:
        return "the mixtures of recordings as numbers (n_recordings, n_samples)"
    n_components = network["n_components"]
    return (
        f"numbers (n_windows, n_samples, {1 + n_components}): the mixture, then a one-hot selector of {n_components} "
        "values, constant over the window"
    )


def _check(inputs, network):
    features = (1 + network["n_components"],) if network["selector"] else ()
    if inputs.ndim != 2 + len(features) or inputs.shape[2:] != features or inputs.shape[1] == 0:
        raise ValueError(f"have shape {inputs.shape}")
    if not np.isfinite(inputs).all():
        raise ValueError("contain NaN, Inf or numbers beyond float32")
    if not network["selector"]:
        return
    selector = inputs[:, :1, 1:]
    one_hot = ((selector == 0) | (selector == 1)).all(axis=(1, 2)) & (selector.sum(axis=(1, 2)) == 1)
    valid = one_hot & (inputs[:, :, 1:] == selector).all(axis=(1, 2))
    if not valid.all():
        raise ValueError(f"have a selector that is not one-hot and constant, in window {np.argmin(valid)}")


def _import_source(path):
    name = f"frequency_filter_{hashlib.sha256(path.read_bytes()).hexdigest()[:16]}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        sys.modules[name] = module
    return sys.modules[name]


mlflow.models.set_model(FrequencyFilterModel())
