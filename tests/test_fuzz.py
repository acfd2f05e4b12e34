"""Parsers accept an input, or refuse it with an error of one line."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from freqfilter.config import Params, resolve, restore
from freqfilter.config.ablation import ablation_variants, seed_variants
from freqfilter.config.load import fields, parse_yaml, read_sections
from freqfilter.data import npz
from freqfilter.data.splits import Splits
from freqfilter.errors import UserError
from freqfilter.tracking.outbox import logged_points
from freqfilter.tracking.queries import folder_run
from tests.conftest import SMALL, many

pytestmark = pytest.mark.soak

EXAMPLES = settings(max_examples=many(60, 3000), deadline=None)
LONGEST = 500  # characters of a message; inputs are shorter
NAMES = [name for _, name, _ in fields()]
TEXT = st.one_of(
    st.text(max_size=60),
    st.text(alphabet="[]{}:,&*!|>'\"-#%@`?\n\t 0123456789eE.+~nulltrufsa", max_size=80),
    st.integers().map(str),
    st.floats().map(str),
    st.lists(st.one_of(st.integers(), st.floats(), st.text(max_size=3)), max_size=6).map(str),
    st.sampled_from(["1e999", "-0", "0x10", "1_000", "1e3", "1.0", ".5", "NaN", "inf", "true", "yes", "null", "~", ""]),
)


def refused_in_a_line(error: UserError) -> None:
    assert str(error).splitlines() == [str(error)]
    assert len(str(error)) <= LONGEST


@given(values=st.dictionaries(st.sampled_from([*NAMES, "nonsense"]), TEXT, max_size=4))
@EXAMPLES
def test_typed_parameters(values: dict[str, str]) -> None:
    try:
        params = resolve(values)
    except UserError as error:
        refused_in_a_line(error)
    else:
        assert resolve(params.flat()) == params


@given(content=st.one_of(st.binary(max_size=200), TEXT.map(str.encode), st.sampled_from(NAMES).map(str.encode)))
@EXAMPLES
def test_files_of_parameters(content: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzzed.yaml"
    for whole in (content, b"training:\n  epochs: " + content, b"signals: {frequencies_hz: " + content + b"}"):
        path.write_bytes(whole)
        try:
            read_sections(path)
            resolve(recipe=str(path))
        except UserError as error:
            refused_in_a_line(error)


@given(text=TEXT)
@example(text="\ne")
@example(text="[1,\r2\u2028]")
@EXAMPLES
def test_texts_that_become_several_trainings(text: str) -> None:
    for read in (parse_yaml, lambda text: seed_variants(text, {}, recipe="default", folder=Path()),
                 lambda text: ablation_variants(text, {}, recipe="default", folder=Path())):  # fmt: skip
        try:
            read(text)
        except UserError as error:
            refused_in_a_line(error)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*NAMES[:5], "signals", "x"]), inner),
    max_leaves=8,
)


@given(stored=JSON, section=st.sampled_from(list(Params.model_fields)))
@EXAMPLES
def test_stored_parameters(stored: object, section: str) -> None:
    for whole in (stored, {section: stored}):
        try:
            restore(whole)  # type: ignore[arg-type]
        except UserError as error:
            refused_in_a_line(error)


@pytest.fixture(scope="module")
def whole_archive(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("archive") / "whole.npz"
    splits = Splits.from_params(resolve(SMALL | {"n_samples": "30", "duration_s": "0.03", "noise": "fixed"}))
    npz.write(path, {"train": splits.train, "val": splits.validation, "test": splits.test})
    return path.read_bytes()


@given(
    where=st.floats(0, 1, exclude_max=True),
    change=st.one_of(st.binary(min_size=1, max_size=8), st.none()),
)
@EXAMPLES
def test_data_files(
    where: float, change: bytes | None, whole_archive: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Files that are truncated, or have some bytes replaced."""
    at = int(where * len(whole_archive))
    content = whole_archive[:at] if change is None else whole_archive[:at] + change + whole_archive[at + len(change) :]
    path = tmp_path_factory.getbasetemp() / "fuzzed.npz"
    path.write_bytes(content)
    try:
        npz.read(str(path), n_components=4, window_length=20)
    except UserError as error:
        refused_in_a_line(error)


@given(
    shape=st.lists(st.integers(0, 10**10), max_size=5), descr=st.sampled_from(["<f4", "|O", "<U5", "<c8", "|b1", "V9"])
)
@EXAMPLES
def test_headers_that_claim_anything(
    shape: list[int], descr: str, whole_archive: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Headers that state ten gigabytes without a body, pickled objects, and others."""
    path = tmp_path_factory.getbasetemp() / "claims.npz"
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": descr, "fortran_order": False, "shape": tuple(shape)})
    with zipfile.ZipFile(io.BytesIO(whole_archive)) as whole, zipfile.ZipFile(path, "w") as changed:
        for name in whole.namelist():
            changed.writestr(name, header.getvalue() if name == "X_train.npy" else whole.read(name))
    with pytest.raises(UserError, match=r"claims\.npz: X_train (holds|has shape|is empty|is corrupt)") as refused:
        npz.read(str(path), n_components=4, window_length=20)
    refused_in_a_line(refused.value)


MESSAGE = st.fixed_dictionaries(
    {"kind": st.sampled_from(["run", "tags", "no_tag", "metrics", "end", "file", "x"]) | JSON},
    optional=dict.fromkeys(("name", "values", "step", "status", "run_id", "experiment", "time_ms", "path"), JSON),
)


@given(lines=st.lists(st.one_of((JSON | MESSAGE).map(json.dumps), st.text(max_size=20)), max_size=4))
@EXAMPLES
def test_outboxes(lines: list[str], tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzzed" / "outbox.jsonl"
    path.parent.mkdir(exist_ok=True)
    path.write_text('{"kind": "tags", "values": {}}\n' + "".join(f"{line}\n" for line in lines), encoding="utf-8")
    try:
        folder_run(path.parent)
        logged_points(path)
    except UserError as error:
        refused_in_a_line(error)
