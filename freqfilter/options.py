"""The options that commands share, and what a person typed with them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from freqfilter.errors import UserError
from freqfilter.launch import launched_by_mlflow, launcher_folder
from freqfilter.params import Params
from freqfilter.params.resolve import DEFAULT_RECIPE, defaults, fields, is_path, recipe_names


def parameter_options(*, sections: tuple[str, ...] | None = None) -> Callable[[Any], Any]:
    """An option for each parameter, or for those of some sections, all of them text that the schema will read."""
    stated = defaults()

    def add(command: Any) -> Any:
        for section, name, field in reversed(list(fields())):
            if sections is None or section in sections:
                default = str(stated[name]).replace("'", "") if stated[name] is not None else "null"
                command = click.option(
                    f"--{name}", name, metavar="VALUE", help=f"{field.description}  [default: {default}]"
                )(command)
        return command

    return add


recipe_option = click.option(
    "--recipe",
    default=DEFAULT_RECIPE,
    metavar="NAME|FILE",
    help=f"what replaces defaults: {', '.join([DEFAULT_RECIPE, *recipe_names()])}, or a file like params.yaml",
)

seeds_option = click.option(
    "--seeds", metavar="LIST", help='train once from each seed, such as "[1, 2, 3]": mean and spread of every figure'
)


def given_words(typed: dict[str, str | None]) -> dict[str, str]:
    """What was typed, without the parameters that were not.

    Raises:
        UserError: If it is what MLflow decides.
    """
    given = {name: value for name, value in typed.items() if value is not None}
    if "experiment" in given and launched_by_mlflow():
        raise UserError("experiment: under `mlflow run` it is MLflow's choice; use --experiment-name instead")
    return given


def typing_folder(given: dict[str, str]) -> Path:
    """The folder in which the user typed. `mlflow run` works elsewhere: in the project, or in a clone of it.

    Raises:
        UserError: If it cannot be found, and a relative path needs it.
    """
    if not launched_by_mlflow():
        return Path.cwd()
    if found := launcher_folder():
        return found
    paths = {name for _, name, field in fields() if is_path(field)} | {"output", "page", "picture", "recipe"}
    for name, value in given.items():
        if name in paths and value not in [DEFAULT_RECIPE, *recipe_names()] and not Path(value).is_absolute():
            raise UserError(f"{name}={value}: the folder of `mlflow run` cannot be found; give an absolute path")
    return Path.cwd()


def need_store(params: Params) -> None:
    """See that a job which needs the store is not asked to do without.

    Raises:
        UserError: If it is.
    """
    if params.tracking.tracking == "offline":
        raise UserError("tracking=offline: only a single training goes without its store, and not under `mlflow run`")
