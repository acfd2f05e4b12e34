from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import mlflow
import numpy as np
import PIL.Image
import pytest
import torch
from matplotlib.figure import Figure
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from numpy.typing import NDArray

import freqfilter
from freqfilter.config import TrackingParams, resolve, restore
from freqfilter.data.windows import noise_inputs
from freqfilter.errors import UserError
from freqfilter.models.export import exported_program, onnx_model
from freqfilter.models.network import FrequencyFilterLSTM, estimate
from freqfilter.plots.style import label_axes, new_figure
from freqfilter.process import Interrupted
from freqfilter.tracking import configure_environment, loading, registry
from freqfilter.tracking.client import open_store
from freqfilter.tracking.lifecycle import Job, open_run
from freqfilter.tracking.outbox import UndeliveredError
from freqfilter.tracking.run import TensorBoard
from tests.conftest import SMALL, all_runs, fresh_state, network

DRAWS = {name: getattr(Figure, name) for name in ("savefig", "get_layout_engine")}  # before fixtures replace them


def tracking_params(folder: Path, **overrides: str) -> TrackingParams:
    return resolve({"experiment": "e", "run_dir": str(folder / "runs")} | overrides).tracking


@pytest.mark.parametrize(
    ("error", "status"),
    [(None, "FINISHED"), (ValueError("broken"), "FAILED"), (UserError("bad"), "FAILED"), (Interrupted(15), "KILLED")],
)
def test_a_run_ends_with_the_status_of_its_block(error: BaseException | None, status: str, folder: Path) -> None:
    ended = None
    try:
        with open_run(tracking_params(folder), Job("test", "a name")) as run:
            run.log_metrics({"m": 1}, step=1)
            if error:
                raise error
    except BaseException as raised:
        ended = raised
    assert ended is error
    stored = MlflowClient().get_run(run.run_id)
    assert stored.info.status == status
    assert stored.data.metrics == {"m": 1}
    assert run.folder.exists() == (status != "FINISHED")
    assert ("ended_because" in stored.data.tags) == (status != "FINISHED")
    assert {file.path for file in MlflowClient().list_artifacts(run.run_id)} <= {"source"}


def test_a_run_that_cannot_be_opened_leaves_no_run(folder: Path) -> None:
    client = MlflowClient()
    client.delete_experiment(client.create_experiment("e"))
    with (
        pytest.raises(UserError, match="experiment=e: the experiment is deleted; restore it"),
        open_run(tracking_params(folder), Job("test", "a name")),
    ):
        pass
    assert client.search_runs(["0"]) == []


def test_an_undelivered_run_is_failed(folder: Path) -> None:
    with (
        pytest.raises(UndeliveredError),
        open_run(tracking_params(folder), Job("test", "a name")),
    ):
        raise UndeliveredError("the store is unreachable")
    assert all_runs()[0].info.status == "FAILED"


def test_a_child_that_cannot_be_opened_does_not_affect_its_parent(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object, **__: object) -> None:
        raise MlflowException("the database is locked")

    with open_run(tracking_params(folder), Job("test", "parent")) as parent:
        with monkeypatch.context() as patch:
            patch.setattr(MlflowClient, "create_run", refused)
            with (
                pytest.raises(UserError, match="locked"),
                open_run(tracking_params(folder), Job("test", "child"), parent=parent),
            ):
                pass
        with open_run(tracking_params(folder), Job("test", "second child"), parent=parent) as child:
            pass
        parent.log_metrics({"m": 1}, step=1)
    client = MlflowClient()
    runs = client.search_runs([client.get_run(parent.run_id).info.experiment_id])
    assert {run.info.run_id: run.info.status for run in runs} == {parent.run_id: "FINISHED", child.run_id: "FINISHED"}
    assert client.get_run(child.run_id).data.tags["mlflow.parentRunId"] == parent.run_id
    assert client.get_run(parent.run_id).data.metrics == {"m": 1}


