"""Colours, grid and labels of every figure."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, StrMethodFormatter

# Okabe and Ito, "Color Universal Design", 2008: told apart by colour-blind readers too.
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#7F7F7F"
# Neighbours differ in brightness too; their yellow is left out, it vanishes on white.
COLOURS = (BLUE, "#E69F00", GREEN, "#CC79A7", "#56B4E9", ORANGE)
LINES = ("-", "--", ":", "-.")
MAX_PANELS = 8  # components that get a panel of their own


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, inches."""
    return Figure(figsize=(width, height), layout="constrained")


def colour(number: int) -> str:
    """The colour of the component, or of the extractor, with this number."""
    return COLOURS[number % len(COLOURS)]


def line(number: int) -> str:
    """The line style that tells apart those that share a colour."""
    return LINES[number // len(COLOURS) % len(LINES)]


def format_hz(frequency_hz: float) -> str:
    """A frequency in words."""
    return f"{frequency_hz:g} Hz"


def label_axes(axes: Axes, *, xlabel: str, ylabel: str, title: str = "", legend: bool = False) -> None:
    """Words, grid and, where asked for, a legend."""
    axes.set(xlabel=xlabel, ylabel=ylabel, title=title)
    axes.grid(visible=True, which="both", alpha=0.3)
    if legend:
        axes.legend()


def log_scale(axes: Axes) -> None:
    """Make the vertical axis logarithmic, with ticks in plain numbers.

    Within a decade or so the minor ticks are all there is to read; over several they would overlap.
    """
    axes.set_yscale("log")
    plain = StrMethodFormatter("{x:.3g}")
    axes.yaxis.set_major_formatter(plain)
    bottom, top = axes.get_ylim()
    axes.yaxis.set_minor_formatter(plain if top < 30 * bottom else NullFormatter())


def panels(figure: Figure, n_panels: int, *, share_y: bool = True) -> list[Axes]:
    """A grid of panels in up to two columns, in reading order."""
    n_columns = min(2, n_panels)
    n_rows = -(-n_panels // n_columns)
    grid = figure.subplots(n_rows, n_columns, squeeze=False, sharey=share_y)
    every: list[Axes] = list(grid.flatten())
    for spare in every[n_panels:]:
        spare.remove()
    return every[:n_panels]
