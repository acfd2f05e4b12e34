"""A run that nothing has interrupted, made once."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, all_runs, options
from tests.recovery.comparing import RICH, Outcome


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> Outcome:
    """What the rich setting comes to."""
    folder = tmp_path_factory.mktemp("whole")
    shutil.copy(empty_store, folder / "mlflow.db")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
        patch.setenv("XDG_CACHE_HOME", str(empty_store.parent / "cache"))
        patch.setenv("PYTHONPATH", str(ROOT))
        command = [sys.executable, "-m", "freqfilter", "train", *options(RICH)]
        subprocess.run(command, cwd=folder, check=True, env=os.environ)
        return Outcome.of(all_runs()[-1])
