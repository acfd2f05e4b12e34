"""The notebooks execute, have the expected results, and store only portable outputs."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell

from tests import zygote
from tests.conftest import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
# Assertions to run at the end of each notebook, with its variables.
FACTS = {
    "1_signals_and_limit": """
        least = mse["all"]
        assert least["limit_two_sided"] < least["limit"] < least["linear_mmse"] < least["zero"]
        assert abs(current.causal.mse - 0.208) < 0.01
        errors = [scores.two_sided.mse for scores in by_length.values()]
        assert errors[0] > 0.25
        assert errors[-1] < 0.001
    """,
    "2_the_leak": """
        leaky, independent = (trained[name] for name in ("random split", "independent split"))
        assert "validation data leak from training" in leaky.diagnoses["leak"]
        assert not {"leak", "overlap"} & set(independent.diagnoses)
        assert leaky.overlaps[0].share == 1
        assert "overlap" in leaky.diagnoses
        assert not any(overlap.n_shared for overlap in independent.overlaps)
        assert leaky.metrics["best/val_mse"] < 0.7 * leaky.val_limit_mse
        assert leaky.metrics["best/holdout_mse"] > leaky.metrics["test/zero_mse"]
        assert leaky.metrics["test/mse"] > 1.2 * independent.metrics["test/mse"]
    """,
    "3_training_and_comparing": """
        assert set(compared.parameters.index) == {"seed", "cell", "noise", "targets"}
        assert [len(result.history) for result in sweep.results.values()] == 4 * [8]
        assert sweep.table["val_mse_over_limit"].idxmax() == "noise=fixed"
        assert sweep.table["train_loss"].idxmin() == "noise=fixed"
        assert "worse by" in next(line for line in compared.remarks if line.startswith("noise=fixed"))
    """,
    "4_promoting_and_loading": """
        assert [decision.outcome for decision in (first, second, third)] == ["PROMOTED", "REJECTED", "PROMOTED"]
        assert "near the limit" in second.reason
        assert (done.before.version, done.after.version) == (3, 1)
        assert champion.params.training.epochs == version.params.training.epochs
        assert np.abs(one_by_one - estimate).max() < 1e-5
        assert np.mean((estimate - target) ** 2) < 0.5 * np.mean(target ** 2)
        assert freqfilter.history()["event"].tolist()[3:] == ["PROMOTED", "REJECTED", "PROMOTED", "ROLLED BACK"]
    """,
    "5_the_store_of_mlflow_run": """
        assert runs["status"].tolist() == 2 * ["FINISHED"]
        assert runs["params.learning_rate"].tolist() == ["0.01", "0.001"]
        assert estimates.shape == (4, 25, 1)
        assert len(component) == 100
    """,
}
LOCAL_PATH = re.compile(r"(?<![\w.])/(?:bin|data|home|mnt|opt|root|srv|tmp|usr|Users|var|work)\b|[A-Z]:\\")


def figures(notebook: NotebookNode) -> int:
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return sum("image/png" in output.get("data", {}) for output in outputs)


def texts(notebook: NotebookNode) -> list[str]:
    """Return the text outputs, without figures, whose Base64 could match any pattern."""
    found = []
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            found += [output.get("text", ""), *(text for kind, text in data.items() if not kind.startswith("image/"))]
    return found


def test_there_is_a_fact_for_each_notebook() -> None:
    assert [path.stem for path in NOTEBOOKS] == sorted(FACTS)


@pytest.fixture
def forked_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fork kernels from the zygote, and from them what they start."""
    stand_ins = zygote.stand_ins(tmp_path / "stand_ins")

    def fork(command: list[str], *, env: dict[str, str], cwd: str, **streams: Any) -> zygote.Popen:
        assert command[:2] == [sys.executable, "-m"]
        del env["JPY_PARENT_PID"]  # a fork's parent is the zygote: a kernel whose parent is another than this ends
        given = {name: streams[name] for name in ("stdin", "stdout", "stderr")}
        return zygote.Popen(command, env=env | stand_ins, cwd=cwd, start_new_session=True, **given)

    monkeypatch.setattr("jupyter_client.launcher.Popen", fork)


@pytest.mark.slow
@pytest.mark.parametrize("name", FACTS)
def test_a_notebook_runs_and_has_the_expected_results(name: str, folder: Path, forked_kernels: None) -> None:
    notebook = nbformat.read(ROOT / f"notebooks/{name}.ipynb", as_version=4)
    n_figures = figures(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = []
    notebook.cells.append(new_code_cell(re.sub(r"^ +", "", FACTS[name], flags=re.MULTILINE)))
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(folder)}}).execute()
    assert figures(notebook) == n_figures >= 1


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_stored_outputs_are_complete_small_and_without_local_paths(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert path.stat().st_size < 500_000
    assert notebook.metadata == {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1)), "make notebooks"
    assert all(cell.metadata == {} for cell in notebook.cells)
    assert {output.output_type for cell in code for output in cell.outputs} <= {
        "stream",
        "display_data",
        "execute_result",
    }
    assert "stderr" not in {output.get("name") for cell in code for output in cell.outputs}
    outputs = texts(notebook)
    assert outputs
    assert [text for text in outputs if LOCAL_PATH.search(text)] == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_links_of_a_notebook_exist(path: Path) -> None:
    markdown = "".join(cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "markdown")
    links = [link.split("#")[0] for link in re.findall(r"\]\(([^)]+)\)", markdown) if "://" not in link]
    assert links
    assert [link for link in links if not (path.parent / link).exists()] == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_call_the_package_and_define_nothing(path: Path) -> None:
    code = [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    assert [source for source in code if re.search(r"^\s*(def|class|lambda)\b|= lambda", source, re.MULTILINE)] == []


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("sqlite:////tmp/x/mlflow.db", True),
        ("file at /home/user/x.py:21: Warning", True),
        ("[/root/.cache]", True),
        ("C:\\Users\\user", True),
        ("models:/frequency-filter/1", False),
        ("kept in work/the_leak, 1/tmp", False),
    ],
)
def test_local_paths_are_recognized(text: str, found: bool) -> None:
    assert bool(LOCAL_PATH.search(text)) is found
