from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import freqfilter
from freqfilter.config import resolve
from freqfilter.data import npz
from freqfilter.data.splits import Splits
from freqfilter.errors import UserError

Arrays = dict[str, Any]


def good() -> Arrays:
    params = resolve({"n_samples": "60", "duration_s": "0.1", "frequencies_hz": "[10, 20]", "noise": "fixed"})
    splits = Splits.from_params(params)
    arrays = {}
    for part, windows in (("train", splits.train), ("val", splits.validation), ("test", splits.test)):
        inputs, targets = windows.batch(torch.arange(len(windows)))
        arrays |= {f"X_{part}": inputs.numpy(), f"y_{part}": targets.numpy()}
    return arrays


def test_written_windows_are_read_unchanged(tmp_path: Path) -> None:
    params = resolve({"n_samples": "60", "duration_s": "0.1", "frequencies_hz": "[10, 20]", "noise": "fixed"})
    splits = Splits.from_params(params)
    path = tmp_path / "new folder" / "data.npz"
    npz.write(path, {"train": splits.train, "val": splits.validation, "test": splits.test})
    with np.load(path) as plain:
        assert sorted(plain.files) == sorted(good())
    for name, array in npz.read(str(path), n_components=2, window_length=50).items():
        np.testing.assert_array_equal(array, good()[name], strict=True)
    assert [file.name for file in path.parent.iterdir()] == ["data.npz"]


