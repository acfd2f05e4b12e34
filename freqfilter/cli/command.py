"""The command group, the options that commands share, and the summary that they print."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from freqfilter import __version__
from freqfilter.config import Params, TrackingParams
from freqfilter.config.ablation import default_run_name
from freqfilter.config.load import (
    DEFAULT_RECIPE,
    default_text,
    defaults,
    fields,
    is_everyday,
    is_path,
    recipe_names,
    require_online,
    resolve,
    user_path,
)
from freqfilter.errors import UserError
from freqfilter.process import launched_by_mlflow, launcher_folder

if TYPE_CHECKING:
    from freqfilter.pipelines.train import TrainingResult
    from freqfilter.tracking.ui_views import RunRef


PATHS = {name for _, name, field in fields() if is_path(field)}  # parameters that are paths
SHOW_ALL = "freqfilter.show_all"  # key in click's context: whether help shows all parameters


class ParameterOption(click.Option):
    """An option for a parameter of params.yaml, whose value is text that the schema reads.

    Attributes:
        section: The parameter's section.
        everyday: Whether ``--help`` shows it; ``--help-all`` shows all of them.
    """

    def __init__(self, *names: Any, section: str, everyday: bool, **settings: Any) -> None:
        super().__init__(*names, **settings)
        self.section = section
        self.everyday = everyday


class Command(click.Command):
    """A command whose ``--help`` shows its own options and the everyday parameters, and ``--help-all`` everything."""

    def __init__(self, *names: Any, **settings: Any) -> None:
        super().__init__(*names, **settings)
        parameters = [option for option in self.params if isinstance(option, ParameterOption)]
        self._abridges = any(option.everyday for option in parameters)
        if self._abridges:
            help_all = click.Option(
                ["--help-all"],
                is_flag=True,
                is_eager=True,
                expose_value=False,
                callback=_print_all,
                help="Show every parameter and exit.",
            )
            self.params.append(help_all)

    def format_options(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options under a heading for each section."""
        show_all = SHOW_ALL in context.meta or not self._abridges
        sections: dict[str, list[tuple[str, str]]] = {"Options": []}
        for option in self.get_params(context):
            if (record := option.get_help_record(context)) is None:
                continue
            heading = "Options"
            if isinstance(option, ParameterOption):
                if not (show_all or option.everyday):
                    continue
                heading = f"Parameters, {option.section}" if show_all else "Everyday parameters"
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


def parameter_options(*, sections: tuple[str, ...] | None = None) -> Callable[[Any], Any]:
    """Decorator that adds an option for each parameter, or for those of some sections."""
    default_values = defaults()

    def add(command: Any) -> Any:
        for section, name, field in reversed(list(fields())):
            if sections is None or section in sections:
                command = click.option(
                    f"--{name}",
                    name,
                    cls=ParameterOption,
                    section=section,
                    everyday=is_everyday(field) and sections != ("tracking",),
                    metavar="VALUE",
                    help=f"{field.description}  [default: {default_text(default_values[name])}]",
                )(command)
        return command

    return add


recipe_option = click.option(
    "--recipe",
    default=DEFAULT_RECIPE,
    metavar="NAME|FILE",
    help=f"replacement of the defaults: {', '.join([DEFAULT_RECIPE, *recipe_names()])}, or a file like params.yaml",
)

seeds_option = click.option(
    "--seeds", metavar="LIST", help='train once with each seed, such as "[1, 2, 3]", for mean and spread'
)


@dataclass(frozen=True)
class Request:
    """Parameters, recipe and folder of a command's call.

    Attributes:
        overrides: Text of the parameters given, by name.
        recipe: Name or path of the recipe.
        folder: The folder that relative paths refer to.
    """

    overrides: dict[str, str]
    recipe: str
    folder: Path

    def resolve(self, *, online: bool = False, **before: str) -> Params:
        """Resolve the parameters.

        Args:
            online: Refuse ``tracking=offline``.
            **before: Values that the overrides replace.

        Raises:
            UserError: If a parameter is unknown or its value is invalid.
        """
        params = resolve(before | self.overrides, recipe=self.recipe, folder=self.folder)
        if online:
            require_online(params)
        return params

    @property
    def tracking(self) -> TrackingParams:
        """Resolved parameters of section ``tracking``; ``tracking=offline`` is refused.

        Raises:
            UserError: As ``resolve`` does.
        """
        return self.resolve(online=True).tracking

    def path(self, text: str) -> Path:
        """Absolute path of a file that the user has named."""
        return user_path(text, self.folder)

    def run_name(self, **options: str) -> str:
        """Default name of a run: the recipe, these options and the overrides."""
        return default_run_name(self.recipe, options | self.overrides)


