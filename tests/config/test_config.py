from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from freqfilter.config import Params, recipe_names, resolve
from freqfilter.config.load import defaults, fields
from freqfilter.errors import UserError

ROOT = Path(__file__).parents[2]
NAMES = [name for _, name, _ in fields()]


def test_every_line_of_params_yaml_is_a_field_in_its_section_and_the_reverse() -> None:
    written = yaml.safe_load((ROOT / "params.yaml").read_text())
    assert [(section, name) for section, values in written.items() for name in values] == [
        (section, name) for section, name, _ in fields()
    ]


def test_names_are_unique_across_sections() -> None:
    assert len(set(NAMES)) == len(NAMES)


def test_no_field_of_the_schema_has_a_default_of_its_own() -> None:
    assert [name for _, name, field in fields() if not field.is_required()] == []


def test_every_field_has_a_description() -> None:
    assert [name for _, name, field in fields() if not field.description] == []


@pytest.mark.parametrize("spelling", ["1e-3", ".001", "0.0010", "  0.001  ", "1.0E-03", "+0.001"])
def test_one_value_has_one_canonical_text(spelling: str) -> None:
    assert resolve({"learning_rate": spelling}).canonical()["learning_rate"] == "0.001"


@pytest.mark.parametrize("spelling", ["10", "010", "1e1", "10.0", " 10 "])
def test_integers_may_be_written_in_several_ways(spelling: str) -> None:
    assert resolve({"epochs": spelling}).training.epochs == 10


@pytest.mark.parametrize("text", ["1:30", "2026-11-24", "no", "[a]", "x: y", "1e3"])
def test_text_stays_text(text: str) -> None:
    assert resolve({"experiment": text}).tracking.experiment == text


@pytest.mark.parametrize("empty", ["", "  ", "null", "~"])
def test_empty_text_is_none_for_an_optional_parameter(empty: str) -> None:
    assert resolve({"data_file": empty}).data.data_file is None


@pytest.mark.parametrize(
    ("frequencies_hz", "phases_deg"),
    [("[1, 3, 5, 7]", (0, 45, 90, 135)), ("[2, 5, 9]", (0, 60, 120)), ("4", (0,)), ("[4]", (0,))],
)
def test_default_phases_are_spread_evenly(frequencies_hz: str, phases_deg: tuple[float, ...]) -> None:
    signals = resolve({"frequencies_hz": frequencies_hz}).signals
    assert signals.phases_deg == phases_deg
    assert signals.amplitudes == (1,) * len(phases_deg)


def test_one_number_applies_to_all_components() -> None:
    signals = resolve({"frequencies_hz": "[2, 5]", "phases_deg": "30", "amplitudes": "0.5"}).signals
    assert signals.phases_deg == (30, 30)
    assert signals.amplitudes == (0.5, 0.5)


def test_resolved_parameters_as_a_recipe_resolve_to_themselves(tmp_path: Path) -> None:
    first = resolve({"frequencies_hz": "[2, 5, 9]", "learning_rate": "1e-3", "cell": "gru"}, recipe="original")
    (tmp_path / "again.yaml").write_text(first.to_yaml())
    assert resolve(recipe=str(tmp_path / "again.yaml")) == first


def test_an_override_precedes_the_recipe_and_the_recipe_the_default() -> None:
    assert resolve().training.epochs != 50
    assert resolve(recipe="original").training.epochs == 50
    assert resolve({"epochs": "7"}, recipe="original").training.epochs == 7


