"""Results of the benchmarks as JSON, a table and figures."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.ticker import LogLocator, NullFormatter
from tabulate import tabulate

from benchmarks.measure import Row
from freqfilter.atomic_io import atomic_write
from freqfilter.plots.style import BLUE, GREY, ORANGE, label_axes, new_figure

HOME = Path(__file__).parent
RESULTS, FIGURE, GROWTH = HOME / "results.json", HOME / "results.png", HOME / "growth.png"
RATE = "1/s"  # unit of rates, for which larger is better
HEADERS = ("side", "figure", "median", "least to most", "unit", "against", "ratio")


def read() -> dict[str, Any]:
    """Read stored results by part; empty if there are none."""
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else {}


def write(results: Mapping[str, Any]) -> None:
    """Write all results atomically."""
    with atomic_write(RESULTS) as file:
        file.write((json.dumps(results, indent=1, ensure_ascii=False) + "\n").encode())


def table(rows: Sequence[Row]) -> str:
    """Format medians, spread and ratios of a part as Markdown."""
    lines = []
    for row in rows:
        grown = ", ".join(f"{name}={value:g}" for name, value in row.setting.items())
        spread = f"{row.spread[0]:.4g} to {row.spread[1]:.4g}" if row.spread else ""
        median = "not reached" if row.median is None else f"{row.median:.4g}"
        ratio = row.ratio(rows)
        lines.append(
            (
                f"{row.side} {grown}".strip(),
                row.figure,
                median,
                spread,
                row.unit,
                row.against if row.against != row.side else "",
                "" if ratio is None or row.against == row.side else f"{ratio:.3g}",
            )
        )
    return tabulate(lines, headers=HEADERS, tablefmt="github", disable_numparse=True)


def slopes(rows: Sequence[Row]) -> dict[str, float]:
    """Exponents of growth by side and figure, from the two largest settings; 1: linear."""
    exponents = {}
    for grown in _grown(rows):
        (x1, y1), (x2, y2) = grown.points[-2:]
        exponents[grown.name] = math.log(y2 / y1) / math.log(x2 / x1)
    return exponents


def draw(parts: Mapping[str, Sequence[Row]]) -> None:
    """Draw all ratios in one figure, and growth in another."""
    compared = {
        f"{part}: {row.side}, {row.figure}": (row, row.ratio(rows))
        for part, rows in parts.items()
        for row in rows
        if row.against not in (None, row.side)
    }
    known = [(label, ratio) for label, (_, ratio) in compared.items() if ratio is not None]
    good = {label: (ratio >= 1) == (compared[label][0].unit == RATE) for label, ratio in known}
    if known:
        figure = new_figure(10, 1 + 0.35 * len(known))
        axes = figure.subplots()
        labels, values = zip(*reversed(known), strict=True)
        axes.barh(labels, values, color=[BLUE if good[label] else ORANGE for label in labels])
        axes.axvline(1, color=GREY)
        for place, value in enumerate(values):
            axes.text(value, place, f" {value:.2g}", va="center")
        label_axes(axes, xlabel="ratio to the side that it is compared with; 1: equal", ylabel="")
        figure.savefig(FIGURE, dpi=120)
    grown = [grown for rows in parts.values() for grown in _grown(rows)]
    if grown:
        exponents = {name: slope for rows in parts.values() for name, slope in slopes(rows).items()}
        figure = new_figure(12, 2.6 * math.ceil(len(grown) / 3))
        every = np.atleast_1d(figure.subplots(math.ceil(len(grown) / 3), 3)).flatten()
        for axes, each in zip(every, grown, strict=False):
            x, y = zip(*each.points, strict=True)
            axes.loglog(x, y, "o-", color=BLUE)
            axes.set_xticks(x, [f"{value:g}" for value in x])
            axes.set_ylim(min(y) / 1.5, max(y) * 1.5)
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter("{x:g}")
            for axis in (axes.xaxis, axes.yaxis):
                axis.set_minor_formatter(NullFormatter())
            label_axes(
                axes, xlabel=each.setting, ylabel=each.unit, title=f"{each.figure}, power {exponents[each.name]:.2f}"
            )
        for spare in every[len(grown) :]:
            spare.remove()
        figure.savefig(GROWTH, dpi=110)


class Grown(NamedTuple):
    """A figure that was measured at several settings.

    Attributes:
        points: Setting and median, in order.
    """

    name: str
    figure: str
    unit: str
    setting: str
    points: list[tuple[float, float]]


def _grown(rows: Sequence[Row]) -> list[Grown]:
    """Figures that were measured at several settings."""
    grown = []
    of_figure = {(row.side, row.figure): row for row in rows if row.setting}
    for (side, figure), any_row in of_figure.items():
        (setting,) = any_row.setting
        same = [row for row in rows if row.setting and (row.side, row.figure) == (side, figure)]
        points = sorted((row.setting[setting], row.median) for row in same if row.median is not None)
        if len(points) > 1:
            grown.append(Grown(f"{side}, {figure}", figure, any_row.unit, setting, points))
    return grown
