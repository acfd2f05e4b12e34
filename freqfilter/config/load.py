"""Loading of parameters: defaults, recipes and overrides, read from YAML and validated."""

from __future__ import annotations

import difflib
import os
import unicodedata
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from freqfilter.config.schema import Params
from freqfilter.errors import UserError, one_line
from freqfilter.tracked_names import with_current_names

DEFAULT_RECIPE = "default"
NULLS = ("", "~", "null")
EXPERIMENT_ID, EXPERIMENT_NAME = "MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME"  # MLflow's variables
# A data file has its own noise and split, and no signal model to generate holdout windows from.
FORCED_BY_DATA_FILE = {"noise": "fixed", "split": "file", "holdout_every": "0"}
# Defaults with a data file: it has few windows, and each is used once an epoch.
DEFAULT_WITH_DATA_FILE = {"windows_per_epoch": None}
# Values for checkpoints and models stored before these parameters existed.
LEGACY_DEFAULTS = {
    "validation_windows": None,
    "test_windows": None,
    "windows_per_epoch": None,
    "optimizer": "adam",
    "targets": "clean",
    "scheduler": "plateau",
    "validation_average": "batches",
}


def _home() -> Path:
    """Folder of params.yaml and recipes: the package where installed, its parent in a checkout."""
    package = Path(__file__).resolve().parents[1]
    return package if (package / "params.yaml").exists() else package.parent


def fields() -> Iterator[tuple[str, str, FieldInfo]]:
    """Yield every parameter as (section, name, field), in the order of params.yaml."""
    for section, of_section in Params.model_fields.items():
        for name, field in cast(type[BaseModel], of_section.annotation).model_fields.items():
            yield section, name, field


def default_text(value: Any) -> str:
    """Text of a default value as in params.yaml."""
    return "null" if value is None else str(value).replace("'", "")


def defaults() -> dict[str, Any]:
    """Default values from params.yaml, by name.

    Raises:
        UserError: If the file is invalid or a parameter is missing.
    """
    path = _home() / "params.yaml"
    values = _flatten(path)
    for section, name, _ in fields():
        if name not in values:
            raise UserError(
                f"{path}: {name} is missing in section {section}; restore it with `git checkout params.yaml`"
            )
    return values


def recipe_names() -> list[str]:
    """Names of the recipes in the package."""
    return sorted(path.stem for path in (_home() / "recipes").glob("*.yaml"))


def resolve(
    overrides: Mapping[str, Any] | None = None, *, recipe: str = DEFAULT_RECIPE, folder: Path | None = None
) -> Params:
    """Resolve the parameters: overrides take precedence over the recipe, and the recipe over the defaults.

    The default of ``experiment`` is that of ``MLFLOW_EXPERIMENT_ID`` or ``MLFLOW_EXPERIMENT_NAME``, if one is set.

    Args:
        overrides: Values by name; text is parsed as YAML.
        recipe: A name of ``recipe_names()``, ``default``, or the path of a file in the format of params.yaml.
        folder: Base of relative paths; None: the working directory.

    Raises:
        UserError: If a name is unknown, a value is invalid, or values are incompatible.
    """
    folder = folder or Path.cwd()
    given = _parse_values(overrides or {})
    stated = _recipe(recipe, folder) | given
    values = defaults() | _experiment_of_environment() | stated
    if values["data_file"] is not None:
        values |= DEFAULT_WITH_DATA_FILE | stated
        values |= {name: forced for name, forced in FORCED_BY_DATA_FILE.items() if name not in given}
    unknown_mean = (values["phase_distribution"], values["amplitude_distribution"]) == ("uniform", "fixed")
    if ((values["noise"], values["loss"]) != ("fresh", "mse") or unknown_mean) and "targets" not in given:
        values["targets"] = "clean"  # the only targets that they allow
    return _validated(values, folder)


def _experiment_of_environment() -> dict[str, str]:
    """The experiment that MLflow's variables choose; one chosen by its id is named when the store is read."""
    if experiment_id := os.environ.get(EXPERIMENT_ID):
        return {"experiment": f"{EXPERIMENT_ID}={experiment_id}"}
    name = os.environ.get(EXPERIMENT_NAME)
    return {"experiment": name} if name else {}


