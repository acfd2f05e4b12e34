"""Command-line interface."""

import signal


def start() -> None:
    """Run the command line; Ctrl-C during its imports ends the process without a traceback."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not where the parent has it ignored
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from freqfilter.cli.main import main

    main()