def test_other_number_types_are_converted_to_float32(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", **{name: array.astype(np.float64) for name, array in good().items()})
    read = npz.read(str(tmp_path / "data.npz"), n_components=2, window_length=50)
    assert {array.dtype for array in read.values()} == {np.dtype(np.float32)}


def with_value(name: str, index: tuple[int, ...], value: float) -> Callable[[Arrays], None]:
    def change(arrays: Arrays) -> None:
        arrays[name][index] = value

    return change


BAD: dict[str, tuple[Callable[[Arrays], object], str]] = {
    "a renamed array": (
        lambda a: a.update(val_y=a.pop("y_val")),
        "no array y_val among its arrays: .*, val_y; store X_train, .*, y_test",
    ),
    "no windows": (lambda a: a.update(X_test=a["X_test"][:0]), "X_test is empty"),
    "samples without windows": (
        lambda a: a.update(X_val=a["X_val"][0]),
        r"X_val has shape \(50, 3\), .*X, y = freqfilter\.cut_windows\(mixture, components, window_length=50\)",
    ),
    "one axis": (lambda a: a.update(y_train=a["y_train"][0, :, 0]), r"y_train has shape \(50,\); store it as"),
    "fewer targets": (lambda a: a.update(y_val=a["y_val"][1:]), "y_val has shape"),
    "shorter windows": (lambda a: a.update(X_val=a["X_val"][:, 1:], y_val=a["y_val"][:, 1:]), "windows of 49 samples"),
    "another selector width": (lambda a: a.update(X_train=a["X_train"][..., :2]), "set frequencies_hz"),
    "NaN": (with_value("X_val", (1, 2, 0), np.nan), r"X_val has nan at \(1, 2, 0\)"),
    "Inf": (with_value("y_test", (3, 0, 0), -np.inf), r"y_test has -inf at \(3, 0, 0\)"),
    "too large for float32": (lambda a: a.update(X_train=a["X_train"] * np.float64(1e300)), "has inf at"),
    "two selected": (with_value("X_train", (4, slice(None), slice(1, 3)), 1), "X_train window 4"),
    "a half selected": (with_value("X_train", (4, slice(None), slice(1, 3)), 0.5), "X_train window 4"),
    "a changing selector": (with_value("X_test", (5, 7, slice(1, 3)), 1), "X_test window 5"),
    "text": (lambda a: a.update(y_train=a["y_train"].astype(str)), "y_train holds"),
    "objects": (lambda a: a.update(y_train=a["y_train"].astype(object)), "y_train holds object"),
    "complex numbers": (lambda a: a.update(y_train=a["y_train"].astype(complex)), "y_train holds complex"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_file_is_refused_with_the_array_and_the_index(case: str, tmp_path: Path) -> None:
    change, message = BAD[case]
    arrays = good()
    change(arrays)
    np.savez(tmp_path / "data.npz", **arrays)
    with pytest.raises(UserError, match=message) as caught:
        npz.read(str(tmp_path / "data.npz"), n_components=2, window_length=50)
    assert "\n" not in str(caught.value)


def test_the_byte_and_memory_order_of_an_array_do_not_matter(tmp_path: Path) -> None:
    stored = {name: np.asfortranarray(array.astype(">f4")) for name, array in good().items()}
    np.savez(tmp_path / "data.npz", **stored)
    for name, array in npz.read(str(tmp_path / "data.npz"), n_components=2, window_length=50).items():
        np.testing.assert_array_equal(array, good()[name], strict=True)


def test_windows_cut_as_the_message_says_are_read(tmp_path: Path) -> None:
    """Each start has a window for each component, with its selector and its clean samples."""
    mixture, components = np.arange(60), np.stack([np.arange(60) + 100, np.arange(60) + 200])
    X, y = freqfilter.cut_windows(mixture, components, window_length=50)  # noqa: N806 (as in the message)
    np.savez(tmp_path / "data.npz", **{name: X if name.startswith("X") else y for name in npz.NAMES})
    read = npz.read(str(tmp_path / "data.npz"), n_components=2, window_length=50)
    inputs, targets = read["X_train"], read["y_train"]
    assert (inputs.shape, targets.shape) == ((22, 50, 3), (22, 50, 1))
    start, selected = np.divmod(np.arange(22), 2)
    expected = start[:, None] + np.arange(50)
    np.testing.assert_array_equal(inputs[:, :, 0], expected)
    np.testing.assert_array_equal(inputs[:, :, 1:], np.tile(np.eye(2)[selected][:, None], (1, 50, 1)))
    np.testing.assert_array_equal(targets[:, :, 0], expected + 100 * (1 + selected[:, None]))


def test_samples_that_cannot_be_cut_are_refused_with_the_shapes() -> None:
    with pytest.raises(UserError, match=r"mixture \(60,\), components \(60, 2\): give the shapes"):
        freqfilter.cut_windows(np.zeros(60), np.zeros((60, 2)), window_length=50)
    with pytest.raises(UserError, match="window_length=61: give 1 to 60"):
        freqfilter.cut_windows(np.zeros(60), np.zeros((1, 60)), window_length=61)


def test_a_file_that_decompresses_to_more_than_the_memory_is_refused_unread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.savez_compressed(tmp_path / "data.npz", **good() | {"X_train": np.zeros((10_000, 50, 3), dtype=np.int8)})
    available = 5_000_000  # 10,000 · 50 · 3 values are 6 MB as float32
    monkeypatch.setattr(npz.psutil, "virtual_memory", lambda: SimpleNamespace(available=available))
    monkeypatch.setattr(np.lib.npyio.NpzFile, "__getitem__", lambda *_: pytest.fail("an array was read"))
    with pytest.raises(UserError, match=r"need 0\.0 GB of memory, of which 0\.0 GB are available; store fewer windows"):
        npz.read(str(tmp_path / "data.npz"), n_components=2, window_length=50)


def test_a_file_that_is_not_an_archive_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    np.savez(path, **good())
    valid = path.read_bytes()
    np.save(tmp_path / "single.npy", np.zeros(3))
    unreadable = r"data\.npz: not a readable \.npz file"
    contents = dict.fromkeys([b"", b"hello", valid[: len(valid) // 2]], unreadable)
    contents[(tmp_path / "single.npy").read_bytes()] = r"data\.npz: a single array"
    for content, message in contents.items():
        path.write_bytes(content)
        with pytest.raises(UserError, match=message):
            npz.read(str(path), n_components=2, window_length=50)
    np.savez_compressed(path, **good())
    corrupt = bytearray(path.read_bytes())
    corrupt[2000:2100] = bytes(100)
    path.write_bytes(bytes(corrupt))
    with pytest.raises(UserError, match="not a readable"):
        npz.read(str(path), n_components=2, window_length=50)
    with pytest.raises(UserError, match="No such file"):
        npz.read(str(tmp_path / "absent.npz"), n_components=2, window_length=50)


def test_a_header_with_a_wrong_shape_is_refused_before_memory_is_allocated(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", **good())
    body = (tmp_path / "data.npz").read_bytes()
    shape = str(good()["X_train"].shape).encode()
    wrong_shape = b"(90, 50, 9)"[: len(shape)].ljust(len(shape))
    assert body.count(b"'shape': " + shape) >= 1
    import zipfile

    with zipfile.ZipFile(tmp_path / "data.npz") as old, zipfile.ZipFile(tmp_path / "corrupt.npz", "w") as new:
        for member in old.namelist():
            content = old.read(member)
            if member == "X_train.npy":
                content = content.replace(b"'shape': " + shape, b"'shape': " + wrong_shape)
            new.writestr(member, content)
    with pytest.raises(UserError, match="X_train is corrupt"):
        npz.read(str(tmp_path / "corrupt.npz"), n_components=2, window_length=50)
