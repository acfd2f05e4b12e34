"""The parts of the bench, each with `measure()` that gives its rows."""