def test_a_failure_to_close_tensorboard_loses_no_metric(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(TensorBoard, "close", full)
    with (
        pytest.raises(OSError, match="no space left"),
        open_run(tracking_params(folder, tensorboard_dir=str(folder / "board")), Job("test", "n")) as run,
    ):
        run.log_metrics({"m": 1}, step=1)
    assert MlflowClient().get_run(run.run_id).data.metrics == {"m": 1}


def test_a_parameter_that_the_launcher_has_logged_is_not_logged_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    launched = MlflowClient().create_run(mlflow.set_experiment("e").experiment_id)
    MlflowClient().log_param(launched.info.run_id, "learning_rate", "1e-3")
    monkeypatch.setenv("MLFLOW_RUN_ID", launched.info.run_id)
    with open_run(tracking_params(folder), Job("test", "a name")) as run:
        run.log_params({"learning_rate": "0.001", "epochs": "3"})
    assert MlflowClient().get_run(run.run_id).data.params == {"learning_rate": "1e-3", "epochs": "3"}


def test_artifacts_keep_their_names(folder: Path) -> None:
    with open_run(tracking_params(folder), Job("test", "a name")) as run:
        run.log_figure(lambda: Figure(figsize=(2, 1)), "visualizations/a.png")
        run.log_arrays("models/b.npz", numbers=[1, 2])
        run.log_bytes(b"text", "c.txt")
    download = Path(mlflow.artifacts.download_artifacts(run_id=run.run_id, dst_path=str(folder / "got")))
    assert (download / "c.txt").read_bytes() == b"text"
    assert np.load(download / "models/b.npz")["numbers"].tolist() == [1, 2]
    assert (download / "visualizations/a.png").read_bytes().startswith(b"\x89PNG")


def test_applying_the_layout_once_draws_what_matplotlib_draws(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, method in DRAWS.items():
        monkeypatch.setattr(Figure, name, method)

    def figure() -> Figure:
        made = new_figure(5, 3)
        for axes in made.subplots(1, 2):
            axes.plot([0, 1], [1e5, 3e5])
            label_axes(axes, xlabel="time", ylabel="a label that takes room", title="title")
        return made

    def ink(picture: Path | io.BytesIO) -> NDArray[np.bool_]:
        return np.asarray(PIL.Image.open(picture).convert("L")) < 200

    def edges(inked: NDArray[np.bool_]) -> NDArray[np.int64]:
        rows, columns = np.nonzero(inked)
        return np.array([rows.min(), rows.max(), columns.min(), columns.max()])

    with open_run(tracking_params(folder), Job("test", "a name")) as run:
        run.log_figure(figure, "a.png", key="a")
    got = Path(mlflow.artifacts.download_artifacts(run_id=run.run_id, dst_path=str(folder / "got")))
    (small,) = got.glob("images/*.png")
    expected, expected_small = io.BytesIO(), io.BytesIO()
    figure().savefig(expected, dpi=120)
    figure().savefig(expected_small, dpi=60)
    assert np.array_equal(ink(got / "a.png"), ink(expected))
    assert ink(small).shape == ink(expected_small).shape
    assert np.abs(edges(ink(small)) - edges(ink(expected_small))).max() <= 4  # pixels


def trained(seed: int = 0) -> FrequencyFilterLSTM:
    torch.manual_seed(seed)
    return network(n_components=4).eval()


def registered(folder: Path, module: FrequencyFilterLSTM, **overrides: str) -> int:
    params = resolve(SMALL | overrides)
    with open_run(tracking_params(folder), Job("test", "a name")) as run:
        example = np.zeros((2, 20, 5), dtype=np.float32)
        package = registry.ModelPackage(module, params, golden=example, step=1)
        model_id = registry.log_and_check_model(run.run_id, package, folder=run.folder)
        return registry.register(model_id, "frequency-filter", tags={"a": "b"}, description="words")


@pytest.mark.parametrize("n_windows", [1, 3, 64])
@pytest.mark.parametrize("n_samples", [1, 50, 500])
def test_a_version_takes_any_number_of_windows_and_samples(
    n_windows: int, n_samples: int, folder: Path, shared_version: tuple[str, FrequencyFilterLSTM]
) -> None:
    uri, module = shared_version
    inputs = noise_inputs(np.random.default_rng(n_samples), n_windows, n_samples, n_components=4)
    found = mlflow.pyfunc.load_model(uri).predict(inputs)
    assert found.shape == (n_windows, n_samples, 1)
    np.testing.assert_allclose(found, estimate(module, torch.from_numpy(inputs)), rtol=0, atol=1e-6)


def test_pyfunc_takes_every_real_type_lists_and_tensors(shared_version: tuple[str, FrequencyFilterLSTM]) -> None:
    uri, module = shared_version
    model = mlflow.pyfunc.load_model(uri)
    assert model.metadata.signature.inputs.inputs[0].shape == (-1, -1, 5)
    inputs = (3 * noise_inputs(np.random.default_rng(0), 2, 9, n_components=4)).astype(int)
    inputs[..., 1:] //= 3
    expected = estimate(module, torch.from_numpy(inputs).float()).numpy()
    as_typed = [inputs.astype(kind) for kind in (np.float64, np.float32, np.float16, np.int64, np.int8)]
    for given in (*as_typed, inputs.tolist(), torch.from_numpy(inputs), torch.from_numpy(inputs).float()):
        found = model.predict(given)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (np.zeros((2, 9, 4)), r"shape \(2, 9, 4\); pass numbers \(n_windows, n_samples, 5\)"),
        (np.zeros((9, 5)), r"shape \(9, 5\)"),
        (np.zeros((1, 0, 5)), r"shape \(1, 0, 5\)"),
        (np.full((1, 2, 5), np.nan), "NaN, Inf"),
        (np.full((1, 2, 5), 1e300), "or numbers beyond float32"),
        (np.zeros((1, 2, 5), dtype=complex), "complex128"),
        ([[["a"] * 5]], "not real numbers"),
        ([[[0.0] * 5], [[0.0] * 4]], "differ in length"),
        ([[[10**30] * 5]], "not real numbers: their type is object"),
        (np.full((1, 2, 5), 7), "not one-hot and constant, in window 0"),
        (np.zeros((1, 2, 5)), "not one-hot and constant, in window 0"),
        (np.eye(5)[[[1, 1], [1, 2]]], "not one-hot and constant, in window 1"),
    ],
)
def test_pyfunc_refuses_invalid_inputs_in_one_line(
    wrong: object, reason: str, shared_version: tuple[str, FrequencyFilterLSTM]
) -> None:
    uri, _ = shared_version
    with pytest.raises(MlflowException, match=reason) as caught:
        mlflow.pyfunc.load_model(uri).predict(wrong)
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith("a one-hot selector of 4 values, constant over the window")


