"""Colours, grid and labels of every figure."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, StrMethodFormatter

from freqfilter.errors import one_line

logger = logging.getLogger(__name__)

# Okabe and Ito, "Color Universal Design", 2008: distinguishable with colour blindness.
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#7F7F7F"
# Neighbours differ in brightness too; yellow is omitted for its low contrast on white.
COLOURS = (BLUE, "#E69F00", GREEN, "#CC79A7", "#56B4E9", ORANGE)
LINES = ("-", "--", ":", "-.")
MAX_PANELS = 8  # components drawn in separate panels


@contextmanager
def default_style() -> Iterator[None]:
    """Context manager and decorator: Matplotlib's default settings, whatever the user's ``matplotlibrc`` states."""
    with matplotlib.style.context("default"):
        yield


def render(draw: Callable[[], Figure], name: str, *dpi: int) -> tuple[bytes, ...]:
    """Draw a figure and return it as PNG files.

    Args:
        draw: Draws the figure.
        name: Name of the figure, for the warning if it cannot be drawn.
        dpi: Dots per inch of each file.

    Returns:
        A file for each resolution; none if the figure cannot be drawn, since no job depends on a figure.
    """
    files = [io.BytesIO() for _ in dpi]
    try:
        with default_style():
            figure = draw()
            _apply_layout(figure, dpi[0])
            for file, resolution in zip(files, dpi, strict=True):
                figure.savefig(file, format="png", dpi=resolution)
    except Exception as error:  # of Matplotlib and its libraries, of any type
        logger.warning(f"{name} cannot be drawn: {type(error).__name__}: {one_line(error)}")
        return ()
    return tuple(file.getvalue() for file in files)


def _apply_layout(figure: Figure, dpi: int) -> None:
    """Apply the layout engine once; Matplotlib would run it twice for each file."""
    if engine := figure.get_layout_engine():
        figure.set_dpi(dpi)
        engine.execute(figure)
        figure.set_layout_engine("none")


def new_figure(width: float, height: float) -> Figure:
    """Create an empty figure; width and height in inches."""
    return Figure(figsize=(width, height), layout="constrained")


def colour(number: int) -> str:
    """Return the colour of a component or an estimator, by its index."""
    return COLOURS[number % len(COLOURS)]


def line_style(number: int) -> dict[str, Any]:
    """Return colour and line style of an index; the line style distinguishes indices with the same colour."""
    return {"color": colour(number), "linestyle": LINES[number // len(COLOURS) % len(LINES)]}


def label_axes(axes: Axes, xlabel: str, ylabel: str, title: str = "", *, legend: bool = False) -> None:
    """Set labels, title, grid and, if ``legend``, a legend."""
    axes.set(xlabel=xlabel, ylabel=ylabel, title=title)
    axes.grid(visible=True, which="both", alpha=0.3)
    if legend:
        axes.legend()


def verbatim(text: str) -> str:
    """Return a label that is drawn as ``text``: dollar signs are no formula, and no first underscore hides it."""
    escaped = text.replace("$", r"\$")
    return f" {escaped}" if escaped.startswith("_") else escaped


def log_scale(axes: Axes) -> None:
    """Make the vertical axis logarithmic, with ticks in plain numbers.

    Minor ticks are labelled where the axis spans less than a factor of 30; over more decades they would overlap.
    """
    axes.set_yscale("log")
    plain = StrMethodFormatter("{x:.3g}")
    axes.yaxis.set_major_formatter(plain)
    bottom, top = axes.get_ylim()
    axes.yaxis.set_minor_formatter(plain if top < 30 * bottom else NullFormatter())


def add_legend(figure: Figure, axes: Axes, n_columns: int) -> None:
    """Draw one legend for the figure, with the entries of ``axes``."""
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=n_columns)


def panels(
    n_panels: int, *, width: float = 12, row_height: float = 3.2, legend_height: float = 0.6
) -> tuple[Figure, list[Axes]]:
    """Create a figure with a grid of panels in up to two columns, in reading order; sizes in inches."""
    n_columns = min(2, n_panels)
    n_rows = -(-n_panels // 2)
    figure = new_figure(width, row_height * n_rows + legend_height)
    all_axes = list(figure.subplots(n_rows, n_columns, squeeze=False, sharey=True).flatten())
    for unused in all_axes[n_panels:]:
        unused.remove()
    return figure, all_axes[:n_panels]
