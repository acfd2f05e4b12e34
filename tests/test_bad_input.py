"""A bad case of each public parameter, file and store: one line on stderr, exit code 2, no files created."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from freqfilter.config.load import fields
from tests.conftest import ROOT, SMALL, Program, call, options

# Value, and expected part of the message beside the parameter's name.
PARAMETERS: dict[str, tuple[str, str]] = {
    "frequencies_hz": ("[1, 600]", "600 Hz is not below half of the sample rate"),
    "phases_deg": ("[1, 2]", "add phases_deg='[0.0, 0.0, 0.0, 0.0]'"),
    "amplitudes": ("0", "greater than 0"),
    "phase_distribution": ("random", "'fixed' or 'uniform'"),
    "amplitude_distribution": ("rayleigh", "add phase_distribution=uniform"),
    "memory_s": ("10", "add phase_distribution=uniform"),
    "recording_length": ("0", "greater than or equal to 1"),
    "chunk_length": ("0", "greater than or equal to 1"),
    "burn_in": ("-1", "greater than or equal to 0"),
    "recordings_per_epoch": ("0", "greater than or equal to 1"),
    "validation_recordings": ("0", "greater than or equal to 1"),
    "test_recordings": ("1e9", "less than or equal to 100000"),
    "loss_weighting": ("limit", "'inverse_sqrt_limit' or 'inverse_limit'"),
    "n_samples": ("1", "greater than or equal to 2"),
    "duration_s": ("-1", "greater than 0"),
    "noise_std": ("-0.1", "greater than or equal to 0"),
    "window_length": ("10001", "longer than n_samples=10000"),
    "noise": ("loud", "'fresh' or 'fixed'"),
    "split": ("random", "add noise=fixed"),
    "validation_fraction": ("1", "less than 1"),
    "split_seed": ("-1", "greater than or equal to 0"),
    "train_noise_seed": ("4294967296", "less than 4294967296"),
    "test_noise_seed": ("3", "share realization 3"),
    "holdout_noise_seed": ("0.5", "valid integer"),
    "validation_noise_seed": ("2", "share realization 2"),
    "validation_realizations": ("0", "greater than or equal to 1"),
    "validation_windows": ("0", "greater than or equal to 1"),
    "test_windows": ("0", "greater than or equal to 1"),
    "allow_shared_realizations": ("perhaps", "valid boolean"),
    "data_file": ("absent.npz", "No such file"),
    "augment_noise_std": ("0.1", "needs noise=fixed or a data_file"),
    "augment_gain_db": ("61", "less than or equal to 60"),
    "cell": ("rnn", "'lstm' or 'gru'"),
    "hidden_size": ("0", "greater than or equal to 1"),
    "num_layers": ("two", "valid integer"),
    "dropout": ("1", "less than 1"),
    "bidirectional": ("2", "valid boolean"),
    "chrono_t_max": ("0.5", "greater than or equal to 1"),
    "start_from": ("best", "give the id of a run, or models:/NAME/VERSION"),
    "seed": ("[1]", "valid integer"),
    "device": ("tpu", "'auto', 'cpu' or 'cuda'"),
    "precision": ("fp8", "'auto', 'fp32', 'bf16' or 'fp16'"),
    "deterministic": ("", "nothing"),
    "threads": ("-1", "greater than or equal to 0"),
    "epochs": ("1.5", "valid integer"),
    "windows_per_epoch": ("0", "greater than or equal to 1"),
    "batch_size": ("true", "valid integer"),
    "optimizer": ("sgd", "'muon' or 'adam'"),
    "learning_rate": ("nan", "finite number"),
    "weight_decay": ("-1e-5", "greater than or equal to 0"),
    "loss": ("l2", "'mse', 'mae', 'huber' or 'snr'"),
    "targets": ("noisy", "'posterior_mean' or 'clean'"),
    "gradient_clip_norm": ("inf", "finite number"),
    "scheduler": ("step", "'cosine' or 'plateau'"),
    "warmup_fraction": ("1", "less than 1"),
    "scheduler_factor": ("2", "less than or equal to 1"),
    "scheduler_patience": ("-1", "greater than or equal to 0"),
    "early_stopping_patience": ("1e999", "valid integer"),
    "validate_every": ("0", "greater than or equal to 1"),
    "checkpoint_every": ("ten", "valid integer"),
    "checkpoint_minutes": ("-1", "greater than or equal to 0"),
    "checkpoints_kept": ("0", "greater than or equal to 1"),
    "holdout_every": ("-1", "greater than or equal to 0"),
    "holdout_windows": ("0", "greater than or equal to 1"),
    "tracking": ("later", "'online' or 'offline'"),
    "experiment": ("", "nothing"),
    "validation_average": ("epochs", "'samples' or 'batches'"),
    "register": ("perhaps", "valid boolean"),
    "model_name": ("a/b", "without /, :, @, ?, #"),
    "system_metrics_interval": ("-1", "greater than or equal to 0"),
    "run_dir": ("~", "nothing"),
    "tensorboard_dir": ("/proc/x", "cannot create this folder"),
}


def assert_refused(code: object, line: str, *parts: str) -> None:
    assert code == 2
    assert line.startswith("freqfilter: ")
    assert line.count("\n") == 1
    assert line.endswith("\n")
    for part in parts:
        assert part in line
    assert "Traceback" not in line


def test_every_parameter_has_a_bad_case() -> None:
    assert set(PARAMETERS) == {name for _, name, _ in fields()}


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_bad_value_is_refused_before_anything_is_created(
    name: str, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    value, part = PARAMETERS[name]
    assert_refused(*call(["train", f"--{name}", value], capsys, monkeypatch), name, part)
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["train", "--learnin_rate", "1"], ["learnin_rate", "learning_rate"]),
        (["train", "--learning-rate", "1"], ["learning-rate", "learning_rate"]),
        (["train", "--zzz", "1"], ["zzz"]),
        (["train", "0.1"], ["0.1"]),
        (["train", "--epochs"], ["epochs"]),
        (["tran"], ["tran"]),
        (["train", "--recipe", "orignal"], ["recipe=orignal", "original"]),
        (["prepare", "--noise", "fresh"], ["noise=fresh", "fixed"]),
        (["prepare", "--data_file", "x.npz"], ["data_file", "from a signal model"]),
        (["prepare", "--output", "/proc/x/y.npz"], ["/proc/x", "cannot create this folder"]),
        (["evaluate"], ["model_name=frequency-filter", "not found"]),
        (["evaluate", "--version", "7"], ["version=7", "not found"]),
        (["evaluate", "--version", "../7"], ["../7"]),
        (["evaluate", "--run_id", "absent"], ["run_id=absent"]),
        (["evaluate", "--run_id", "x", "--version", "1"], ["give one"]),
        (["evaluate", "--realizations", "-1"], ["realizations", "-1"]),
        (["promote", "--max_size_mb", "-1"], ["max_size_mb", "-1"]),
        (["train", "--data_file", "x.npz", "--noise", "fresh"], ["noise=fresh", "data_file"]),
        (["train", "--data_file", "x.npz", "--holdout_every", "2"], ["holdout_every=2", "data_file"]),
        (["train", "--data_file", "x.npz", "--targets", "posterior_mean"], ["targets=posterior_mean", "noise=fixed"]),
        (["train", "--augment_gain_db", "3"], ["augment_gain_db=3", "each window has new noise already"]),
        (
            ["original", "--noise", "fresh", "--split", "independent", "--augment_noise_std", "0.1"],
            ["augment_noise_std=0.1"],
        ),
        (["original", "--augment_noise_std", "-0.1"], ["augment_noise_std=-0.1", "greater than or equal to 0"]),
        (["train", "--loss", "mae", "--targets", "posterior_mean"], ["loss=mae", "targets=posterior_mean"]),
        (["train", "--data_file", "~unknown_user/x.npz"], ["data_file=~unknown_user"]),
        (["train", "--frequencies_hz", str(list(range(1, 300)))], ["frequencies_hz", "at most 200"]),
        (["train", "--split", "file"], ["split=file", "data_file"]),
        (["train", "--start_from", "models:/nothing/1"], ["models:/nothing/1", "not found (looked in sqlite:///"]),
        (["train", "--start_from", "0" * 32], ["run_id=000", "not found"]),
        (["train", "--seeds", "3"], ["seeds=3", "[1, 2, 3]"]),
        (["train", "--seeds", "[]"], ["seeds=[]", "[1, 2, 3]"]),
        (["train", "--seeds", "[1, two]"], ["seed=two", "valid integer"]),
        (["train", "--seeds", "[1, 1.0]"], ["seed=1.0 and seed=1", "remove one"]),
        (["train", "--seeds", "[1, 2]", "--seed", "3"], ["seed and seeds"]),
        (["limit", "--noise_seed", "-1"], ["noise_seed", "-1"]),
        (["limit", "--data_file", "x.npz"], ["data_file", "no signal model"]),
        (["limit", "--window_length", "10001"], ["window_length=10001"]),
        (["ablate"], ["values"]),
        (["ablate", "--values", "hidden_size"], ["values=hidden_size", "mapping"]),
        (["ablate", "--values", "{hidden: 3}"], ["unknown parameter 'hidden'", "hidden_size"]),
        (["ablate", "--values", "{dropout: [0.1, 1]}"], ["dropout=1", "less than 1"]),
        (["ablate", "--values", "{dropout: 0}"], ["dropout=0 and base", "remove one"]),
    ],
)
def test_bad_commands_are_refused(
    arguments: list[str],
    parts: list[str],
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert_refused(*call(arguments, capsys, monkeypatch), *parts)
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"", "no sections"),
        (b"- a\n- b\n", "no sections"),
        (b"training: 3\n", "section 'training'"),
        (b"training:\n  epochs: [\n", "not valid YAML"),
        (b"training:\n  epochs: 1\n  epochs: 2\n", "'epochs' is duplicated"),
        (b"training:\n  epoch: 1\n", "did you mean 'epochs'"),
        (b"model:\n  epochs: 1\n", "belongs in section training"),
        (b"nonsense:\n  epochs: 1\n", "belongs in section training"),
        (b"a: &a [x, x]\nb: &b [*a, *a]\n", "aliases"),
        (b"training: {[a]: 1}\n", "not a name"),
        (b"\xff\xfe\x00", "not UTF-8"),
        (b"[" * 5000, "not valid YAML"),
        (b"training:\n  epochs: !!python/object/apply:os.system ['touch owned']\n", "epochs"),
        (b"training:\n  epochs: 1" + b"0" * 400 + b"\n", "epochs=1000"),
        (b"#" * 2_000_000, "larger than"),
    ],
)
def test_a_bad_recipe_file_is_refused(
    content: bytes, part: str, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "mine.yaml").write_bytes(content)
    assert_refused(*call(["train", "--recipe", "mine.yaml"], capsys, monkeypatch), part)
    assert [path.name for path in folder.iterdir()] == ["mine.yaml"]


def test_a_bad_data_file_is_refused_before_a_run_is_created(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    np.savez(folder / "mine.npz", X_train=np.zeros((2, 3, 5)))
    code, line = call(["train", "--data_file", "mine.npz"], capsys, monkeypatch)
    assert_refused(code, line, str(folder / "mine.npz"), "no array X_val among its arrays: X_train")
    assert [path.name for path in folder.iterdir()] == ["mine.npz"]


def test_pipes_and_devices_are_neither_read_nor_replaced(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(folder / "pipe")
    pipe = str(folder / "pipe")
    for words in (
        ["train", "--data_file", pipe],
        ["train", "--data_file", "/dev/zero"],
        ["prepare", "--noise", "fixed", "--output", pipe],
        ["compare", "--page", pipe],
        ["limit", "--picture", pipe],
    ):
        name, path = words[-2].removeprefix("--"), words[-1]
        assert_refused(*call(words, capsys, monkeypatch), f"{name}={path}: a pipe, device or folder")
    assert_refused(*call(["train", "--recipe", pipe], capsys, monkeypatch), f"recipe={pipe}: no such recipe or file")
    assert (folder / "pipe").is_fifo()
    assert [path.name for path in folder.iterdir()] == ["pipe"]


def test_a_place_that_cannot_be_written_is_refused_before_the_work(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for words in (
        ["prepare", "--noise", "fixed", "--output", "/proc/1/a"],
        ["compare", "--page", "/proc/1/a"],
        ["export", "--output", "/proc/1/a"],
        ["limit", "--picture", "/dev/null/a"],
    ):
        assert_refused(
            *call(words, capsys, monkeypatch), f"{words[-2].removeprefix('--')}={words[-1]}: ", "not a folder"
        )
    assert list(folder.iterdir()) == []


def test_experiment_is_refused_under_mlflow_run(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_RUN_ID", "0" * 32)
    assert_refused(*call(["train", "--experiment", "mine"], capsys, monkeypatch), "--experiment-name")


@pytest.mark.parametrize(
    ("uri", "parts"),
    [
        ("http://me:secret@127.0.0.1:9", ["tracking store http://127.0.0.1:9"]),
        ("sqlite:///notes.txt", ["tracking store sqlite:///notes.txt", "not a database"]),
    ],
)
@pytest.mark.slow
def test_a_bad_store_is_refused(uri: str, parts: list[str], freqfilter: Program, folder: Path) -> None:
    (folder / "notes.txt").write_text("notes")
    os.environ["MLFLOW_TRACKING_URI"] = uri
    done = freqfilter("train", *options(SMALL))
    assert_refused(done.returncode, done.stderr, *parts)
    assert "secret" not in done.stderr + done.stdout
    assert (folder / "notes.txt").read_text() == "notes"
    assert {path.name for path in folder.iterdir()} <= {"notes.txt", "notes.txt.lock"}


@pytest.mark.slow
def test_an_invalid_run_dir_is_refused_before_a_run_is_created(freqfilter: Program, folder: Path) -> None:
    (folder / "runs").write_text("a file where a folder should be")
    done = freqfilter("train", *options(SMALL))
    assert_refused(done.returncode, done.stderr, str(folder / "runs"))
    from mlflow import MlflowClient

    runs = MlflowClient().search_runs([e.experiment_id for e in MlflowClient().search_experiments()])
    assert runs == []


def test_a_window_length_other_than_the_data_files_is_refused(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["--n_samples", "400", "--duration_s", "0.4", "--window_length", "20", "--noise", " fixed "]
    assert call(["prepare", "--output", "mine.npz", *arguments], capsys, monkeypatch) == (0, "")
    assert_refused(*call(["train", "--data_file", "mine.npz"], capsys, monkeypatch), "add window_length=20")


def test_a_split_without_training_windows_is_refused(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["--frequencies_hz", "50", "--window_length", "400", "--n_samples", "400", "--duration_s", "1"]
    assert_refused(*call(["original", *arguments], capsys, monkeypatch), "validation_fraction")
    assert list(folder.iterdir()) == []


@pytest.mark.slow
def test_running_out_of_memory_is_reported(freqfilter: Program, folder: Path) -> None:
    command = "train --n_samples 1000000000 --noise fixed --threads 1"
    done = subprocess.run(
        ["bash", "-c", f"ulimit -v 6000000; {sys.executable} -m freqfilter {command}"],
        cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert_refused(done.returncode, done.stderr, "out of memory", "n_samples")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "part"),
    [(("  epochs: ", "  epochs: ["), "not valid YAML"), (("  dropout: ", "  # dropout: "), "dropout is missing")],
)
@pytest.mark.parametrize("argument", ["--help", "train"])
def test_an_invalid_params_yaml_is_reported_on_one_line(
    argument: str, change: tuple[str, str], part: str, tmp_path: Path
) -> None:
    for name in ("freqfilter", "recipes"):
        shutil.copytree(ROOT / name, tmp_path / name)
    text = (ROOT / "params.yaml").read_text()
    assert change[0] in text
    (tmp_path / "params.yaml").write_text(text.replace(*change))
    command = [sys.executable, "-m", "freqfilter", argument]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert_refused(done.returncode, done.stderr, "params.yaml", part)