def test_mlflow_pytorch_loads_a_version_without_unpickling_for_any_number_of_windows_and_samples(
    shared_version: tuple[str, FrequencyFilterLSTM], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    uri, module = shared_version
    loaded = mlflow.pytorch.load_model(uri)
    for shape in ((1, 1), (3, 50), (2, 173)):
        inputs = torch.randn(*shape, 5)
        torch.testing.assert_close(loaded(inputs), module(inputs), rtol=0, atol=1e-6)


@pytest.fixture(scope="module")
def shared_version(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> tuple[str, FrequencyFilterLSTM]:
    """Files of a logged model, and its network."""
    folder, module = tmp_path_factory.mktemp("shared"), trained()
    (folder / "mlflow.db").write_bytes(empty_store.read_bytes())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'mlflow.db'}")
        experiment_id = mlflow.create_experiment("e", artifact_location=f"{folder}/artifacts")
        run_id = MlflowClient().create_run(experiment_id).info.run_id
        package = registry.ModelPackage(module, resolve(SMALL), golden=np.zeros((2, 20, 5), dtype=np.float32), step=1)
        model_id = registry.log_and_check_model(run_id, package, folder=folder)
        files = mlflow.artifacts.download_artifacts(f"models:/{model_id}", dst_path=str(folder / "files"))
    return files, module


def test_a_loaded_version_is_a_filter_with_its_facts(folder: Path) -> None:
    module = trained()
    version = registered(folder, module, frequencies_hz="[10, 20, 30, 40]")
    found = freqfilter.load("frequency-filter", version=version)
    assert found.facts["frequencies_hz"] == [10, 20, 30, 40]
    assert found.facts["window_length"] == 20
    assert found.facts["sample_rate_hz"] == pytest.approx(399 / 0.4)
    assert found.params.training.batch_size == 128
    inputs = noise_inputs(np.random.default_rng(0), 2, 9, n_components=4).astype(np.float64)
    expected = estimate(module, torch.from_numpy(inputs.astype(np.float32)))
    np.testing.assert_allclose(found.predict(inputs), expected, rtol=0, atol=1e-6)
    assert torch.equal(found.module(torch.ones(1, 2, 5)), module(torch.ones(1, 2, 5)))
    for bad in (np.zeros((2, 9, 4)), np.zeros((9, 5)), np.zeros((1, 0, 5))):
        with pytest.raises(UserError, match=r"pass \(windows, samples, 5\)"):
            found.predict(bad)
    with pytest.raises(UserError, match="NaN or Inf"):
        found.predict(np.full((1, 2, 5), np.nan))
    with pytest.raises(UserError, match="one-hot and constant, in window 1"):
        found.predict(np.eye(5)[[[1, 1], [1, 2]]])


def test_the_newest_version_is_loaded_by_default(folder: Path) -> None:
    assert [registered(folder, trained(seed)) for seed in (1, 2)] == [1, 2]
    newest = freqfilter.load("frequency-filter")
    assert torch.equal(newest.module.fc.weight, trained(2).fc.weight)


def test_missing_corrupt_and_foreign_models_are_refused(folder: Path) -> None:
    class Foreign(mlflow.pyfunc.PythonModel):
        def predict(self, context: object, model_input: np.ndarray) -> np.ndarray:
            return model_input

    registered(folder, trained())
    (folder / "foreign.py").write_text(
        "import mlflow, numpy as np\n"
        "class Foreign(mlflow.pyfunc.PythonModel):\n"
        "    def predict(self, context, model_input: np.ndarray): return model_input\n"
        "mlflow.models.set_model(Foreign())\n"
    )
    with mlflow.start_run():
        mlflow.pyfunc.log_model(
            name="m", python_model="foreign.py", registered_model_name="foreign", pip_requirements=[]
        )
        mlflow.pyfunc.log_model(name="m", python_model=Foreign(), registered_model_name="pickled", pip_requirements=[])
    corrupt = registered(folder, trained())
    source = MlflowClient().get_model_version_download_uri("frequency-filter", str(corrupt))
    files = Path(mlflow.artifacts.download_artifacts(source, dst_path=str(folder / "files")))
    (files / "artifacts" / "weights.pt").write_bytes(b"PK")
    newer = shutil.copytree(files, folder / "newer")
    (newer / "MLmodel").write_text((newer / "MLmodel").read_text().replace("schema: 2", "schema: 3"))
    for path, message in [(files, "its files are corrupt"), (newer, "schema 3 is newer than 2")]:
        with pytest.raises(UserError, match=message):
            loading.load_uri(str(path))
    for name, version, message in [
        ("frequency-filter", 99, r"version=99\) not found"),
        ("absent", 1, r"name=absent, version=1\) not found"),
        ("foreign", 1, "not a filter"),
        ("pickled", 1, "not a filter"),
        ("../up", 1, "Not a proper models:/ URI"),
    ]:
        with pytest.raises(UserError, match=message) as caught:
            freqfilter.load(name, version=version)
        assert "\n" not in str(caught.value)


WITHOUT_PACKAGE = """
import sys, numpy as np, mlflow, torch
try:
    import freqfilter.models.network
except ModuleNotFoundError:
    pass
else:
    sys.exit("freqfilter is installed")
model, program = mlflow.pyfunc.load_model(sys.argv[1]), mlflow.pytorch.load_model(sys.argv[1])
inputs = np.eye(5, dtype=np.float32)[np.ones((3, 7), dtype=int)]
np.save(sys.argv[2], [model.predict(inputs), program(torch.from_numpy(inputs)).detach().numpy()])
"""


@pytest.mark.slow
def test_a_version_loads_without_this_package_and_without_unpickling(
    folder: Path, shared_version: tuple[str, FrequencyFilterLSTM]
) -> None:
    uri, module = shared_version
    site_packages = next(p for p in sys.path if p.endswith("site-packages"))
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": site_packages,  # without its .pth files, and so without this package
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        "MLFLOW_TRACKING_URI": os.environ["MLFLOW_TRACKING_URI"],
    }
    done = subprocess.run(
        [sys.base_prefix + "/bin/python3", "-s", "-S", "-c", WITHOUT_PACKAGE, uri, str(folder / "out.npy")],
        env=environment, capture_output=True, text=True, cwd="/", check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "type hint" not in done.stderr
    expected = estimate(module, torch.eye(5)[torch.ones(3, 7, dtype=int)])
    for found in np.load(folder / "out.npy"):
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


def test_versions_with_different_code_work_in_one_process(
    folder: Path, shared_version: tuple[str, FrequencyFilterLSTM]
) -> None:
    """A network.py that doubles its output does not change another version's estimates, nor the reverse."""
    uri, module = shared_version
    changed = folder / "changed"
    shutil.copytree(uri, changed)
    network = changed / "artifacts" / "network.py"
    network.write_text(network.read_text().replace("return self.fc(", "return 2 * self.fc("))
    inputs = noise_inputs(np.random.default_rng(0), 2, 5, n_components=4)
    expected = estimate(module, torch.from_numpy(inputs)).numpy()
    first, second = mlflow.pyfunc.load_model(uri), mlflow.pyfunc.load_model(str(changed))
    np.testing.assert_allclose(second.predict(inputs), 2 * expected, atol=1e-6)
    np.testing.assert_allclose(first.predict(inputs), expected, atol=1e-6)
    np.testing.assert_allclose(mlflow.pyfunc.load_model(uri).predict(inputs), expected, atol=1e-6)


def test_a_program_is_exported_outside_the_runs_folder_which_is_removed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyTorch's compiler, which the export imports, keeps the path of the temporary folder for its caches."""
    seen = []

    def export(module: FrequencyFilterLSTM) -> object:
        seen.append(tempfile.gettempdir())
        return exported_program(module)

    monkeypatch.setattr(registry, "exported_program", export)
    freqfilter.train(**SMALL | {"epochs": "1"}, run_dir=str(folder / "runs"), progress=False)
    assert seen == [tempfile.gettempdir()]


def test_a_model_that_computes_other_estimates_when_loaded_is_not_registered(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "write_weights", lambda path, _: torch.save(trained(seed=5).state_dict(), path))
    with pytest.raises(RuntimeError, match="differ from the module's"):
        registered(folder, trained(seed=4))
    assert MlflowClient().search_model_versions() == []


@pytest.mark.parametrize(
    "path", sorted((Path(__file__).parents[1] / "data").glob("model_schema_*")), ids=lambda p: p.name
)
def test_a_model_of_every_schema_so_far_still_loads(path: Path, folder: Path) -> None:
    found = loading.load_uri(str(path))
    expected = np.load(path / "expected.npz")
    np.testing.assert_allclose(found.estimate(expected["inputs"]), expected["estimates"], rtol=0, atol=1e-6)
    assert found.params.signals.frequencies_hz == (1, 3, 5, 7)
    # It can be used, exported and trained further, although its layers had other names.
    signal = np.random.default_rng(0).normal(size=60)
    assert found.extract(signal, frequency_hz=5).shape == (60,)
    assert onnx_model(found.module, {}).graph.output[0].name == "estimates"
    state = fresh_state(found.params)
    state.start_from(found.module.state_dict())
    inputs = torch.from_numpy(expected["inputs"])
    torch.testing.assert_close(state.network.eval()(inputs), found.module(inputs))


def test_stored_parameters_of_older_versions_are_completed() -> None:
    stored = resolve(SMALL).model_dump(mode="json")
    for section, name in (("training", "threads"), ("data", "augment_noise_std"), ("data", "augment_gain_db")):
        del stored[section][name]
    stored["training"]["gone_since"] = 1
    assert restore(stored) == resolve(SMALL | {"threads": "0"})
    for corrupt in ({"training": {"epochs": "many"}}, {"training": 3}):
        with pytest.raises(UserError, match="stored parameters are corrupt"):
            restore(corrupt)  # type: ignore[arg-type]


def test_a_missing_store_is_created_and_an_existing_one_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/new/mlflow.db")
    assert open_store() == open_store() == f"sqlite:///{tmp_path}/new/mlflow.db"
    assert (tmp_path / "new" / "mlflow.db").exists()


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("http://127.0.0.1:9", "tracking store http://127.0.0.1:9 does not respond"),
        ("http://me:secret@127.0.0.1:9", "tracking store http://127.0.0.1:9 does not respond"),
        ("sqlite:////proc/nowhere/mlflow.db", "tracking store"),
        ("gopher://x", "tracking store"),
    ],
)
def test_an_unusable_store_is_reported_in_seconds(uri: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    started = time.monotonic()
    with pytest.raises(UserError, match=message) as caught:
        open_store()
    assert "secret" not in str(caught.value)
    assert time.monotonic() - started < 60


def test_a_file_that_is_not_a_database_is_not_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mlflow.db").write_text("my notes")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    with pytest.raises(UserError, match="not a database"):
        open_store()
    assert (tmp_path / "mlflow.db").read_text() == "my notes"


def test_a_home_folder_and_options_in_the_address_of_a_store(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///~/home.db")
    configure_environment()
    open_store()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/timed.db?timeout=60")
    open_store()
    assert {path.name for path in folder.iterdir()} >= {"home.db", "timed.db", "timed.db.lock"}
    assert not any(name in path.name for path in folder.iterdir() for name in ("~", "?"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/a?b/mlflow.db")
    with pytest.raises(UserError, match=r"the \? in this path begins options of SQLite; use a folder without it"):
        open_store()
    assert not (folder / "a").exists()


def test_a_user_without_a_home_folder_gets_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def home() -> Path:  # as of a user id without a name
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setenv("HOME", "")
    monkeypatch.setattr(Path, "home", home)
    configure_environment()
    assert os.environ["HOME"] == "/"


@pytest.mark.skipif(os.getuid() != 0, reason="needs another user")
def test_a_store_of_another_user_is_read(empty_store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a user id that has no name."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        store = Path(folder) / "mlflow.db"
        shutil.copy(empty_store, store)
        (Path(folder) / "mlflow.db.lock").touch(mode=0o600)
        Path(folder).chmod(0o755)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{store}")
        done = _history_of_another_user(folder)
    refusal = "Registered Model with name=frequency-filter not found"
    assert (done.returncode, refusal in done.stderr) == (2, True), done.stderr


def _history_of_another_user(folder: str) -> subprocess.CompletedProcess[str]:
    """Of a user who writes with no rights of root, but reads with them: the installation may be in a private folder."""
    rights = "-all,+dac_read_search"
    user = ["setpriv", "--reuid=12345", "--regid=12345", "--clear-groups", f"--bounding-set={rights}"]
    user += [f"--inh-caps={rights}", f"--ambient-caps={rights}", "--securebits=+no_setuid_fixup"]  # the bit: access(2)
    named = {"LOGNAME", "USER", "LNAME", "USERNAME"}
    return subprocess.run(
        [*user, sys.executable, "-m", "freqfilter", "history"],
        cwd=folder,
        env={name: value for name, value in os.environ.items() if name not in named},
        capture_output=True,
        text=True,
        check=False,
    )
