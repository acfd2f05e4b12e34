"""``python -m freqfilter``."""

from freqfilter.cli.main import main

main()
