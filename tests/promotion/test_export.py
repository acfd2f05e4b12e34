"""A version as an ONNX file: checked, kept beside the version, and refused in one line where it cannot be had."""

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
from freqfilter.models import export
from tests.conftest import Typed, call
from tests.promotion.making import NAME, version

pytestmark = pytest.mark.slow


def test_the_file_answers_as_the_version_does_and_is_kept_beside_it(registry: Path, typed: Typed) -> None:
    before = freqfilter.load(NAME, version=1)
    assert typed("export", "--version", "1", "--output", "written/filter.onnx") == (0, "")
    content = Path("written/filter.onnx").read_bytes()
    session = InferenceSession(content)
    inputs = np.random.default_rng(3).normal(size=(5, 40, before.module.recurrent.input_size)).astype(np.float32)
    np.testing.assert_allclose(session.run(None, {"inputs": inputs})[0], before.predict(inputs), rtol=0, atol=1e-5)
    noted = version(1).tags
    about = session.get_modelmeta().custom_metadata_map
    assert json.loads(about["frequencies_hz"]) == before.facts["frequencies_hz"]
    assert about["model_sha256"] == noted["model_sha256"]
    assert noted["onnx_sha256"] == hashlib.sha256(content).hexdigest()
    assert Path(mlflow.artifacts.download_artifacts(noted["onnx"], dst_path="kept")).read_bytes() == content
    # The version's own files are what they were.
    assert freqfilter.load(NAME, version=1).golden is not None
    # Again, and the newest.
    assert typed("export")[0] == 0
    assert "onnx" in version(2).tags
    assert typed("export", "--version", "1")[0] == 0
    assert Path("filter.onnx").read_bytes() == content


def test_what_cannot_be_exported_is_said_in_a_line_and_leaves_nothing(
    registry: Path, typed: Typed, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("taken").mkdir()
    for words, part in (
        (("--version", "99"), "99"),
        (("--model_name", "absent"), "absent"),
        (("--output", "taken"), "taken: cannot be written"),
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


def test_a_file_that_answers_otherwise_is_not_written(
    registry: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(export.GATES, "LSTM", (0, 1, 2, 3))
    with pytest.raises(RuntimeError, match="estimates of the ONNX file differ by"):
        call(["export"], capsys, monkeypatch)
    assert not Path("filter.onnx").exists()
    assert "onnx" not in version(2).tags
