"""Safetensors files: intact ones are read, damaged ones refused."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import numpy as np
import pytest

from moec.common.errors import MoecError
from moec.frontend.huggingface.checkpoint.safetensors import read_file

DATA = np.arange(6, dtype=np.float32)


def write(path: pathlib.Path, header: Any, data: bytes = DATA.tobytes()) -> pathlib.Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def entry(**changes: Any) -> dict[str, Any]:
    return {"w": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24], **changes}}


def test_tensors_are_views_of_the_file(tmp_path: pathlib.Path) -> None:
    path = write(tmp_path / "a.safetensors", {"__metadata__": {"format": "pt"}, **entry()})
    actual = read_file(path)
    assert list(actual) == ["w"]
    np.testing.assert_array_equal(actual["w"].numpy(), DATA.reshape(2, 3))
    assert not actual["w"].numpy().flags.owndata and not actual["w"].numpy().flags.writeable


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b"{", "its header is not JSON"),
        ([], "its header is a list"),
        ({"w": 3}, "'w': its entry is not an object"),
        (entry(dtype="F3"), "has the dtype 'F3'; expected one of BOOL"),
        (entry(shape=[2, -3]), "its shape is '\\[2, -3\\]'; expected whole numbers"),
        (entry(shape=[2, 4]), "lies at bytes 0 to 24, but its shape \\[2, 4\\] asks for 32"),
        (entry(data_offsets=[0]), "has 1 data_offsets; expected 2"),
        (entry(data_offsets=[8, 32]), "lies at bytes 8 to 32 of the data, but there are 24"),
        (entry(data_offsets=[-24, 0]), "its data_offsets is '\\[-24, 0\\]'"),
        (entry(data_offsets=[True, 25]), "its data_offsets is"),
    ],
)
def test_damaged_files_are_refused(tmp_path: pathlib.Path, header: Any, message: str) -> None:
    path = write(tmp_path / "a.safetensors", header)
    with pytest.raises(MoecError, match=message) as caught:
        read_file(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"1234567", (2**40).to_bytes(8, "little"), b"PK\x03\x04" + bytes(60)])
def test_other_files_are_refused(tmp_path: pathlib.Path, content: bytes) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    with pytest.raises(MoecError, match=r"too few|its header"):
        read_file(path)


def test_a_missing_file_is_refused(tmp_path: pathlib.Path) -> None:
    with pytest.raises(MoecError, match="no such file"):
        read_file(tmp_path / "a.safetensors")
