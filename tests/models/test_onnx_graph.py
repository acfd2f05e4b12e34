"""The ONNX model gives the network's estimates in ONNX Runtime."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from onnxruntime import InferenceSession

from freqfilter.models.export import onnx_model
from tests.models.test_network import KINDS, small


@pytest.mark.parametrize("kind", KINDS)
def test_the_file_gives_the_networks_estimates_for_any_number_of_windows_and_samples(kind: dict[str, object]) -> None:
    network = small(**kind)
    with torch.no_grad():
        for parameter in network.parameters():  # so that all gates differ
            parameter.normal_()
    session = InferenceSession(onnx_model(network, {"version": "3"}).SerializeToString())
    for shape in ((1, 1), (1, 300), (7, 20), (64, 2)):
        inputs = torch.randn(*shape, 4)
        (estimates,) = session.run(None, {"inputs": inputs.numpy()})
        with torch.inference_mode():
            np.testing.assert_allclose(estimates, network(inputs).numpy(), rtol=0, atol=1e-5)
    assert session.get_modelmeta().custom_metadata_map == {"version": "3"}
