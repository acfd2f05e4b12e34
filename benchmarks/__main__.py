"""Run the named parts of the benchmarks, or all of them: `python -m benchmarks epoch start`."""

from __future__ import annotations

import importlib
import sys
import time

from benchmarks import report
from benchmarks.measure import Row, machine, say

PARTS = (
    "epoch", "time_to_quality", "share_of_peak", "tracking", "memory", "inference", "start", "commands", "growth",
)  # fmt: skip


def main(names: list[str]) -> None:
    """Run parts, and keep the stored results of the others."""
    if unknown := [name for name in names if name not in PARTS]:
        sys.exit(f"no part {unknown[0]!r}; the parts are {', '.join(PARTS)}")
    on = machine()
    say(f"{on['processor']}, {on['cores']} cores, {on['threads']} threads; nothing else should run meanwhile")
    results = report.read()
    for name in names or PARTS:
        started = time.perf_counter()
        say(f"{name}:")
        rows: list[Row] = importlib.import_module(f"benchmarks.parts.{name}").measure()
        results[name] = {"machine": on, "rows": [row.as_json(rows) for row in rows]}
        if grown := report.slopes(rows):
            results[name]["slopes"] = grown
        report.write(results)
        say(f"{name}: measured in {time.perf_counter() - started:.0f} s\n\n{report.table(rows)}\n")
        for side, slope in grown.items():
            say(f"  {side}: grows with power {slope:.2f} at the end")
    report.draw({name: [Row.from_json(row) for row in results[name]["rows"]] for name in PARTS if name in results})
    say(f"written: {report.RESULTS.name}, {report.FIGURE.name}, {report.GROWTH.name}")


if __name__ == "__main__":
    main(sys.argv[1:])