def with_overrides(params: Params, given: Mapping[str, Any], *, folder: Path) -> Params:
    """Copy parameters with the values given; paths are relative to ``folder``.

    Raises:
        UserError: If a name is unknown or a value is invalid.
    """
    return _validated(params.flat() | _parse_values(given), folder)


def _recipe(recipe: str, folder: Path) -> dict[str, Any]:
    if recipe == DEFAULT_RECIPE:
        return {}
    packaged = _home() / "recipes" / f"{recipe}.yaml"
    path = packaged if recipe in recipe_names() else user_path(recipe, folder)
    if not path.is_file():
        raise UserError(
            f"recipe={recipe}: no such recipe or file; choose from {DEFAULT_RECIPE}, {', '.join(recipe_names())}"
        )
    return _flatten(path)


def _flatten(path: Path) -> dict[str, Any]:
    sections = {name: section for section, name, _ in fields()}
    values = {}
    for section, content in read_sections(path).items():
        for name, value in content.items():
            if sections.get(name) != section:
                problem = f"{name} belongs in section {sections[name]}" if name in sections else _unknown(name)
                raise UserError(f"{path}: section {section}: {problem}")
            values[name] = value
    return values


def _parse_values(given: Mapping[str, Any]) -> dict[str, Any]:
    """Check the names, and parse the values that are text."""
    known, parsed = {name: field for _, name, field in fields()}, dict(given)
    for name, value in given.items():
        if name not in known:
            raise UserError(_unknown(name))
        if not isinstance(value, str):
            continue
        if known[name].annotation in (str, str | None):  # not parsed: YAML would read lists and mappings
            parsed[name] = None if value.strip() in NULLS else value.strip()
            continue
        try:
            parsed[name] = parse_yaml(value)
        except UserError as error:
            raise UserError(f"{name}={value[:60]!r}: {error}") from None
    return parsed


def _unknown(name: str) -> str:
    known = [known for _, known, _ in fields()]
    nearest = difflib.get_close_matches(name.replace("-", "_"), known, n=1, cutoff=0.5)
    hint = f"did you mean {nearest[0]!r}?" if nearest else "see `python -m freqfilter train --help-all`"
    return f"unknown parameter {name!r}: {hint}"


def require_online(params: Params) -> None:
    """Check that ``tracking`` is ``online``, for a job that needs the tracking store.

    Raises:
        UserError: If it is ``offline``.
    """
    if params.tracking.tracking == "offline":
        raise UserError("tracking=offline: possible only for a single training without `mlflow run`; use online")


def restore(stored: Mapping[str, Mapping[str, Any]]) -> Params:
    """Restore the parameters stored with a model or a checkpoint.

    A parameter that did not exist then gets its legacy value or today's default; one that no longer exists is ignored.

    Raises:
        UserError: If they are not parameters of this program.
    """
    values = defaults() | LEGACY_DEFAULTS
    try:
        for section in stored.values():
            values |= with_current_names(section)
        return Params.model_validate(_in_sections(values))
    except (AttributeError, TypeError, ValidationError):
        raise UserError("the stored parameters are corrupt or not of freqfilter; use another model or run") from None


def user_path(text: str, folder: Path) -> Path:
    """Path of a user's text relative to ``folder``, with ``~`` expanded.

    Raises:
        UserError: If it starts with the home of an unknown user, as in ``~absent``.
    """
    try:
        return folder / Path(text).expanduser()
    except RuntimeError as error:
        raise UserError(f"{text}: {error}") from None


def is_path(field: FieldInfo) -> bool:
    """Whether a parameter is a path."""
    return isinstance(marks := field.json_schema_extra, dict) and bool(marks["path"])


def is_everyday(field: FieldInfo) -> bool:
    """Whether a parameter is shown by ``train --help``."""
    return isinstance(marks := field.json_schema_extra, dict) and bool(marks["everyday"])


