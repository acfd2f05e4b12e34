"""A warning of a library ends no job, also where the user has made warnings errors."""

from __future__ import annotations

import subprocess
import sys
import warnings

import pytest

from freqfilter.process import tolerant_of_warnings
from tests.conftest import ROOT


@pytest.mark.parametrize("option", ["error", "error::UserWarning", "e"])
def test_the_options_of_the_interpreter_make_no_warning_an_error(option: str) -> None:
    code = (
        "import warnings\n"
        "from freqfilter.process import tolerant_of_warnings\n"
        "with tolerant_of_warnings():\n"
        "    warnings.warn('of a library', UserWarning)\n"
        "try: warnings.warn('of the program', UserWarning)\n"
        "except UserWarning: print('restored')"
    )
    command = [sys.executable, "-W", option, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "restored\n"
    assert done.stderr.count("UserWarning: of a library") == 1


def test_the_command_starts_where_warnings_are_errors() -> None:
    command = [sys.executable, "-W", "error", "-m", "freqfilter", "--version"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_settings_of_a_program_stay() -> None:
    """Those of the tests, in which warnings are errors."""
    with tolerant_of_warnings(), pytest.raises(UserWarning):
        warnings.warn("of a library", UserWarning, stacklevel=1)
