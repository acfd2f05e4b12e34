"""What is said while a training goes on."""

from __future__ import annotations

import pytest

from freqfilter.filters.state import EpochReport
from freqfilter.terminal import Terminal


def test_the_time_left_counts_what_a_resumed_epoch_took_before(capsys: pytest.CaptureFixture[str]) -> None:
    terminal = Terminal()
    terminal.show(EpochReport(2, 0.3, 1.0, 0.001, seconds=100.0), epochs=5)
    assert "100.0 s  left 5:00" in capsys.readouterr().out
    terminal.show(EpochReport(3, 0.3, 1.0, 0.001, seconds=0.0), epochs=5)
    assert "left 1:40" in capsys.readouterr().out