def test_the_original_recipe_is_the_original() -> None:
    values = resolve(recipe="original").flat()
    facts = {
        "n_samples": 10_000, "duration_s": 10, "noise_std": 0.1, "window_length": 50, "noise": "fixed",
        "split": "random", "validation_fraction": 0.1, "split_seed": 42, "train_noise_seed": 1, "test_noise_seed": 2,
        "cell": "lstm", "hidden_size": 128, "num_layers": 2, "dropout": 0.2, "bidirectional": False, "seed": 42,
        "loss": "mse", "learning_rate": 1e-3, "weight_decay": 1e-5, "scheduler_factor": 0.5, "scheduler_patience": 5,
        "precision": "fp32", "optimizer": "adam", "scheduler": "plateau", "windows_per_epoch": None,
        "targets": "clean",
        "gradient_clip_norm": 1.0, "batch_size": 64, "epochs": 50, "early_stopping_patience": 15,
    }  # fmt: skip
    assert {name: values[name] for name in facts} == facts


@pytest.mark.parametrize("recipe", recipe_names())
def test_a_recipe_holds_only_what_differs_from_the_defaults(recipe: str) -> None:
    written = yaml.safe_load((ROOT / "recipes" / f"{recipe}.yaml").read_text())
    stated = resolve().flat()
    repeated = [name for values in written.values() for name, value in values.items() if stated[name] == value]
    assert repeated == []


def test_the_digest_ignores_tracking_parameters_and_no_others() -> None:
    assert resolve({"run_dir": "elsewhere"}).digest() == resolve({"experiment": "x"}).digest()
    assert resolve({"seed": "1"}).digest() != resolve().digest()


def test_a_data_file_determines_noise_split_and_holdout() -> None:
    values = resolve({"data_file": "mine.npz"}, folder=Path("/typed/here")).flat()
    assert values["data_file"] == "/typed/here/mine.npz"
    forced = (values["noise"], values["split"], values["holdout_every"], values["targets"])
    assert forced == ("fixed", "file", 0, "clean")
    assert values["windows_per_epoch"] is None


@pytest.mark.parametrize("given", [{"noise": "fixed"}, {"loss": "mae"}, {"data_file": "/mine.npz"}])
def test_targets_are_clean_where_posterior_means_are_not_possible(given: dict[str, str], tmp_path: Path) -> None:
    assert resolve().training.targets == "posterior_mean"
    assert resolve(given).training.targets == "clean"
    (tmp_path / "again.yaml").write_text(resolve().to_yaml())
    assert resolve(given, recipe=str(tmp_path / "again.yaml")).training.targets == "clean"


def test_windows_per_epoch_of_an_override_or_a_recipe_applies_to_a_data_file(tmp_path: Path) -> None:
    typed = resolve({"data_file": "/mine.npz", "windows_per_epoch": "500"})
    assert typed.training.windows_per_epoch == 500
    (tmp_path / "again.yaml").write_text(typed.to_yaml())
    assert resolve(recipe=str(tmp_path / "again.yaml")) == typed


@pytest.mark.parametrize(
    ("overrides", "leak"),
    [
        ({"validation_noise_seed": "2"}, "test_noise_seed and validation_noise_seed"),
        ({"validation_noise_seed": "0", "validation_realizations": "5"}, "test_noise_seed and validation_noise_seed"),
        ({"noise": "fixed", "train_noise_seed": "3"}, "train_noise_seed and holdout_noise_seed"),
        ({"noise": "fixed", "split": "random"}, "train_noise_seed and split=random"),
    ],
)
def test_shared_realizations_are_refused_unless_allowed(overrides: dict[str, str], leak: str) -> None:
    with pytest.raises(UserError, match=leak):
        resolve(overrides)
    assert isinstance(resolve(overrides | {"allow_shared_realizations": "true"}), Params)


@settings(max_examples=300, deadline=None)
@given(name=st.sampled_from(NAMES), text=st.text(max_size=30) | st.from_regex(r"[\[\]{}:,*&!|>'\"%@`0-9.e\-]{0,12}"))
def test_any_text_for_any_parameter_is_accepted_or_refused_on_one_line(name: str, text: str) -> None:
    try:
        values = resolve({name: text})
    except UserError as error:
        assert "\n" not in str(error)
        assert name in str(error)
    else:
        assert set(values.canonical()) == set(defaults())
