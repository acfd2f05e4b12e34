"""The one page on which a decision can be read."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd
from tabulate import tabulate

if TYPE_CHECKING:
    from freqfilter.workflows.promote import Decision

MARKS = {True: "passed", False: "**failed**", None: "does not apply"}


def decision_report(decision: Decision) -> str:
    """A decision as Markdown: what was decided, each rung with its figures, errors side by side."""
    candidate, champion, evidence = decision.candidate, decision.champion, decision.evidence
    title = f"# {decision.outcome}: {candidate.model_name} version {candidate.number}"
    against = f"the champion, version {champion.number}" if champion else "nothing: there is no champion yet"
    lines = [
        title,
        f"{decision.reason[:1].upper()}{decision.reason[1:]}.",
        f"Held against {against}. Evidence: run `{decision.run_id}`"
        f"{f', the candidate was trained by run `{candidate.run_id}`' if candidate.run_id else ''}.",
        tabulate(
            [[rung.name, MARKS[rung.passed], rung.words] for rung in evidence.rungs],
            headers=["rung", "", "figures"],
            tablefmt="github",
        ),
    ]
    if evidence.errors:
        means = pd.DataFrame({side: table.mean() for side, table in evidence.errors.items()}).T
        lines.append(
            tabulate(
                [[side, *row] for side, row in zip(means.index, means.to_numpy().tolist(), strict=True)],
                headers=["MSE", *means.columns],
                floatfmt=".4f",
                tablefmt="github",
            )
        )
        lines.append(f"Means over {len(evidence.errors['candidate'])} realizations: {evidence.seeds}.")
    return "\n\n".join(lines) + "\n"
