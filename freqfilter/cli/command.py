"""The command group, the options that commands share, and the addresses that they print."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from freqfilter import __version__
from freqfilter.config import Params, load
from freqfilter.config.ablation import default_run_name
from freqfilter.errors import UserError
from freqfilter.process import launched_by_mlflow, launcher_folder
from freqfilter.streams import standard_output

if TYPE_CHECKING:
    from freqfilter.tracking.ui_views import RunRef

PATHS = {name for _, name, field in load.fields() if load.is_path(field)}  # parameters that are paths
RECIPES = (load.DEFAULT_RECIPE, *load.recipe_names())
OUTPUT_ONLY = {"history", "limit", "doctor"}  # commands whose output is their result
SHOW_ALL = "freqfilter.show_all"  # key in click's context: whether help shows all parameters


class ParameterOption(click.Option):
    """An option for a parameter; ``--help`` shows those with ``everyday``, ``--help-all`` all of them."""

    def __init__(self, *names: Any, section: str, everyday: bool, **settings: Any) -> None:
        super().__init__(*names, **settings)
        self.section = section
        self.everyday = everyday


class Command(click.Command):
    """A command whose ``--help`` shows its own options and the everyday parameters, and ``--help-all`` everything."""

    def invoke(self, context: click.Context) -> Any:
        """Run the command; if it has results beside its output, a full disk behind standard output is no error."""
        if (output := standard_output()) and (self.name not in OUTPUT_ONLY or launched_by_mlflow()):
            output.forwards = True
        return super().invoke(context)

    def format_options(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, with a heading for each section of parameters."""
        show_all = SHOW_ALL in context.meta or not any(getattr(option, "everyday", False) for option in self.params)
        sections: dict[str, list[tuple[str, str]]] = {"Options": []}
        for option in self.get_params(context):
            heading = "Options"
            if isinstance(option, ParameterOption):
                if not (show_all or option.everyday):
                    continue
                heading = f"Parameters, {option.section}" if show_all else "Everyday parameters"
            if record := option.get_help_record(context):
                sections.setdefault(heading, []).append(record)
        for heading, records in sections.items():
            with formatter.section(heading):
                formatter.write_dl(records)
        if not show_all:
            formatter.write_paragraph()
            formatter.write_text("--help-all shows every parameter.")


def _print_all(context: click.Context, _option: click.Parameter, value: bool) -> None:
    if value:
        context.meta[SHOW_ALL] = True
        click.echo(context.get_help())
        context.exit()


version_option = click.option("--version", type=click.IntRange(min=1), metavar="N", help="version of model_name")
help_all_option = click.option(
    "--help-all",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_all,
    help="Show every parameter and exit.",
)
recipe_option = click.option(
    "--recipe",
    default=load.DEFAULT_RECIPE,
    show_default=False,
    metavar="NAME|FILE",
    help=f"replacement of the defaults: {', '.join(RECIPES)}, or a file like params.yaml",
)


@dataclass(frozen=True)
class Request:
    """What a command is called with: text of parameters by name, a recipe, and the folder of relative paths."""

    overrides: dict[str, str]
    recipe: str
    folder: Path

    def resolve(self, *, online: bool = False, **before: str) -> Params:
        """Resolve the parameters: ``before``, replaced by the overrides.

        Raises:
            UserError: If a parameter is unknown or its value is invalid, or ``online`` and ``tracking=offline``.
        """
        params = load.resolve(before | self.overrides, recipe=self.recipe, folder=self.folder)
        if online:
            load.require_online(params)
        return params

    def run_name(self, **options: str) -> str:
        """Default name of a run: the recipe, these options and the overrides."""
        return default_run_name(self.recipe, options | self.overrides)


