"""The documentation's site: it is built without warnings, and its reference agrees with the code."""

from __future__ import annotations

import doctest
import os
import re
import subprocess
import sys
from pathlib import Path, PurePosixPath
from types import ModuleType

import click
import pytest

from docs import examples, reference
from freqfilter.cli.main import load_commands
from freqfilter.config.load import fields
from tests.conftest import ROOT


def test_the_reference_names_every_parameter_command_option_and_entry_point() -> None:
    pages = reference.reference_pages()
    for _, name, field in fields():
        line = next(line for line in pages["reference/parameters.md"].splitlines() if f'id="{name}"' in line)
        assert line.count(" | ") == 3
        assert reference.sentence(str(field.description)) in line
    for name, command in load_commands().commands.items():
        assert f"\n## {name}\n" in pages["reference/commands.md"]
        for option in command.params:
            if isinstance(option, click.Option) and option.name not in {name for _, name, _ in fields()}:
                assert option.opts[0] in pages["reference/commands.md"]
    assert "`python -m freqfilter promote`" in pages["reference/entry_points.md"]


def test_the_reference_has_ranges_and_links_to_parameters() -> None:
    pages = reference.reference_pages()
    parameters = pages["reference/parameters.md"]
    assert "| `10000` | whole, 2 to 1,000,000,000 | Samples of a realization. |" in parameters
    assert (
        "| `1` | number > 0, or a list of them | Amplitude of each component, or its root mean square; one"
        in parameters
    )
    of_doctor, of_evaluate = (
        re.search(rf"## {name}\n(.*?)\n## ", pages["reference/commands.md"], re.DOTALL)
        for name in ("doctor", "evaluate")
    )
    assert of_doctor
    assert of_evaluate
    assert "| `--run_dir VALUE`{.option} | runs | Folder of the runs' working files. |" in of_doctor[1]
    assert "parameters.md" not in of_doctor[1]
    assert "[tracking](parameters.md#tracking)." in of_evaluate[1]


def test_links_are_rewritten_for_the_site() -> None:
    source, page = PurePosixPath("docs/how-to/jobs.md"), PurePosixPath("how-to/jobs.md")
    links = {
        "[a](../figures.md#training)": "[a](../figures.md#training)",
        "[a](../../README.md)": "[a](../index.md)",
        "[a](../../recipes/original.yaml)": "[a](../files/recipes/original.yaml.txt)",
        "![a](../../benchmarks/results.png)": "![a](../files/benchmarks/results.png)",
        "[a](../reference.py)": "[a](../files/docs/reference.py.txt)",
        "[notebooks](../../notebooks)": "notebooks",
        "[a](https://mlflow.org)": "[a](https://mlflow.org)",
        "[a](#parameters)": "[a](#parameters)",
    }
    for link, expected in links.items():
        assert reference.with_site_links(link, source, page) == expected


@pytest.mark.parametrize("module", [reference, examples])
def test_doctests_of_the_documentation_code_pass(module: ModuleType) -> None:
    done = doctest.testmod(module)
    assert done.attempted > 0
    assert done.failed == 0


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as `make docs` does: a broken link or anchor is an error."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


def test_the_site_loads_no_external_resources(site: Path) -> None:
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 30
    loaded = re.compile(r"<(?:script|link|img|iframe)\b[^>]*(?:src|href)=[\"']?(?:https?:)?//[^>]*>")
    for page in pages:
        assert loaded.findall(page.read_text()) == [], page.name


def test_formulas_are_mathml_and_files_outside_docs_are_on_the_site(site: Path) -> None:
    limit = (site / "explanation" / "limit.html").read_text()
    assert limit.count('display="block"') >= 3
    assert "```math" not in limit
    assert "$`" not in limit
    assert (site / "files" / "params.yaml.txt").read_text() == (ROOT / "params.yaml").read_text()
