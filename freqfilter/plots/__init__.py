"""Figures, as pure functions of arrays and tables."""

import os
import sys
from contextlib import suppress

if "matplotlib" not in sys.modules and (backend := os.environ.pop("MPLBACKEND", None)):
    # Matplotlib cannot be imported if this variable names no backend; figures of this package need none.
    import matplotlib

    os.environ["MPLBACKEND"] = backend
    with suppress(ValueError):
        matplotlib.rcParams["backend"] = backend