def _in_sections(values: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    sections: dict[str, dict[str, Any]] = {section: {} for section in Params.model_fields}
    for section, name, _ in fields():
        sections[section][name] = values[name]
    return sections


def _validated(values: dict[str, Any], folder: Path) -> Params:
    """Make paths absolute, and validate values by name."""
    for _, name, field in fields():
        if is_path(field) and isinstance(values[name], str):
            try:
                values[name] = str(user_path(values[name], folder))
            except UserError as error:
                raise UserError(f"{name}={error}") from None
    try:
        params = Params.model_validate(_in_sections(values))
    except ValidationError as error:
        raise UserError(_first_line(error, values)) from None
    check_name("experiment", params.tracking.experiment, max_length=500)
    check_model_name_syntax("model_name", params.tracking.model_name)
    return params


CONTROL_CHARACTERS = ("Cc", "Cs", "Zl", "Zp")  # categories of Unicode: control characters, surrogates, line separators


def check_name(what: str, name: str, *, forbidden: str = "", max_length: int = 250) -> None:
    """Check a name that a store is to keep; names in the store already may be other ones.

    Args:
        what: The name's own name, for the message.
        name: The name.
        forbidden: Characters that it must not have, besides line breaks and other control characters.
        max_length: Number of characters that MLflow keeps.

    Raises:
        UserError: If it has one of them, or is longer.
    """
    found = next((c for c in name if c in forbidden or unicodedata.category(c) in CONTROL_CHARACTERS), None)
    if found is None and len(name) <= max_length:
        return
    problem = f"{len(name)} characters" if found is None else f"{found!r} in the name"
    excluded = ", ".join([*forbidden, "line breaks and other control characters"])
    shown = name if len(name) <= 60 else f"{name[:60]}…"
    raise UserError(f"{what}={shown}: {problem}; give a name of at most {max_length} characters without {excluded}")


def check_model_name_syntax(what: str, name: str) -> None:
    """Check a name that becomes part of an address, ``models:/NAME/VERSION`` or ``models:/NAME@ALIAS``.

    Raises:
        UserError: If the address would be that of another model.
    """
    check_name(what, name, forbidden="/:@?#", max_length=200)


def _first_line(error: ValidationError, values: Mapping[str, Any]) -> str:
    first = error.errors(include_url=False, include_context=False)[0]
    message = first["msg"].removeprefix("Value error, ")
    if len(first["loc"]) < 2:  # the message of a rule on several parameters names them
        return message
    name = str(first["loc"][1])
    field = next(field for _, known, field in fields() if known == name)
    value = "nothing" if values[name] is None else str(values[name])
    shown = value if len(value) <= 60 else f"{value[:60]}…"
    return f"{name}={shown}: {message[0].lower()}{message[1:]} ({field.description})"


MAX_FILE_BYTES = 1_000_000  # a parameter file has a few thousand


class _TextLoader(yaml.BaseLoader):
    """YAML loader without aliases and duplicate keys, whose scalars are text or None."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases (*name) are not allowed")
        return super().compose_node(parent, index)

    def construct_scalar(self, node: Any) -> Any:
        text = super().construct_scalar(node)
        return None if text in NULLS else text

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key.value, str) or key.value in {*keys, *NULLS}:
                raise yaml.YAMLError(f"line {key.start_mark.line + 1}: {key.value!r} is duplicated or not a name")
            keys.add(key.value)
        return dict(super().construct_mapping(node, deep=deep))


def parse_yaml(text: str) -> Any:
    """Parse YAML with scalars as text, and ``null``, ``~`` and empty scalars as None.

    >>> parse_yaml("[1e-3, no, null]")
    ['1e-3', 'no', None]

    Raises:
        UserError: If the text is not YAML, or has aliases or duplicate keys.
    """
    try:
        return yaml.load(text, Loader=_TextLoader)  # noqa: S506 (BaseLoader makes text only)
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise UserError(f"not valid YAML: {line}{error.problem}") from None
    except (yaml.YAMLError, RecursionError) as error:
        raise UserError(f"not valid YAML: {one_line(error)}") from None


def read_sections(path: Path) -> dict[str, dict[str, Any]]:
    """Read the sections of a parameter file.

    Raises:
        UserError: If the file cannot be read or is not a mapping of sections to names and values.
    """
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise UserError(f"larger than {MAX_FILE_BYTES:,} bytes; use a parameter file")
        content = parse_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8 text; use a parameter file") from None
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: no sections; use the format of params.yaml")
    for section, values in content.items():
        if not isinstance(values, dict):
            raise UserError(f"{path}: section {section!r} has no `name: value` lines; use the format of params.yaml")
    return content
