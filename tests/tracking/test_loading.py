"""Files that differ from the registered ones are refused, and nothing is unpickled."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch
from mlflow import MlflowClient

import freqfilter
from freqfilter.config import resolve
from freqfilter.errors import UserError
from freqfilter.tracking import registry
from freqfilter.tracking.lifecycle import Job, open_run
from freqfilter.tracking.loading import MODEL_DIGEST
from freqfilter.tracking.owner import RunLock
from tests.conftest import SMALL, network
from tests.malicious import Malicious


@pytest.fixture
def version(folder: Path) -> int:
    tracking = resolve({"experiment": "e", "run_dir": str(folder / "runs")}).tracking
    with open_run(tracking, Job("test", "a name")) as run:
        golden = np.zeros((2, 20, 5), dtype=np.float32)
        trained = registry.ModelPackage(network(n_components=4).eval(), resolve(SMALL), golden=golden, step=1)
        model_id = registry.log_and_check_model(run.run_id, trained, folder=run.folder)
        return registry.register(model_id, "frequency-filter", tags={}, description="words")


def files(version: int) -> Path:
    """Folder in which the store keeps a version's files."""
    source = MlflowClient().get_model_version("frequency-filter", str(version)).source
    return Path(
        MlflowClient().get_logged_model(source.removeprefix("models:/")).artifact_location.removeprefix("file://")
    )


def uris(version: int) -> list[str]:
    MlflowClient().set_registered_model_alias("frequency-filter", "best", str(version))
    source = MlflowClient().get_model_version("frequency-filter", str(version)).source
    return [
        f"models:/frequency-filter/{version}",
        "models:/frequency-filter/latest",
        "models:/frequency-filter@best",
        source,
    ]


def change_code(where: Path, touched: Path) -> None:
    code = where / "artifacts" / "network.py"
    code.write_text(code.read_text() + f"\nimport pathlib; pathlib.Path({str(touched)!r}).touch()\n")


def pickle_weights(where: Path, touched: Path) -> None:
    torch.save({"output.weight": Malicious(touched)}, where / "artifacts" / "weights.pt")


def flip_a_weight(where: Path, touched: Path) -> None:
    weights = where / "artifacts" / "weights.pt"
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)


def add_a_file(where: Path, touched: Path) -> None:
    (where / "code").mkdir()
    (where / "code" / "torch.py").write_text(f"import pathlib; pathlib.Path({str(touched)!r}).touch()")


def swap_the_model(where: Path, touched: Path) -> None:
    (where / "python_model.pkl").write_bytes(pickle.dumps(Malicious(touched)))
    stated = where / "MLmodel"
    stated.write_text(stated.read_text().replace("model_code_path", "python_model: python_model.pkl\n    old_path"))


@pytest.mark.parametrize("change", [change_code, pickle_weights, flip_a_weight, add_a_file, swap_the_model])
def test_changed_files_are_refused_before_they_are_opened(
    change: Callable[[Path, Path], None], version: int, folder: Path
) -> None:
    touched = folder / "touched"
    for uri in uris(version):
        assert freqfilter.tracking.loading.load_uri(uri).facts["window_length"] == 20
    change(files(version), touched)
    for uri in uris(version):
        with pytest.raises(UserError, match="checksum mismatch") as refused:
            freqfilter.tracking.loading.load_uri(uri)
        assert "\n" not in str(refused.value)
    assert not touched.exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [(pickle_weights, "its files are corrupt .*UnpicklingError"), (swap_the_model, "using pickle is disallowed")],
)
def test_nothing_is_unpickled_even_without_a_recorded_digest(
    change: Callable[[Path, Path], None], message: str, version: int, folder: Path
) -> None:
    touched, where = folder / "touched", files(version)
    change(where, touched)
    with pytest.raises(UserError, match=message):
        freqfilter.tracking.loading.load_uri(str(where))
    assert not touched.exists()
    assert os.environ.get("MLFLOW_ALLOW_PICKLE_DESERIALIZATION") is None


def test_version_and_logged_model_have_the_digest(version: int) -> None:
    registered = MlflowClient().get_model_version("frequency-filter", str(version))
    logged = MlflowClient().get_logged_model(registered.source.removeprefix("models:/"))
    assert len(registered.tags[MODEL_DIGEST]) == 64
    assert logged.tags[MODEL_DIGEST] == registered.tags[MODEL_DIGEST]
    mlflow.pyfunc.load_model(registered.source)  # MLflow does not change the files
    assert freqfilter.load("frequency-filter", version=version)


def test_logging_and_registering_again_returns_the_same_model_and_version(version: int, folder: Path) -> None:
    """A resumed run does so if it was killed after registration."""
    model_id = MlflowClient().get_model_version("frequency-filter", str(version)).source.removeprefix("models:/")
    run_id = MlflowClient().get_logged_model(model_id).source_run_id
    golden = np.zeros((2, 20, 5), dtype=np.float32)
    module = freqfilter.load("frequency-filter", version=version).module
    tracking = resolve({"experiment": "e", "run_dir": str(folder / "runs")}).tracking
    with open_run(tracking, Job("test", "a name"), lock=RunLock(Path(tracking.run_dir) / run_id)) as run:
        trained = registry.ModelPackage(module, resolve(SMALL), golden=golden, step=1)
        assert registry.log_and_check_model(run.run_id, trained, folder=run.folder) == model_id
        assert registry.register(model_id, "frequency-filter", tags={}, description="words") == version
        assert registry.register(model_id, "another-name", tags={}, description="words") == 1
