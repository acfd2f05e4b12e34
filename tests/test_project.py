"""Structure of the project: imports, versions, entry points, help texts and documentation."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from docs import mlproject, reference
from freqfilter.cli.command import GROUPS
from freqfilter.cli.main import load_commands
from freqfilter.config.load import fields, is_everyday
from tests.conftest import ROOT

# Imports go down only: a part may import those after it.
PARTS = [
    "cli",
    "api",
    "pipelines",
    "tracking",
    "plots",
    "evaluation",
    "progress",
    "training",
    "models",
    "data",
    "config",
    "atomic_io",
    "streams",
    "process",
    "errors",
    "tracked_names",
]
ONLY_IN = {
    "mlflow": ("tracking",),
    "matplotlib": ("plots", "tracking"),
    "yaml": ("config",),
    "click": ("cli",),
    "tqdm": ("progress",),
}
SOURCES = sorted((ROOT / "freqfilter").rglob("*.py"))


def imports(path: Path, *, for_types: bool = True) -> set[str]:
    """Names that a file imports, also inside functions, and unless ``for_types`` is false for the type checker."""
    return imports_of(ast.parse(path.read_text()), for_types=for_types)


def imports_of(tree: ast.Module, *, for_types: bool) -> set[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING") and not for_types:
            node.body = []
    found = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):  # the names may be modules
            found |= {str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def part_of(path: Path) -> str:
    return path.relative_to(ROOT / "freqfilter").parts[0].removesuffix(".py")


def test_imports_between_the_parts_go_down_only() -> None:
    seen = set()
    for path in SOURCES:
        part = part_of(path)
        if part in ("__init__", "__main__"):
            continue
        for module in imports(path) - {"freqfilter.__version__"}:
            if module.startswith("freqfilter."):
                other = module.split(".")[1]
                seen.add((part, other))
                assert PARTS.index(other) >= PARTS.index(part), f"{path.name} of {part} imports {module}"
    assert len(seen) > 20


def test_each_library_is_imported_in_its_part_only() -> None:
    # Imports for type annotations do not count.
    used = {(name.split(".")[0], part_of(path)) for path in SOURCES for name in imports(path, for_types=False)}
    for library, parts in ONLY_IN.items():
        found = {part for name, part in used if name == library}
        assert found
        assert found <= set(parts), f"{library} is imported in {found}"


def test_tracking_imports_nothing_of_evaluation() -> None:
    """Tracking takes plain values, so that commands which compute nothing do not import evaluation."""
    for path in SOURCES:
        if part_of(path) == "tracking":
            assert not [module for module in imports(path) if module.startswith("freqfilter.evaluation")], path.name


def test_importing_the_package_changes_neither_environment_nor_signals() -> None:
    code = (
        "import os, signal, pkgutil, importlib, freqfilter\n"
        "before = dict(os.environ), [signal.getsignal(number) for number in range(1, 32)]\n"
        "for room in ('tracking', 'cli', 'config', 'data', 'process', 'progress', 'api'):\n"
        "    importlib.import_module('freqfilter.' + room)\n"
        "importlib.import_module('freqfilter.cli.main').load_commands()\n"
        "assert before == (dict(os.environ), [signal.getsignal(number) for number in range(1, 32)])\n"
    )
    environment = os.environ | {"MLFLOW_TRACKING_URI": "https://user:password@example.org"}
    environment.pop("MLFLOW_DISABLE_TELEMETRY", None)
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)


def test_modules_have_no_circular_imports() -> None:
    names = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in SOURCES}
    edges = {name: {m for m in imports(path) if m in names and m != name} for name, path in names.items()}
    assert sum(map(len, edges.values())) > 50
    while edges:
        leaves = {name for name, targets in edges.items() if not targets & set(edges)}
        assert leaves, f"circular imports among {sorted(edges)}"
        edges = {name: targets for name, targets in edges.items() if name not in leaves}


def requirements(*groups: str) -> dict[str, Requirement]:
    """The requirements of pyproject.toml by normalized name: the dependencies, or those of extras."""
    stated = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [line for group in groups for line in stated["optional-dependencies"][group]] or stated["dependencies"]
    found = [Requirement(line) for line in lines]
    return {canonicalize_name(requirement.name): requirement for requirement in found if not requirement.extras}


def locked() -> dict[str, str]:
    """The exact versions of constraints.txt by normalized name."""
    pins = [line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines()]
    return {canonicalize_name(name): version for name, version in pins}


def test_dependencies_are_ranges_with_lower_bounds() -> None:
    """Installed beside other packages, freqfilter leaves their versions as they are where it can."""
    for name, requirement in (requirements() | requirements("onnx", "tensorboard")).items():
        operators = sorted(part.operator for part in requirement.specifier)
        assert operators in ([">="], ["<", ">="]), name
    for name, requirement in requirements("dev", "docs").items():
        assert not requirement.specifier, f"{name}: the version of a tool belongs in constraints.txt alone"


def test_constraints_hold_a_version_in_every_range() -> None:
    found = locked()
    required = requirements() | requirements("onnx", "tensorboard", "dev", "docs")
    assert len(found) > len(required) > 30
    assert required.keys() - found.keys() == set()
    assert [name for name, stated in required.items() if not stated.specifier.contains(found[name])] == []
    (build,) = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
    assert build == f"hatchling=={found['hatchling']}"


def test_conda_yaml_repeats_the_versions_of_constraints_and_a_full_python_version() -> None:
    conda = yaml.safe_load((ROOT / "conda.yaml").read_text())
    constraints, *pins = next(line["pip"] for line in conda["dependencies"] if isinstance(line, dict))
    assert constraints == "-c constraints.txt"
    found = locked()
    names = [*requirements(), *requirements("onnx")]
    assert [(canonicalize_name(name), version) for name, _, version in (pin.partition("==") for pin in pins)] == [
        (name, found[name]) for name in names
    ]
    python = next(line for line in conda["dependencies"] if str(line).startswith("python="))
    assert re.fullmatch(r"python=3\.11\.\d+", python)


def test_everything_of_this_project_installs_with_the_constraints() -> None:
    files = ["Makefile", ".ci/run", *(path.relative_to(ROOT) for path in (ROOT / ".github").rglob("*.yml"))]
    installs = [line for file in files for line in re.findall(r".*\bpip install\b.*", (ROOT / file).read_text())]
    assert len(installs) >= 2
    assert [line for line in installs if "-c constraints.txt" not in line] == []


def test_packages_of_extras_are_imported_only_inside_functions() -> None:
    """Without an extra everything else works."""
    names = {name.partition("-")[0] for name in requirements("onnx", "tensorboard")}
    for path in SOURCES:
        tree = ast.parse(path.read_text())
        tree.body = [node for node in tree.body if not isinstance(node, ast.FunctionDef | ast.ClassDef)]
        assert {name.split(".")[0] for name in imports_of(tree, for_types=False)} & names == set(), path.name
    assert any({name.split(".")[0] for name in imports(path)} & names for path in SOURCES)


def test_every_dependency_has_a_reason() -> None:
    stated = [*requirements().values(), *requirements("onnx", "tensorboard", "dev", "docs").values()]
    names = {line.name for line in stated if not re.match(r"types-|.*-stubs", line.name)}
    page = (ROOT / "docs" / "architecture.md").read_text()
    table = page[page.index("## Dependencies") :]
    assert len(names) > 20
    assert {name for name in names if not re.search(rf"\b{name}\b", table)} == set()


def test_every_job_that_records_a_run_is_an_entry_point_and_no_other_command_is() -> None:
    project = yaml.safe_load((ROOT / "MLproject").read_text())
    started = set()
    for name, entry_point in project["entry_points"].items():
        assert "parameters" not in entry_point  # a default would be duplicated
        *program, command = entry_point["command"].split()
        assert program == ["python", "-m", "freqfilter"]
        assert command == ("train" if name == "main" else name)
        started.add(command)
    recording_none = {"copy", "doctor", "history", "init_store", "serve", "sync", "ui"}
    assert started == set(load_commands().commands) - recording_none - {"resume"}  # `mlflow run . --run-id RUN_ID`


def test_the_comments_of_the_mlproject_are_those_of_params_yaml() -> None:
    text = (ROOT / "MLproject").read_text()
    assert mlproject.FIRST in text
    assert mlproject.with_block(text) == text, "make mlproject"
    assert set(mlproject.EXAMPLES) == set(yaml.safe_load(text)["entry_points"])
    assert sum(is_everyday(field) for _, _, field in fields()) == 12


def test_help_lists_every_command_once_under_three_headings() -> None:
    assert sorted(name for names in GROUPS.values() for name in names) == sorted(load_commands().commands)
    shown = CliRunner().invoke(load_commands(), ["--help"]).output
    assert [line for line in shown.splitlines() if re.fullmatch(r"(Everyday|More|Upkeep):", line)] == [
        "Everyday:", "More:", "Upkeep:"
    ]  # fmt: skip
    assert "..." not in shown.partition("Everyday:")[2], "a help text is longer than its line"


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; sys.argv = ['freqfilter', '--help']\n"
        "from freqfilter.cli.main import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print(sorted({'torch', 'mlflow', 'matplotlib', 'pandas', 'numpy', 'psutil'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.slow
@pytest.mark.parametrize("command", ["history", "doctor", "init_store", "sync"])
def test_a_command_that_computes_nothing_imports_neither_pytorch_nor_matplotlib(command: str, folder: Path) -> None:
    """SciPy is imported by MLflow itself."""
    code = (
        f"import sys; sys.argv = ['freqfilter', {command!r}]\n"
        "from freqfilter.cli.main import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print(sorted({'torch', 'matplotlib', 'sklearn'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=folder, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_train_help_shows_the_everyday_parameters_and_help_all_every_one_with_its_default() -> None:
    short, whole = (CliRunner().invoke(load_commands(), ["train", word]).output for word in ("--help", "--help-all"))
    stated = yaml.safe_load((ROOT / "params.yaml").read_text())
    everyday = {name for _, name, field in fields() if is_everyday(field)}
    assert set(re.findall(r"--(\w+) VALUE", short)) == everyday
    assert len(short.splitlines()) <= 45
    assert short.splitlines()[-1] == "--help-all shows every parameter."
    text = " ".join(whole.split())
    for section, values in stated.items():
        assert f"Parameters, {section}:" in text
        for name in values:
            assert re.search(rf"--{name} VALUE .*?\[default: ", text), name


def test_make_help_lists_every_target() -> None:
    listed = subprocess.run(["make", "-s", "help"], capture_output=True, text=True, cwd=ROOT, check=True).stdout
    phony = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert phony
    assert {line.split()[1] for line in listed.splitlines()} == set(phony[1].split())


def test_every_target_works_in_a_folder_whose_name_has_spaces_and_removes_only_what_it_made(tmp_path: Path) -> None:
    folder = tmp_path / "a b 'c"
    programs = folder / ".venv" / "bin"
    programs.mkdir(parents=True)
    (tmp_path / "a").mkdir()
    kept = [tmp_path / "a" / "kept", folder / "mlflow.db", folder / "build" / "kept", folder / "runs" / "kept"]
    for path in kept:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, folder)
    for name in ("python", "pip", "mlflow", "ruff", "mypy", "mkdocs"):
        (programs / name).write_text('#!/bin/sh\n[ "$(pwd)" ] && echo "$0 PIP_USER=$PIP_USER" >> "$CALLS"\n')
        (programs / name).chmod(0o755)
    calls = tmp_path / "calls"
    targets = [line.split()[0] for line in re.findall(r"^[a-z_-]+:.*##", (ROOT / "Makefile").read_text(), re.MULTILINE)]
    targets = [target.rstrip(":") for target in targets if target.rstrip(":") not in ("help", "clean")]
    for target in [*targets, "clean"]:
        done = subprocess.run(
            ["make", "-s", target, "SEED=1"],
            cwd=folder,
            env=os.environ | {"CALLS": str(calls), "PIP_USER": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{target}: {done.stderr}"
    called = calls.read_text()
    assert "PIP_USER=no" in called
    assert "PIP_USER=1" not in called
    assert {Path(line.split(" PIP_USER")[0]).name for line in called.splitlines()} >= {
        "python",
        "pip",
        "mlflow",
        "ruff",
    }
    assert all(path.exists() for path in kept)
    assert not (folder / ".venv").exists()


WRITTEN = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md"))
PAGES = ["README.md", "CONTRIBUTING.md", *WRITTEN]
MADE_WITH_THE_SITE = {ROOT / "docs" / name for name in reference.reference_pages()}


@pytest.mark.parametrize("path", PAGES)
def test_links_to_files_of_the_project_are_valid(path: str) -> None:
    text = (ROOT / path).read_text()
    links = [link.split("#")[0] for link in re.findall(r"\]\(([^)]+)\)", text) if "://" not in link]
    links = [link for link in links if link]
    assert links
    targets = [(ROOT / path).parent.joinpath(link).resolve() for link in links]
    assert [target for target in targets if not target.exists() and target not in MADE_WITH_THE_SITE] == []


def test_the_architecture_page_names_every_module() -> None:
    text = (ROOT / "docs/architecture.md").read_text()
    modules = {path.relative_to(ROOT / "freqfilter").as_posix() for path in SOURCES if not path.name.startswith("__")}
    named, folder = set(), ""
    for part, module in re.findall(r"^\|(?: `([^`]+)`)? +\|(?: `([^`]+\.py)`)? \|", text, flags=re.MULTILINE):
        folder = part or folder
        named.add(folder + module)
    assert len(named) > 40
    assert named == modules


def test_every_test_that_a_page_names_exists() -> None:
    named = {name for page in PAGES for name in re.findall(r"`(test_\w+)`", (ROOT / page).read_text())}
    written = {
        name for path in (ROOT / "tests").rglob("test_*.py") for name in re.findall(r"def (test_\w+)", path.read_text())
    }
    assert len(named) > 30
    assert named - written - {name for _, name, _ in fields()} == set()


def test_every_figure_is_in_the_documentation_once() -> None:
    files = ("freqfilter/plots/catalog.py", "freqfilter/tracked_names.py")
    gallery = "".join((ROOT / file).read_text() for file in files)
    kept = {name.removesuffix(".png") for name in re.findall(r"\b(\d\d_\w+)", gallery)}
    shown = re.findall(r"\(pictures/(\d\d_\w+)\.png\)", (ROOT / "docs/figures.md").read_text())
    assert len(kept) == 15
    assert sorted(shown) == sorted(kept)
