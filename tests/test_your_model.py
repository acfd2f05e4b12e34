"""The page on custom models: its changes apply to the project, and its commands run."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient

from tests import zygote
from tests.conftest import ROOT, all_runs

pytestmark = pytest.mark.slow

PAGE = (ROOT / "docs/how-to/your_model.md").read_text()
QUICK = {"windows_per_epoch": "500", "threads": "1"}


def fences(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def apply(change: str, project: Path) -> None:
    """Replace the lines of a change that begin with ``-`` by those that begin with ``+``."""
    name = re.search(r"^\+\+\+ b/(.*)$", change, re.MULTILINE)
    assert name
    lines = [line for line in change.splitlines() if not re.match(r"---|\+\+\+|@@", line)]
    before, after = ("\n".join(line[1:] for line in lines if line[:1] in (sign, " ")) for sign in "-+")
    file = project / name[1]
    text = file.read_text()
    assert text.count(before) == 1, f"{name[1]} does not hold {before!r}"
    file.write_text(text.replace(before, after))


def test_the_steps_lead_to_a_registered_model_that_loads(folder: Path, tmp_path: Path) -> None:
    project = tmp_path / "project"
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in files.splitlines():
        if name.startswith(("freqfilter/", "recipes/")) or name in ("params.yaml", "MLproject", "conda.yaml"):
            (project / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, project / name)
    for change in fences("diff"):
        apply(change, project)
    data, use = fences("python")
    environment = os.environ | {"PYTHONPATH": str(project)} | zygote.stand_ins(tmp_path / "stand_ins")
    (folder / "data.py").write_text(data)
    zygote.run([sys.executable, "data.py"], cwd=folder, check=True)
    for command in "".join(fences("sh")).splitlines():
        words = shlex.split(command)
        if words[:2] == ["mlflow", "run"]:
            words = [sys.executable, "-m", "mlflow", "run", str(project), *words[3:]]
            words += [word for name, value in QUICK.items() for word in ("-P", f"{name}={value}")]
        else:
            words[0] = sys.executable
        done = zygote.run(words, cwd=folder, env=environment)
        assert done.returncode == 0, done.stdout + done.stderr
    first, second = all_runs()[:2]
    assert [run.info.status for run in (first, second)] == ["FINISHED", "FINISHED"]
    assert (first.data.params["cell"], second.data.params["loss"]) == ("conv", "log_cosh")
    assert len(MlflowClient().search_model_versions("name = 'mine'")) == 2
    (folder / "use.py").write_text(data + use)
    printed = zygote.run([sys.executable, "use.py"], cwd=folder, env=environment)
    assert float(printed.stdout) == pytest.approx(first.data.metrics["test/mse"], rel=1e-4), printed.stderr
    flavor = (
        "import mlflow, numpy as np, torch\n"
        "x = np.load('mine.npz')['X_test'][:3, :7]\n"
        "found = mlflow.pytorch.load_model('models:/mine/1')(torch.from_numpy(x)).detach().numpy()\n"
        "np.save('found.npy', [found, mlflow.pyfunc.load_model('models:/mine/1').predict(x)])"
    )
    zygote.run([sys.executable, "-c", flavor], cwd=folder, check=True)
    of_program, of_code = np.load(folder / "found.npy")
    np.testing.assert_allclose(of_program, of_code, rtol=0, atol=1e-6)