def command(
    *, parameters: tuple[str, ...] | None = None, paths: tuple[str, ...] = (), view: str = "trainings"
) -> Callable[[Callable[..., RunRef | None]], click.Command]:
    """Register a function as a command that takes a ``Request``, or the resolved section ``tracking``, and own options.

    Args:
        parameters: Parameters that it takes, by section or by name; None: all.
        paths: Names of its own options that are paths; the function gets absolute paths.
        view: Saved view whose address is printed with that of the run that the function returns.
    """
    default_values = load.defaults()
    taken = [option for option in load.fields() if parameters is None or not {*option[:2]}.isdisjoint(parameters)]
    names, only_tracking = {name for _, name, _ in taken}, parameters == ("tracking",)

    def register(function: Callable[..., RunRef | None]) -> click.Command:
        @wraps(function)
        def run(**values: Any) -> None:
            overrides = {name: value for name, value in values.items() if name in names and value is not None}
            if "experiment" in overrides and launched_by_mlflow():
                raise UserError("experiment: `mlflow run` chooses it; use --experiment-name")
            own = {name: value for name, value in values.items() if name not in names}
            recipe = own.pop("recipe", load.DEFAULT_RECIPE)
            named_paths = {name: value for name, value in overrides.items() if name in PATHS}
            named_paths |= {name: own[name] for name in paths if own[name] is not None}
            if recipe not in RECIPES:
                named_paths["recipe"] = recipe
            folder = invocation_folder(named_paths)
            own |= {name: load.user_path(own[name], folder) for name in paths if own[name] is not None}
            request = Request(overrides, recipe, folder)
            logged = function(request.resolve(online=True).tracking if only_tracking else request, **own)
            if logged:
                click.echo("\n".join(run_links(logged, view)))

        for section, name, field in reversed(taken):
            click.option(
                f"--{name}",
                cls=ParameterOption,
                section=section,
                everyday=load.is_everyday(field) and not only_tracking,
                metavar="VALUE",
                help=f"{field.description}  [default: {load.default_text(default_values[name])}]",
            )(run)
        registered = cli.command(function.__name__)(run)
        if not only_tracking and any(load.is_everyday(field) for _, _, field in taken):
            help_all_option(registered)
        return registered

    return register


def invocation_folder(paths: dict[str, str]) -> Path:
    """Return the user's working directory; `mlflow run` starts the command in the project, or in a clone of it.

    Raises:
        UserError: If it is unknown and one of these paths, by name, is relative.
    """
    if not launched_by_mlflow():
        return Path.cwd()
    if folder := launcher_folder():
        return folder
    for name, value in paths.items():
        if not Path(value).is_absolute():
            raise UserError(f"{name}={value}: the working directory of `mlflow run` is unknown; give an absolute path")
    return Path.cwd()


GROUPS = {
    "Everyday": ("train", "original", "compare", "evaluate", "promote", "ui"),
    "More": (
        "ablate", "find_learning_rate", "register_classical", "limit", "prepare", "rollback", "history", "serve",
        "export", "copy",
    ),
    "Upkeep": ("resume", "sync", "doctor", "init_store"),
}  # fmt: skip


class Group(click.Group):
    """A command group whose help lists the commands under the headings of ``GROUPS``."""

    command_class = Command

    def format_commands(self, _context: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands, each with the first sentence of its help."""
        widest = max(map(len, self.commands))
        for heading, names in GROUPS.items():
            with formatter.section(heading):
                room = formatter.width - widest - 6
                helps = [self.commands[name].get_short_help_str(room) for name in names]
                formatter.write_dl([(name.ljust(widest), text) for name, text in zip(names, helps, strict=True)])


@click.group(cls=Group, context_settings={"max_content_width": 110, "show_default": True})
@click.version_option(__version__, prog_name="freqfilter")
def cli() -> None:
    """Train a filter that extracts one sinusoid from a noisy mixture, tracked in MLflow.

    Each job that records a run is an entry point of the MLproject: `mlflow run . -e JOB -P name=value`; `main` is
    train.
    """


UI_ADDRESS = "http://127.0.0.1:5000"  # default of `make ui` and `mlflow ui`


def run_links(run: RunRef, view: str = "trainings") -> Iterator[str]:
    """Lines with the command that opens MLflow's UI, and the addresses of a run and of a saved view."""
    server = run.tracking_uri if run.tracking_uri.startswith("http") else UI_ADDRESS
    yield store_link(run.tracking_uri)
    yield f"  this run: {run.page(server)}"
    yield f"  all {view}: {run.view(server, view)}"


def store_link(tracking_uri: str) -> str:
    """Address of the store's UI, or the command that opens it."""
    if tracking_uri.startswith("http"):
        return f"view in MLflow: {tracking_uri}"
    return f"view in MLflow: make ui, or: mlflow ui --backend-store-uri {tracking_uri}"