def command(
    *, sections: tuple[str, ...] | None = None, paths: tuple[str, ...] = (), view: str = ""
) -> Callable[[Callable[..., Any]], click.Command]:
    """Register a function as a command that takes a ``Request`` and its own options.

    Args:
        sections: Sections of the parameters that it takes; None: all.
        paths: Names of its own options that are paths.
        view: Saved view whose address is printed with that of the run that the function returns.
    """
    parameters = {name for section, name, _ in fields() if sections is None or section in sections}

    def register(function: Callable[..., Any]) -> click.Command:
        @wraps(function)
        def run(**values: Any) -> None:
            overrides = {name: value for name, value in values.items() if name in parameters and value is not None}
            if "experiment" in overrides and launched_by_mlflow():
                raise UserError("experiment: `mlflow run` chooses it; use --experiment-name")
            own = {name: value for name, value in values.items() if name not in parameters}
            recipe = own.pop("recipe", DEFAULT_RECIPE)
            named_paths = {name: value for name, value in overrides.items() if name in PATHS}
            named_paths |= {name: own[name] for name in paths if own[name] is not None}
            if recipe not in (DEFAULT_RECIPE, *recipe_names()):
                named_paths["recipe"] = recipe
            result = function(Request(overrides, recipe, invocation_folder(named_paths)), **own)
            if view:
                click.echo("\n".join(run_links(result, view)))

        return cli.command(function.__name__)(parameter_options(sections=sections)(run))

    return register


def resolve_run_dir(run_dir: str | None) -> Params:
    """Resolve the default parameters, with another ``run_dir`` if one is given."""
    overrides = {"run_dir": run_dir} if run_dir else {}
    return resolve(overrides, folder=invocation_folder(overrides))


def invocation_folder(paths: dict[str, str]) -> Path:
    """Return the user's working directory; `mlflow run` starts the command in the project, or in a clone of it.

    Args:
        paths: The paths that the user has given, by name.

    Raises:
        UserError: If it is unknown and a path is relative.
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
        "ablate", "find_learning_rate", "limit", "prepare", "rollback", "history", "serve", "export", "copy",
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
                formatter.write_dl(
                    [(name.ljust(widest), self.commands[name].get_short_help_str(room)) for name in names]
                )


@click.group(cls=Group, context_settings={"max_content_width": 110})
@click.version_option(__version__, prog_name="freqfilter")
def cli() -> None:
    """Train a filter that extracts one sinusoid from a noisy mixture, tracked in MLflow.

    Each job that records a run is an entry point of the MLproject: `mlflow run . -e JOB -P name=value`; `main` is
    train.
    """


UI_ADDRESS = "http://127.0.0.1:5000"  # default of `make ui` and `mlflow ui`


def training_summary(trained: TrainingResult) -> Iterator[str]:
    """Lines with the best epoch, the scores, the run, the version and the run's page."""
    from freqfilter.pipelines.model_card import limit_summary, scores_table

    progress, run = trained.progress, trained.run
    best = progress.best
    yield (
        f"\nbest epoch {best.epoch} of {len(progress.history)}: training loss {best.train_loss:.4f}, "
        f"validation MSE {best.val_mse:.4f}"
    )
    yield f"\n{scores_table(trained.compared.table, 'simple')}\n\n{limit_summary(trained.metrics)}\n"
    yield from (f"diagnosis: {line}" for line in trained.diagnoses.values())
    if not run.tracking_uri:
        yield f"offline: everything is in {trained.folder}; deliver it and register the model with:"
        yield "python -m freqfilter sync"
        return
    yield f"run {run.run_id} in experiment {run.experiment}"
    if trained.version is None:
        yield "not registered (register=false)"
    else:
        yield f"registered: {trained.model_name} version {trained.version}"
        yield f"load with: freqfilter.load({trained.model_name!r}, version={trained.version})"
    yield from run_links(run)


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
