"""A candidate beside the champion and the limit, and the interval of their difference."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from freqfilter.evaluation.figures.style import BLUE, GREY, ORANGE, dress, new_figure
from freqfilter.evaluation.paired import PairedTest
from freqfilter.evaluation.scores import OVERALL

SIDES = {"candidate": BLUE, "champion": ORANGE, "limit": GREY}


def decision(errors: dict[str, pd.DataFrame], test: PairedTest | None) -> Figure:
    """Mean squared errors for each component and, where there is a champion, the interval of the difference.

    Args:
        errors: Of ``candidate`` and, as far as there are any, ``champion`` and ``limit``: a row for each realization, a
            column for each component.
        test: The paired comparison with the champion.
    """
    figure = new_figure(10, 4.2)
    bars, interval = figure.subplots(1, 2, width_ratios=(3, 2))
    components = list(errors["candidate"].columns)
    sides = [side for side in SIDES if side in errors]
    width = 0.8 / len(sides)
    for number, side in enumerate(sides):
        at = np.arange(len(components)) + (number - (len(sides) - 1) / 2) * width
        bars.bar(at, errors[side].mean(), width, label=side, color=SIDES[side])
    names = ["all" if name == OVERALL else name.replace("hz", " Hz") for name in components]
    bars.set_xticks(range(len(components)), names)
    dress(bars, xlabel="component", ylabel="mean squared error", title="on the same fresh realizations")
    figure.legend(*bars.get_legend_handles_labels(), loc="outside lower left", ncols=len(sides))
    interval.axvline(0, color=GREY, linewidth=1)
    if test is None:
        interval.text(0.5, 0.5, "no champion yet", transform=interval.transAxes, ha="center", va="center")
    else:
        low, middle, high = (100 * value for value in (test.low, test.difference, test.high))
        interval.errorbar([middle], [0], xerr=[[middle - low], [high - middle]], fmt="o", color=BLUE, capsize=6)
        if test.margin:
            interval.axvline(100 * test.margin, color=ORANGE, linestyle="--", label="margin")
            interval.legend()
        interval.margins(x=0.3)
    interval.set_yticks([])
    dress(interval, xlabel="candidate less champion, % of its error", ylabel="", title="left of zero: better")
    return figure
