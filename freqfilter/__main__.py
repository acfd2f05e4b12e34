"""``python -m freqfilter``."""

import sys

if not sys.flags.safe_path:
    del sys.path[0]  # the working folder: a file there, such as queue.py, would be imported by every library

from freqfilter.cli import start

start()
