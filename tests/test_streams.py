"""Standard streams that are closed, full, without a reader, or of an encoding that lacks characters."""

from __future__ import annotations

import io
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from freqfilter.progress import progress_output
from freqfilter.streams import StandardStream, safe_streams
from tests import zygote
from tests.conftest import ROOT, SMALL, all_runs, options

FULL = "/dev/full"
NO_SPACE = "No space left on device"
# The program as it is after `>&-` and `2>&-`.
CLOSED = """
import os, sys
for number, name in ((1, "stdout"), (2, "stderr")):
    if name in sys.argv[1].split():
        os.close(number)
        setattr(sys, name, None)
        setattr(sys, f"__{name}__", None)
sys.argv[1:] = sys.argv[2:]
from freqfilter.cli.main import main
main()
"""


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """A pipe: the descriptors for reading and for writing."""
    ends = os.pipe()
    yield ends
    for end in ends:
        with suppress(OSError):
            os.close(end)


def streams(out: int, err: int) -> tuple[StandardStream, StandardStream]:
    output, errors = StandardStream(out, "standard output"), StandardStream(err, "standard error")
    output.other, errors.other = errors, output
    return output, errors


@pytest.fixture
def full() -> Iterator[int]:
    """A file on a full disk."""
    descriptor = os.open(FULL, os.O_WRONLY)
    yield descriptor
    os.close(descriptor)


def test_a_stream_without_space_gives_the_reason_and_its_text_to_the_other(pipe: tuple[int, int], full: int) -> None:
    output, _ = streams(full, pipe[1])
    text = io.TextIOWrapper(io.BufferedWriter(output), "utf-8")
    print("first line", file=text, flush=True)
    print("second line", file=text, flush=True)
    assert os.read(pipe[0], 1000).decode().splitlines() == [
        f"freqfilter: standard output cannot be written: {NO_SPACE}; its text follows",
        "first line",
        "second line",
    ]


def test_a_stream_whose_reader_has_ended_is_silent(pipe: tuple[int, int]) -> None:
    read, write = os.pipe()
    os.close(read)
    output, _ = streams(write, pipe[1])
    assert output.write(b"text") == 4
    assert output.error == ""
    os.set_blocking(pipe[0], False)
    with pytest.raises(BlockingIOError):
        os.read(pipe[0], 1000)
    os.close(write)


def test_two_streams_without_space_raise_nothing(full: int) -> None:
    output, errors = streams(full, full)
    assert output.write(b"text") == 4
    assert errors.write(b"text") == 4
    assert output.error == errors.error == NO_SPACE


def test_a_stream_that_does_not_block_is_waited_for(pipe: tuple[int, int]) -> None:
    os.set_blocking(pipe[1], False)
    content, received = os.urandom(1_000_000), bytearray()

    def read() -> None:
        time.sleep(0.1)
        while len(received) < len(content):
            received.extend(os.read(pipe[0], 65536))

    reader = threading.Thread(target=read)
    reader.start()
    output, _ = streams(pipe[1], 2)
    with io.BufferedWriter(output) as buffer:
        buffer.write(content)
    reader.join()
    assert bytes(received) == content


def test_streams_that_a_program_has_replaced_stay(capsys: pytest.CaptureFixture[str]) -> None:
    replaced = sys.stdout
    with safe_streams():
        assert sys.stdout is replaced


def program(*words: str, folder: Path, out: int | None = None, err: int | None = None) -> tuple[int, str, str]:
    """Run the command line with these standard streams; return its status, and what it wrote to the other streams."""
    pipe = subprocess.PIPE
    command = [sys.executable, "-m", "freqfilter", *words]
    with zygote.Popen(
        command, cwd=folder, stdout=pipe if out is None else out, stderr=pipe if err is None else err, text=True
    ) as process:
        written, errors = process.communicate(timeout=300)
    return process.returncode, written or "", errors or ""


def test_a_training_is_complete_without_streams(folder: Path, full: int) -> None:
    """The last one starts without any: no file takes the number of a closed stream, and no library writes to it."""
    words = ["train", *options(SMALL | {"epochs": "1", "system_metrics_interval": "0"})]
    status, _, errors = program(*words, folder=folder, out=full)
    assert status == 0
    first, *rest = errors.splitlines()
    assert first == f"freqfilter: standard output cannot be written: {NO_SPACE}; its text follows"
    assert any(line.startswith("registered: frequency-filter version 1") for line in rest)
    assert program(*words, folder=folder, out=full, err=full) == (0, "", "")
    closed = [sys.executable, "-c", CLOSED, "stdout stderr", *words]
    assert zygote.run(closed, cwd=folder).returncode == 0
    assert [run.info.status for run in all_runs()] == ["FINISHED"] * 3


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["train", "--help-all"], ["doctor"], ["limit", "--json"]])
def test_a_command_whose_output_is_its_result_fails_if_it_cannot_be_written(
    words: list[str], folder: Path, full: int
) -> None:
    if words[0] == "limit":
        words = [*words, *options({name: SMALL[name] for name in ("n_samples", "duration_s", "window_length")})]
    status, _, errors = program(*words, folder=folder, out=full)
    assert status != 0
    assert errors == f"freqfilter: standard output cannot be written: {NO_SPACE}\n"


def test_the_reader_of_a_result_may_end(folder: Path, pipe: tuple[int, int]) -> None:
    os.close(pipe[0])
    assert program("train", "--help-all", folder=folder, out=pipe[1]) == (0, "", "")


def test_an_error_that_standard_error_cannot_take_is_on_standard_output(folder: Path, full: int) -> None:
    status, written, _ = program("nonsense", folder=folder, err=full)
    assert status == 2
    assert written.splitlines() == [
        f"freqfilter: standard error cannot be written: {NO_SPACE}; its text follows",
        "freqfilter: No such command 'nonsense'.",
    ]


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_shell_can_close_the_streams(closed: str, tmp_path: Path) -> None:
    command = f"exec {sys.executable} -m freqfilter nonsense {closed}"
    done = subprocess.run(
        ["sh", "-c", command],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    said = "freqfilter: No such command 'nonsense'.\n"
    if closed == ">&-":
        assert done.stderr == said
    elif closed == "2>&-":
        assert done.stdout == f"freqfilter: standard error cannot be written: it is closed; its text follows\n{said}"
    else:
        assert (done.stdout, done.stderr) == ("", "")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_characters_that_the_encoding_lacks_are_escaped(encoding: str, tmp_path: Path) -> None:
    code = (
        "import click, logging\n"
        "from freqfilter.progress import progress_output\n"
        "with progress_output():\n"
        "    click.echo('0.2 – 0.3')\n"
        "    logging.getLogger('freqfilter.test').info('0.2 – 0.3')"
    )
    environment = os.environ | {"PYTHONIOENCODING": encoding, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == r"0.2 \u2013 0.3"  # click writes UTF-8 where Python would write ASCII


def test_a_stream_of_the_users_program_that_fails_does_not_end_the_job(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with suppress(OSError), Path(FULL).open("w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        with progress_output():
            logging.getLogger("freqfilter.test").info("a line")
        assert NO_SPACE in capsys.readouterr().err
