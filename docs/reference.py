"""Pages of the site that are generated when it is built: the reference, from the code, and pages outside docs/.

MkDocs calls the functions that begin with ``on_``; all others are pure.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import click
import yaml
from annotated_types import Ge, Gt, Le, Lt  # noqa: F401 (for the examples)
from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from pydantic.fields import FieldInfo

from freqfilter.cli.main import load_commands
from freqfilter.config import Params
from freqfilter.config.load import default_text, defaults, fields

ROOT = Path(__file__).parents[1]
FROM_ROOT = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
SHOWN_AS_THEY_ARE = {".png", ".json", ".txt"}  # browsers download files of other types

LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s#]*)(#[^)\s]*)?\)")
BLOCK_MATH = re.compile(r"^```math\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INLINE_MATH = re.compile(r"\$`([^`]+)`\$")

# Descriptions of metrics. A star stands for any name; a test compares these with the metrics of real runs.
METRICS = {
    "Training, at each epoch": {
        "train/loss": "training loss, the mean over the epoch's batches",
        "train/learning_rate": "learning rate at the epoch's last step",
        "train/gradient_norm": "norm of the gradient before clipping, the mean over the batches",
        "train/epoch_seconds": "wall time of training and validation, without the holdout, seconds",
    },
    "Validation and holdout, at each epoch that has one": {
        "val/loss": "validation loss in the units of the loss, the mean over samples or batches (`validation_average`)",
        "val/mse": "mean squared error on the validation windows, the mean over samples, whatever the loss",
        "val/limit_mse": "the limit on the same windows",
        "val/mse_over_limit": "ratio of `val/mse` to that limit: 1 is the least that a filter can expect",
        "holdout/mse": "mean squared error on the holdout windows, used neither for training nor for selection",
    },
    "System, every `system_metrics_interval` seconds": {
        "system/cpu_utilization_percentage": "usage of all processor cores by all programs",
        "system/system_memory_usage_megabytes": "memory in use by all programs, MB",
        "system/system_memory_usage_percentage": "its share of the machine's memory",
        "system/process_cpu_percentage": "processor usage of the training process, 100 per core",
        "system/process_memory_megabytes": "resident memory of the training process, MB",
    },
    "The whole run": {
        "limit/expected_mse": "the limit in expectation, over all starts and all noise",
        "parameter_count": "number of trainable parameters of the network",
        "epochs_run": "number of epochs trained",
        "peak_memory_mb": "peak memory of the process, or of tensors on CUDA, MB",
        "best/epoch": "the epoch with the least validation loss, whose weights are kept",
        "best/train_loss": "its training loss",
        "best/val_loss": "its validation loss",
        "best/val_mse": "its mean squared error on the validation windows",
        "best/val_mse_over_limit": "its ratio to the limit",
        "best/holdout_mse": "its mean squared error on all windows of the holdout realization",
    },
    "The test, with the best weights": {
        "test/mse": "mean squared error",
        "test/rmse": "its root",
        "test/mae": "mean absolute error",
        "test/r2": "R²: 1 less the mean squared error over the variance of the target",
        "test/pearson_r": "correlation of estimate and target",
        "test/sdr_db": "power of the target over that of the error, dB",
        "test/mse_over_limit": "ratio of `test/mse` to the limit on the same windows; none if the limit is zero",
        "test/mse_over_limit_low": "lower end of its 95 % interval; none for a single block of windows",
        "test/mse_over_limit_high": "upper end of its 95 % interval",
        "test/db_over_limit": "the same ratio in decibels",
        "test/*_*hz": "any of these for one component, such as `test/mse_5hz` or `test/mse_over_limit_5hz`",
        "test/*_mse": "mean squared error of a baseline on the same windows, such as `test/limit_mse`, "
        "`test/limit_two_sided_mse`, `test/linear_mmse_mse`, `test/linear_mmse_two_sided_mse`, `test/zero_mse`",
    },
    "The test of recordings, after so many samples": {
        "test/mse_after_*": "mean squared error after so many samples, such as `test/mse_after_1000`; "
        "`docs/how-to/your_signals.md` has the samples that stand for each number",
        "test/*_mse_after_*": "expected squared error of the limit, `test/limit_mse_after_1000`, or of the best linear "
        "filter, `test/linear_mmse_mse_after_1000`",
        "test/*_over_*_after_*": "ratios to it with their 95 % intervals: `test/mse_over_limit_after_1000`, measured "
        "without the noise of the truth, and `test/measured_over_limit_after_1000`, of the errors themselves",
    },
    "Fresh realizations: `evaluate` with `realizations`": {
        "fresh/realizations": "number of realizations",
        "fresh/mse": "mean squared error, the mean over the realizations",
        "fresh/mse_low": "lower end of its 95 % interval",
        "fresh/mse_high": "upper end of its 95 % interval",
        "fresh/limit_mse": "the limit on the same windows",
        "fresh/mse_over_limit": "ratio of `fresh/mse` to that limit",
        "fresh/mse_over_limit_low": "lower end of its 95 % interval",
        "fresh/mse_over_limit_high": "upper end of its 95 % interval",
        "fresh/db_over_limit": "the same ratio in decibels",
        "fresh/*_after_1000": "the same for recordings, over the samples 1,000 to 1,999",
        "fresh/*_*hz": "mean squared error, limit or ratio for one component",
    },
    "`limit`": {
        "limit/causal_mse": "least mean squared error of a filter that uses the samples so far",
        "limit/two_sided_mse": "least mean squared error of a filter that has the whole window",
        "limit/linear_*": "the same of linear filters, where the limit is unknown",
    },
    "`find_learning_rate`, at each step": {
        "range_test/learning_rate": "learning rate of the step",
        "range_test/loss": "loss of its batch",
        "range_test/smoothed_loss": "the loss, smoothed",
        "range_test/suggested_learning_rate": "the rate at which the smoothed loss falls most steeply",
    },
    "A parent of several seeds": {
        "*_mean": "mean over the runs of any metric that all of them have, such as `test/mse_mean`",
        "*_std": "its sample standard deviation over the runs",
    },
}

PYTHON = {
    "python_api": (
        "The jobs, in Python",
        (
            "freqfilter.api",
            "freqfilter.pipelines.train.TrainingResult",
            "freqfilter.pipelines.ablation.SweepResult",
            "freqfilter.pipelines.evaluate.EvaluationResult",
            "freqfilter.pipelines.compare.ComparisonResult",
            "freqfilter.pipelines.promote.PromotionResult",
            "freqfilter.pipelines.rollback.RollbackResult",
            "freqfilter.tracking.ui_views.RunRef",
        ),
    ),
    "python_filter": (
        "A trained filter, in Python",
        ("freqfilter.models.filter",),
    ),
    "python_signals": (
        "Signals and the limit, in Python",
        (
            "freqfilter.data.signal_model",
            "freqfilter.data.posterior",
            "freqfilter.evaluation.baselines",
            "freqfilter.data.windows",
            "freqfilter.data.npz.cut_windows",
        ),
    ),
    "python_evaluation": (
        "Evaluation, in Python",
        (
            "freqfilter.evaluation.metrics",
            "freqfilter.evaluation.limits",
            "freqfilter.evaluation.monitor",
            "freqfilter.evaluation.heldout",
            "freqfilter.evaluation.significance",
        ),
    ),
    "python_params": (
        "Parameters, in Python",
        ("freqfilter.config.load", "freqfilter.config.ablation"),
    ),
}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages, and files outside docs/ that pages link to."""
    for name, text in (reference_pages() | root_pages()).items():
        files.append(File.generated(config, name, content=text))
    for path in linked_outside(markdown_sources()):
        files.append(File.generated(config, site_path(path) or "", abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Rewrite links for the site, and formulas as MathML."""
    source = PurePosixPath("docs", page.file.src_uri)
    is_generated = page.file.generated_by is not None
    return with_mathml(
        markdown if is_generated else with_site_links(markdown, source, PurePosixPath(page.file.src_uri))
    )


def reference_pages() -> dict[str, str]:
    """Pages of the reference, by file name."""
    commands: dict[str, click.Command] = dict(load_commands().commands)
    entry_points = yaml.safe_load((ROOT / "MLproject").read_text())["entry_points"]
    pages = {
        "parameters": parameters_page(reasons((ROOT / "params.yaml").read_text())),
        "commands": commands_page(commands),
        "entry_points": entry_points_page(entry_points, commands),
        "metrics": metrics_page(METRICS),
    } | {name: python_page(title, modules) for name, (title, modules) in PYTHON.items()}
    return {f"reference/{name}.md": text for name, text in pages.items()}


def root_pages() -> dict[str, str]:
    """Pages of the project's root folder, with links for the site."""
    pages = {
        page: with_site_links((ROOT / source).read_text(), PurePosixPath(source), PurePosixPath(page))
        for source, page in FROM_ROOT.items()
    }
    return pages | {"index.md": f"---\nhide: [navigation]\n---\n\n{pages['index.md']}"}


def markdown_sources() -> dict[PurePosixPath, str]:
    """Hand-written pages, by path in the project."""
    paths = [*(ROOT / name for name in FROM_ROOT), *sorted((ROOT / "docs").rglob("*.md"))]
    return {PurePosixPath(path.relative_to(ROOT).as_posix()): path.read_text() for path in paths}


def parameters_page(reasons_by_name: Mapping[str, str]) -> str:
    """Parameters with default, range, description and reason, a table for each section.

    Args:
        reasons_by_name: Comments of params.yaml.
    """
    values, lines = defaults(), ["# Parameters", "", *PARAMETERS_HEAD]
    for section, of_section in Params.model_fields.items():
        lines += ["", f"## {section}", "", str(of_section.annotation.__doc__), ""]
        lines += ["| parameter | default | values | description |", "|---|---|---|---|"]
        for home, name, field in fields():
            if home == section:
                reason = f" *({reasons_by_name[name]})*" if name in reasons_by_name else ""
                allowed = kind(field.annotation, field.metadata)
                words = sentence(str(field.description)) + reason
                lines.append(row([f'<a id="{name}"></a>`{name}`', f"`{default_text(values[name])}`", allowed, words]))
    return "\n".join(lines) + "\n"


PARAMETERS_HEAD = [
    "Generated from the defaults in `params.yaml` and the ranges in the schema.",
    "In brackets: the unit or reason stated in `params.yaml`. Names are unique across",
    "sections: `-P learning_rate=0.002` under `mlflow run`, `--learning_rate 0.002` on the command line,",
    "`learning_rate` in MLflow.",
]


def reasons(params_yaml: str) -> dict[str, str]:
    """Parse the comment of each default.

    >>> reasons("  window_length: 50  # samples")
    {'window_length': 'samples'}
    """
    return dict(re.findall(r"^  (\w+):[^#\n]*#\s*(.*)$", params_yaml, re.MULTILINE))


def kind(annotation: Any, constraints: Iterable[Any] = ()) -> str:
    """Describe the values of a type with constraints.

    >>> kind(int, [Ge(1), Le(10**9)]), kind(float, [Gt(0)]), kind(bool)
    ('whole, 1 to 1,000,000,000', 'number > 0', '`true`, `false`')
    >>> kind(Literal["lstm", "gru"]), kind(str | None), kind(tuple[float, ...])
    ('`lstm`, `gru`', 'text or `null`', 'number, or a list of them')
    """
    arguments, origin = get_args(annotation), get_origin(annotation)
    if origin is Annotated:
        inner = [c for one in arguments[1:] for c in (one.metadata if isinstance(one, FieldInfo) else [one])]
        return kind(arguments[0], [*inner, *constraints])
    if origin in (Union, UnionType):
        return " or ".join(kind(one) for one in arguments)
    if origin is Literal:
        return ", ".join(f"`{choice}`" for choice in arguments)
    if origin is tuple:
        return f"{kind(arguments[0])}, or a list of them"
    plain = {str: "text", bool: "`true`, `false`", type(None): "`null`"}
    return plain[annotation] if annotation in plain else number(whole=annotation is int, constraints=constraints)


def number(*, whole: bool, constraints: Iterable[Any]) -> str:
    """Describe the range of a number.

    >>> number(whole=True, constraints=[Ge(0), Lt(2**32)]), number(whole=False, constraints=[Gt(0), Lt(1)])
    ('whole, 0 to 4,294,967,295', 'number > 0, < 1')
    """
    signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    stated = {name: [getattr(c, name) for c in constraints if hasattr(c, name)] for name in signs}
    bounds = {name: max(every) if name[0] == "g" else min(every) for name, every in stated.items() if every}
    if whole and "lt" in bounds:
        bounds["le"] = bounds.pop("lt") - 1
    if whole and {"ge", "le"} <= set(bounds):
        return f"whole, {bounds['ge']:,} to {bounds['le']:,}"
    words = ", ".join(f"{signs[name]} {bounds[name]:,}" for name in signs if name in bounds)
    return f"{'whole' if whole else 'number'} {words}".strip()


def commands_page(commands: Mapping[str, click.Command]) -> str:
    """Commands with help text and options; options that are parameters are listed by section."""
    lines = [
        "# Commands",
        "",
        "`python -m freqfilter COMMAND`, or `freqfilter COMMAND` if the package is installed.",
    ]
    for name, command in sorted(commands.items()):
        arguments = " ".join(str(p.metavar) for p in command.params if isinstance(p, click.Argument))
        usage = " ".join(filter(None, ["python -m freqfilter", name, arguments, "[--NAME VALUE …]"]))
        lines += ["", f"## {name}", "", *paragraphs(command), "", "```text", usage, "```"]
        lines += option_table(command)
    return "\n".join(lines) + "\n"


def option_table(command: click.Command) -> Iterator[str]:
    """Options of a command in a table, with one line for options that are parameters."""
    options = {
        option.opts[0].removeprefix("--"): option for option in command.params if isinstance(option, click.Option)
    }
    sections = {section: {name for home, name, _ in fields() if home == section} for section in Params.model_fields}
    taken = [section for section, names in sections.items() if names <= set(options)]
    own = [option for name, option in options.items() if not any(name in sections[section] for section in taken)]
    if own:
        yield from ["", "| option | default | description |", "|---|---|---|"]
        for option in own:
            words = f"{', '.join(option.opts)} {option.metavar or ''}".strip()
            yield row([f"`{words}`{{.option}}", default_of(option), sentence(str(option.help))])
    if taken:
        links = ", ".join(f"[{section}](parameters.md#{section})" for section in taken)
        yield from ["", f"All parameters of these sections are options too: {links}."]


def default_of(option: click.Option) -> str:
    """Default of an option, from its help text or its value."""
    if stated := re.search(r"\[default: (.*)\]$", str(option.help)):
        return stated[1]
    has_one = isinstance(option.default, str | int | float) and not option.is_flag
    return f"`{option.default}`" if has_one else "–"


def entry_points_page(entry_points: Mapping[str, Mapping[str, str]], commands: Mapping[str, click.Command]) -> str:
    """Entry points of the MLproject, with the commands that they start and their help texts."""
    lines = ["# Entry points", "", *ENTRY_POINTS_HEAD]
    for name, entry_point in entry_points.items():
        command = entry_point["command"].split()[-1]
        which = "" if name == "main" else f" -e {name}"
        usage = f"mlflow run . --env-manager local{which} [-P NAME=VALUE …]"
        lines += ["", f"## {name}", "", *paragraphs(commands[command]), "", "```text", usage, "```", ""]
        lines.append(f"It starts `{entry_point['command']}`, which takes [these options](commands.md#{command}).")
    return "\n".join(lines) + "\n"


ENTRY_POINTS_HEAD = [
    "Entry points of the `MLproject`, for `mlflow run`. It declares no parameters: MLflow passes each `-P NAME=VALUE`",
    "on as `--NAME VALUE`.",
]


def metrics_page(metrics: Mapping[str, Mapping[str, str]]) -> str:
    """Metrics with descriptions, a table for each group."""
    lines = ["# Metrics", "", "Metrics of runs in MLflow. A star stands for any name."]
    for group, descriptions in metrics.items():
        lines += ["", f"## {group}", "", "| metric | description |", "|---|---|"]
        lines += [row([f"`{name}`", sentence(text)]) for name, text in descriptions.items()]
    return "\n".join(lines) + "\n"


def python_page(title: str, modules: Iterable[str]) -> str:
    """Page with the docstrings of modules, which mkdocstrings inserts."""
    return "\n\n".join([f"# {title}", *(f"::: {module}" for module in modules)]) + "\n"


def paragraphs(command: click.Command) -> list[str]:
    """Split a command's help text into lines, one per paragraph."""
    return "\n\n".join(" ".join(part.split()) for part in str(command.help).split("\n\n")).split("\n")


def sentence(words: str) -> str:
    """Capitalize words and add a full stop.

    >>> sentence("samples of a window"), sentence("`val/mse` again"), sentence("1/20 of a period")
    ('Samples of a window.', '`val/mse` again.', '1/20 of a period.')
    """
    words = re.sub(r"\s*\[default: .*\]$", "", words.strip())
    return words[0].upper() + words[1:] + ("" if words.endswith(".") else ".")


def row(cells: Iterable[str]) -> str:
    """Format a row of a table."""
    return f"| {' | '.join(cells)} |"


def with_site_links(markdown: str, source: PurePosixPath, page: PurePosixPath) -> str:
    """Rewrite the links of a page for the site; links to files that are not on the site become plain text.

    Args:
        markdown: Text of the page.
        source: Its path in the project, to which its links are relative.
        page: Its path on the site.
    """

    def rewrite(link: re.Match[str]) -> str:
        image, words, target, anchor = link.groups(default="")
        if not target or "://" in target:
            return link[0]
        path = site_path(in_project(source, target))
        return f"{image}[{words}]({posixpath.relpath(path, page.parent)}{anchor})" if path else words

    return LINK.sub(rewrite, markdown)


def site_path(path: PurePosixPath) -> str | None:
    """Return a file's path on the site; None for a folder.

    >>> [site_path(PurePosixPath(path)) for path in ("README.md", "docs/figures.md", "params.yaml", "notebooks")]
    ['index.md', 'figures.md', 'files/params.yaml.txt', None]
    """
    if path.as_posix() in FROM_ROOT:
        return FROM_ROOT[path.as_posix()]
    if published(path):
        return path.relative_to("docs").as_posix()
    if (ROOT / path).is_dir():
        return None
    return f"files/{path}" + ("" if path.suffix in SHOWN_AS_THEY_ARE else ".txt")


def linked_outside(sources: Mapping[PurePosixPath, str]) -> list[PurePosixPath]:
    """Files that pages link to and MkDocs does not publish, sorted."""
    found = {
        in_project(source, link[3])
        for source, text in sources.items()
        for link in LINK.finditer(text)
        if link[3] and "://" not in link[3]
    }
    outside = {path for path in found if not published(path) and path.as_posix() not in FROM_ROOT}
    return sorted(path for path in outside if (ROOT / path).is_file())


def published(path: PurePosixPath) -> bool:
    """Whether MkDocs publishes a file by default: files in docs/ except Python code."""
    return path.parts[0] == "docs" and path.suffix != ".py"


def in_project(source: PurePosixPath, target: str) -> PurePosixPath:
    """Resolve a link of a page, relative to the project's root folder."""
    return PurePosixPath(posixpath.normpath((source.parent / target).as_posix()))


def with_mathml(markdown: str) -> str:
    """Convert formulas, in fences marked math and between $` and `$, to MathML, which browsers render.

    >>> "<mi>x</mi>" in with_mathml("the sample $`x`$")
    True
    """
    blocks = BLOCK_MATH.sub(lambda formula: convert(formula[1].strip(), display="block"), markdown)
    # Markdown treats <math> at the start of a line as a separate paragraph.
    return INLINE_MATH.sub(lambda formula: f"<span>{convert(formula[1])}</span>", blocks)
