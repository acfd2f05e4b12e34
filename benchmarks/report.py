"""What was measured, as a file for programs, a table and a figure."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate

from benchmarks.measure import Row
from freqfilter.evaluation.figures.style import BLUE, GREY, ORANGE, dress, new_figure
from freqfilter.files import replacing

HOME = Path(__file__).parent
RESULTS, FIGURE, GROWTH = HOME / "results.json", HOME / "results.png", HOME / "growth.png"
HEADERS = ("side", "figure", "median", "least to most", "unit", "against", "ratio")


def read() -> dict[str, Any]:
    """What earlier runs have measured, by part; empty where there is nothing yet."""
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else {}


def write(results: Mapping[str, Any]) -> None:
    """The whole file, or none of it."""
    with replacing(RESULTS) as file:
        file.write((json.dumps(results, indent=1, ensure_ascii=False) + "\n").encode())


def table(rows: Sequence[Row]) -> str:
    """Medians, spread and ratios of a part, as Markdown."""
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
    """Exponents of growth, from the two largest settings of each side; 1: in proportion."""
    found = {}
    for side, points in _grown(rows):
        (x1, y1), (x2, y2) = points[-2:]
        found[side] = math.log(y2 / y1) / math.log(x2 / x1)
    return found


def draw(parts: Mapping[str, Sequence[Row]]) -> None:
    """Every ratio in one picture, and growth in another."""
    ratios = [
        (f"{part}: {row.side}, {row.figure}", row.ratio(rows))
        for part, rows in parts.items()
        for row in rows
        if row.against not in (None, row.side)
    ]
    known = [(label, ratio) for label, ratio in ratios if ratio is not None]
    if known:
        figure = new_figure(10, 1 + 0.35 * len(known))
        axes = figure.subplots()
        labels, values = zip(*reversed(known), strict=True)
        axes.barh(labels, values, color=[BLUE if value <= 1 else ORANGE for value in values])
        axes.axvline(1, color=GREY)
        for place, value in enumerate(values):
            axes.text(value, place, f" {value:.2g}", va="center")
        dress(axes, xlabel="over the side that it is held against; 1: as much", ylabel="")
        figure.savefig(FIGURE, dpi=120)
    grown = [(part, side, points) for part, rows in parts.items() for side, points in _grown(rows)]
    if grown:
        figure = new_figure(10, 3 * math.ceil(len(grown) / 2))
        every = np.atleast_1d(figure.subplots(math.ceil(len(grown) / 2), 2)).flatten()
        for axes, (part, side, points) in zip(every, grown, strict=False):
            x, y = zip(*points, strict=True)
            axes.loglog(x, y, "o-", color=BLUE)
            exponent = slopes(parts[part])[side]
            unit = next(row.unit for row in parts[part] if row.side == side)
            name = next(iter(next(row.setting for row in parts[part] if row.side == side and row.setting)))
            dress(axes, xlabel=name, ylabel=unit, title=f"{part}, {side}: grows with power {exponent:.2f} at the end")
        for spare in every[len(grown) :]:
            spare.remove()
        figure.savefig(GROWTH, dpi=120)


def _grown(rows: Sequence[Row]) -> list[tuple[str, list[tuple[float, float]]]]:
    """The sides that were measured at several settings, with (setting, median) in order."""
    found = []
    for side, same in groupby((row for row in rows if row.setting), key=lambda row: row.side):
        points = sorted((next(iter(row.setting.values())), row.median) for row in same if row.median is not None)
        if len(points) > 1:
            found.append((side, points))
    return found
