"""Progress output of a training."""

from __future__ import annotations

import logging

import pytest

from freqfilter import progress
from freqfilter.progress import ProgressHandler
from freqfilter.training.reports import EpochReport, StepReport


def test_the_time_left_includes_the_time_before_a_resume(capsys: pytest.CaptureFixture[str]) -> None:
    handler = ProgressHandler()
    handler.show(EpochReport(2, 0.3, 1.0, 0.001, seconds=100.0), epochs=5)
    assert "100.0 s  left 5:00" in capsys.readouterr().out
    handler.show(EpochReport(3, 0.3, 1.0, 0.001, seconds=0.0), epochs=5)
    assert "left 1:40" in capsys.readouterr().out


def test_a_log_file_gets_a_line_for_each_minute_of_a_long_epoch(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    handler, now = ProgressHandler(), 0.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    handler.handle(logging.makeLogRecord({"msg": "started", "levelno": logging.INFO}))
    for batch in range(1, 251):
        now += 1.0
        handler.show(StepReport(1, batch, 250), epochs=25)
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["started", *(f"epoch  1/25  batch {batch}/250" for batch in (60, 120, 180, 240))]
