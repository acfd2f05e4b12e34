"""Figures are drawn with settings of their own, and one that cannot be drawn ends no job."""

from __future__ import annotations

import inspect
import io
import logging
import os
import subprocess
import sys
from pathlib import Path

import matplotlib as mpl
import PIL.Image
import pytest
from matplotlib.figure import Figure
from mlflow import MlflowClient

from freqfilter.plots import data, evaluation, limit, training
from freqfilter.plots.style import default_style, label_axes, new_figure, render
from freqfilter.tracking.lifecycle import Job, open_run
from tests.conftest import ROOT
from tests.tracking.test_tracking import tracking_params

USER_SETTINGS = {
    "text.usetex": True,
    "savefig.bbox": "tight",
    "savefig.facecolor": "black",
    "figure.dpi": 37.0,
    "figure.autolayout": True,
    "font.size": 30.0,
    "font.family": ["serif"],
    "lines.linewidth": 9.0,
    "axes.grid": True,
}


@default_style()
def draw() -> Figure:
    figure = new_figure(4, 3)
    axes = figure.subplots()
    axes.plot([0, 1], [1, 3], label="50 % of $x$")
    label_axes(axes, "time", "amplitude", "a_title", legend=True)
    return figure


def test_the_settings_of_the_user_do_not_change_a_figure_and_stay() -> None:
    expected = render(draw, "figure", 120, 60)
    assert [PIL.Image.open(io.BytesIO(file)).size for file in expected] == [(480, 360), (240, 180)]
    with mpl.rc_context(USER_SETTINGS):
        before = dict(mpl.rcParams)
        figure = draw()
        assert render(draw, "figure", 120, 60) == expected
        assert dict(mpl.rcParams) == before
    assert not figure.axes[0].title.get_usetex()
    assert figure.axes[0].title.get_fontsize() < 20


def test_every_function_that_draws_has_the_default_style() -> None:
    found = 0
    for module in (data, evaluation, limit, training):
        for name, function in inspect.getmembers(module, inspect.isfunction):
            if function.__module__ == module.__name__ and function.__annotations__.get("return") == "Figure":
                assert hasattr(function, "__wrapped__"), f"{name} draws with the user's settings"
                found += 1
    assert found > 15


@pytest.mark.parametrize("backend", ["nonsense", "module://matplotlib_inline.backend_inline", "pdf"])
def test_figures_are_drawn_whatever_backend_the_environment_names(backend: str, tmp_path: Path) -> None:
    """In a folder with a ``matplotlibrc``, without pyplot; a backend that exists stays the user's."""
    lines = [
        f"{name}: {', '.join(value) if isinstance(value, list) else value}" for name, value in USER_SETTINGS.items()
    ]
    (tmp_path / "matplotlibrc").write_text("\n".join(lines))
    code = (
        "import sys, io, freqfilter.plots.limit as limit, matplotlib, os, pandas as pd\n"
        "from freqfilter.plots.style import render\n"
        "table = pd.DataFrame({'1hz': [0.2, 0.3]})\n"
        "(content,) = render(lambda: limit.decision({'candidate': table}, None), 'figure', 50)\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
        "import PIL.Image\n"
        "print(PIL.Image.open(io.BytesIO(content)).size, matplotlib.rcParams['font.size'], os.environ['MPLBACKEND'])\n"
        "if os.environ['MPLBACKEND'] == 'pdf': assert matplotlib.get_backend() == 'pdf'"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"MPLBACKEND": backend, "PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"(500, 210) 30.0 {backend}\n"


def test_a_figure_that_cannot_be_drawn_is_a_line_and_ends_no_run(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> Figure:
        raise ValueError("Image size of 1e9 pixels\nis too large")

    with (
        caplog.at_level(logging.WARNING, "freqfilter"),
        open_run(tracking_params(folder), Job("test", "a name")) as run,
    ):
        run.log_figure(fail, "visualizations/a.png", key="a")
        run.log_figure(draw, "visualizations/b.png", key="b")
    assert caplog.messages == [
        "visualizations/a.png cannot be drawn: ValueError: Image size of 1e9 pixels is too large"
    ]
    assert MlflowClient().get_run(run.run_id).info.status == "FINISHED"
    listed = [item.path for item in MlflowClient().list_artifacts(run.run_id, "visualizations")]
    assert listed == ["visualizations/b.png"]
