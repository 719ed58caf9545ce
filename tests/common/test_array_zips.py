"""Arrays in zips: numpy's are read, all others are refused before memory is allocated."""

from __future__ import annotations

import io
import struct
import zipfile

import ml_dtypes
import numpy as np
import pytest

from moec.common.array_files import read_arrays
from moec.common.errors import InputError, MoecError

ARRAYS = {
    "matrix": np.arange(6).reshape(2, 3),
    "columns first": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "no rows": np.zeros((0, 5), np.float32),
    "scalar": np.array(3.5),
    "of another machine": np.arange(4, dtype=">i4"),
    "text": np.array(["a", "bcd"]),
    "flags": np.array([True, False]),
}


def npy(head: str, data: bytes = b"", version: int = 1, length: int | None = None) -> bytes:
    text = head.encode("latin-1")
    size = struct.pack("<H" if version == 1 else "<I", len(text) if length is None else length)
    return b"\x93NUMPY" + bytes([version, 0]) + size + text + data


def head(shape: str, descr: str = "'<f4'") -> str:
    return f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}"


def write(path, entry: bytes, method: int = zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("x.npy", entry)
    return path


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_what_numpy_writes_is_read(save, tmp_path):
    save(tmp_path / "a.npz", **ARRAYS)
    actual = read_arrays(tmp_path / "a.npz")
    assert list(actual) == list(ARRAYS)
    for name, array in ARRAYS.items():
        assert actual[name].dtype == array.dtype.newbyteorder("=")
        np.testing.assert_array_equal(actual[name], array)


def test_types_that_numpy_does_not_know_are_raw_bytes(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.ones(3, ml_dtypes.bfloat16))
    assert read_arrays(tmp_path / "a.npz")["x"].view(ml_dtypes.bfloat16).tolist() == [1, 1, 1]


def test_other_writers_notations_are_read(tmp_path):
    """Double quotes, another order, longs of Python 2, no comma and no spaces at the end."""
    for text in (
        '{"shape":(2L,),"fortran_order":False,"descr":"<f4"}',
        "{'fortran_order': False, 'descr': '<f4', 'shape': (2,)}\n",
    ):
        actual = read_arrays(write(tmp_path / "a.npz", npy(text, np.ones(2, "<f4").tobytes(), version=2)))
        assert actual["x"].tolist() == [1, 1]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (b"", "is not an array as numpy writes it"),
        (b"hello", "is not an array as numpy writes it"),
        (npy(head("(1,)"), bytes(4), version=4), "is not an array as numpy writes it"),
        (npy(head("(1,)"))[:30], "which is not that of an array of numbers"),
        (npy(head("(3,)"), bytes(8)), r"is float32\[3\] of 12 bytes, and holds 8"),
        (npy(head("(1,)"), bytes(8)), r"is float32\[1\] of 4 bytes, and holds 8"),
        (npy(head("(1000000000000,)"), bytes(8)), r"of 4000000000000 bytes, and holds 8"),
        (npy(head("(-1,)"), bytes(4)), "which is not that of an array of numbers"),
        (npy(head("(1.5,)"), bytes(4)), "which is not that of an array of numbers"),
        (npy(head(f"({'9' * 5000},)"), bytes(4)), "has the shape '9999"),
        (npy(head(f"({'1,' * 40})"), bytes(4)), "has the shape"),
        (npy(head("(1,)", "'|O'"), bytes(8)), r"is of the type '\|O'"),
        (npy(head("(1,)", "[('a', '<f4')]"), bytes(4)), "which is not that of an array of numbers"),
        (npy(head("(1,)", "'<f3'"), bytes(3)), "is of the type '<f3'"),
        (npy(head("(1,)", "'<U999999999'"), bytes(3)), "is of the type '<U999999999'"),
        (npy(head("()", "'|V0'")), r"is of the type '\|V0'"),
        (npy("(" * 5000, bytes(4)), "which is not that of an array of numbers"),
        (npy("{" + " " * 20_000, bytes(4)), "has a head of 20001 bytes"),
        (npy(head("(1,)") * 2, bytes(4)), "which is not that of an array of numbers"),
    ],
)
def test_what_is_no_array_is_refused(entry, message, tmp_path):
    path = write(tmp_path / "a.npz", entry)
    with pytest.raises(InputError, match=message) as caught:
        read_arrays(path)
    assert str(caught.value).startswith(f"{path}: the array 'x' ") and "\n" not in str(caught.value)


def test_an_array_larger_than_memory_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("moec.common.array_zips.available_memory", lambda: 1 << 20)
    np.savez_compressed(tmp_path / "a.npz", x=np.zeros(1 << 20, np.uint8))
    assert read_arrays(tmp_path / "a.npz")["x"].size == 1 << 20
    np.savez_compressed(tmp_path / "a.npz", x=np.zeros(1 << 21, np.uint8))
    with pytest.raises(InputError, match="has 2 MiB; 1 MiB of memory are free"):
        read_arrays(tmp_path / "a.npz")


@pytest.mark.parametrize(
    ("here", "there", "value"),
    [(6, 8, 1), (8, 10, 99), (4, 6, 99), (14, 16, 7), (None, 24, 9999), (None, 42, 9999), (6, 8, 64)],
)
def test_damaged_headers_are_refused(here, there, value, tmp_path):
    """A password, an unknown compression, a version, a checksum, a size, an offset, strong encryption."""
    file = io.BytesIO()
    np.savez(file, x=np.arange(3))
    data = bytearray(file.getvalue())
    for start, offset in ((data.find(b"PK\3\4"), here), (data.find(b"PK\1\2"), there)):
        if offset is not None:
            data[start + offset : start + offset + 2] = value.to_bytes(2, "little")
    (tmp_path / "a.npz").write_bytes(data)
    with pytest.raises(InputError, match=r"a\.npz: (is not an intact \.npz file|the array 'x' is )"):
        read_arrays(tmp_path / "a.npz")


def test_what_is_no_plain_file_is_refused(tmp_path):
    with pytest.raises(MoecError, match="is a folder; expected a plain file"):
        read_arrays(tmp_path)
    with pytest.raises(MoecError, match="No such file"):
        read_arrays(tmp_path / "none.npz")
