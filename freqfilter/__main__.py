"""``python -m freqfilter``."""

from freqfilter.cli import main

main()
