"""Export of a version as an ONNX file, which is checked and logged; errors are one line."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from pathlib import Path

import mlflow
import numpy as np
import pytest
from onnxruntime import InferenceSession

import freqfilter
from freqfilter.data.windows import noise_inputs
from freqfilter.models import export
from tests.conftest import Typed, call
from tests.promotion.making import NAME, version

pytestmark = pytest.mark.slow


def test_the_onnx_file_computes_the_versions_estimates_and_is_logged(registry: Path, typed: Typed) -> None:
    before = freqfilter.load(NAME, version=1)
    assert typed("export", "--version", "1", "--output", "written/filter.onnx") == (0, "")
    content = Path("written/filter.onnx").read_bytes()
    session = InferenceSession(content)
    inputs = noise_inputs(np.random.default_rng(3), 5, 40, n_components=before.module.n_components)
    np.testing.assert_allclose(session.run(None, {"inputs": inputs})[0], before.predict(inputs), rtol=0, atol=1e-5)
    tags = version(1).tags
    metadata = session.get_modelmeta().custom_metadata_map
    assert json.loads(metadata["frequencies_hz"]) == before.facts["frequencies_hz"]
    assert metadata["model_sha256"] == tags["model_sha256"]
    assert tags["onnx_sha256"] == hashlib.sha256(content).hexdigest()
    assert Path(mlflow.artifacts.download_artifacts(tags["onnx"], dst_path="kept")).read_bytes() == content
    # The version's files have not changed.
    assert freqfilter.load(NAME, version=1).golden is not None
    # The newest version, and the first again.
    assert typed("export")[0] == 0
    assert "onnx" in version(2).tags
    assert typed("export", "--version", "1")[0] == 0
    assert Path("filter.onnx").read_bytes() == content


def test_export_errors_are_one_line_and_leave_no_file(
    registry: Path, typed: Typed, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("taken").mkdir()
    for words, part in (
        (("--version", "99"), "99"),
        (("--model_name", "absent"), "absent"),
        (("--output", "taken"), "taken: a pipe, device or folder"),
    ):
        code, line = typed("export", *words)
        assert (code, line.count("\n")) == (2, 1)
        assert part in line
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else find_spec(name))
    code, line = typed("export")
    assert (code, line.count("\n")) == (2, 1)
    assert "onnxruntime not installed; pip install 'freqfilter[onnx]'" in line
    assert not Path("filter.onnx").exists()
    assert "onnx" not in version(2).tags


def test_an_onnx_file_with_other_estimates_is_not_written(
    registry: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(export.GATES, "LSTM", (0, 1, 2, 3))
    with pytest.raises(RuntimeError, match="estimates of the ONNX file differ by"):
        call(["export"], capsys, monkeypatch)
    assert not Path("filter.onnx").exists()
    assert "onnx" not in version(2).tags
