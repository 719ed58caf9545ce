"""GGUF files that are damaged or malicious: one line says what is wrong, and nothing is read beyond the file."""

from __future__ import annotations

import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moec.common.errors import MoecError, UnsupportedError
from moec.frontend.gguf.file.reader import is_file, read_file

from ..gguf_files import Stored, file_bytes, stored, text
from ..tiny_models import write_model

HUGE = 1 << 62
MATRIX = stored(np.arange(64, dtype=np.float32).reshape(2, 32), "Q8_0")
METADATA: list[tuple[str, Any]] = [("general.architecture", "llama"), ("a.list", [1, 2]), ("a.text", ["x", "yz"])]


def read(tmp_path: Path, content: bytes) -> Any:
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    return read_file(path)


def whole() -> bytes:
    return file_bytes(METADATA, [("m", MATRIX), ("v", stored(np.ones(3)))])


def test_a_file_is_read(tmp_path: Path) -> None:
    file = read(tmp_path, whole())
    assert file.metadata["general.architecture"] == "llama" and file.metadata["a.text"] == ["x", "yz"]
    assert file.metadata["a.list"].tolist() == [1, 2] and list(file.tensors) == ["m", "v"]
    matrix = file.tensors["m"]
    assert (matrix.kind, matrix.shape, matrix.blocks.shape) == ("Q8_0", (2, 32), (2, 1, 34))
    assert matrix.blocks.tobytes() == MATRIX.data and file.tensors["v"].blocks.tobytes() == np.ones(3, "<f4").tobytes()


def test_a_file_is_recognised(tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(whole())
    (tmp_path / "other").write_bytes(b"no GGUF")
    assert is_file(tmp_path / "blob") and not is_file(tmp_path / "other") and not is_file(tmp_path)


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    content = whole()
    for length in range(0, len(content), 3):
        with pytest.raises(MoecError) as caught:
            read(tmp_path, content[:length])
        assert "\n" not in str(caught.value) and "model.gguf" in str(caught.value)


def header(version: int = 3, tensors: int = 0, entries: int = 0) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, entries)


def entry(kind: int, value: bytes) -> bytes:
    return header(entries=1) + text("key") + struct.pack("<I", kind) + value


def described(
    name: bytes = text("t"), axes: int = 1, sizes: tuple[int, ...] = (32,), kind: int = 0, offset: int = 0
) -> bytes:
    body = name + struct.pack(f"<I{len(sizes)}QIQ", axes, *sizes, kind, offset)
    return header(tensors=1) + body + bytes(256)


DAMAGED = {
    "another file": (b"PK\3\4" + bytes(40), "does not begin with GGUF"),
    "no file": (b"", "does not begin with GGUF"),
    "tensor count": (header(tensors=HUGE), f"the number of tensors is {HUGE}, more than the"),
    "entry count": (header(entries=HUGE), f"the number of metadata entries is {HUGE}, more than the"),
    "key length": (header(entries=1) + struct.pack("<Q", HUGE) + bytes(40), "the length of the key .* is"),
    "long key": (header(entries=1) + text("k" * 70000) + bytes(40), "has 70000 bytes; the file is damaged"),
    "key bytes": (header(entries=1) + struct.pack("<Q", 2) + b"\xff\xfe" + bytes(40), "is not UTF-8"),
    "string length": (entry(8, struct.pack("<Q", HUGE)), "the length of metadata 'key' is"),
    "type": (entry(77, bytes(8)), "metadata 'key' is of the type 77, which GGUF does not have"),
    "array of arrays": (entry(9, struct.pack("<IQ", 9, 1) + bytes(40)), "of the type 9"),
    "array length": (entry(9, struct.pack("<IQ", 4, HUGE)), "the length of metadata 'key' is"),
    "array of strings": (entry(9, struct.pack("<IQ", 8, HUGE)), "the length of metadata 'key' is"),
    "axes": (described(axes=5), "tensor 't' has 5 axes; expected 1 to 4"),
    "size 0": (described(sizes=(0,)), r"tensor 't' is \[0\]; expected sizes of 1 or more"),
    "size": (described(sizes=(HUGE,)), f"lies at bytes 0 to {4 * HUGE} of the data, but there are"),
    "product of sizes": (described(axes=4, sizes=(1 << 40,) * 4), "of the data, but there are"),
    "offset": (described(offset=HUGE), f"lies at bytes {HUGE} to"),
    "unaligned offset": (described(offset=3), "lies at byte 3; expected a multiple of 32"),
    "row": (described(kind=8, sizes=(33,)), "has rows of 33 weights; expected a multiple of 32 for Q8_0"),
    "tensor twice": (file_bytes([], [("t", MATRIX), ("t", MATRIX)]), "has the tensor 't' twice"),
    "key twice": (file_bytes([("k", 1), ("k", 2)], []), "has the metadata key 'k' twice"),
    "alignment": (file_bytes([("general.alignment", 0)], []), "general.alignment is 0; expected a multiple of 8"),
    "kind of alignment": (file_bytes([("general.alignment", "32")], []), "general.alignment is 32"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged(name: str, tmp_path: Path) -> None:
    content, message = DAMAGED[name]
    with pytest.raises(MoecError, match=message) as caught:
        read(tmp_path, content)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400 + len(str(tmp_path))


UNKNOWN = {
    "version": (header(1), "is of version 1; expected little-endian GGUF of versions 2 and 3"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "is big-endian"),
    "type by name": (described(kind=21), "tensor 't': is stored as IQ3_S; expected F32, F16, Q4_0"),
    "type by number": (described(kind=999), "is stored as type 999"),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_not_supported(name: str, tmp_path: Path) -> None:
    content, message = UNKNOWN[name]
    with pytest.raises(UnsupportedError, match=message):
        read(tmp_path, content)


PARTS = [[("m", MATRIX)], [], [("v", stored(np.ones(3)))]]


def write_parts(folder: Path, changes: dict[int, dict[str, Any]], parts: list[Any] = PARTS) -> Path:
    """Write three parts of a model, whose entries are changed part by part."""
    for number, tensors in enumerate(parts):
        entries = {"split.no": number, "split.count": len(parts)} | ({"split.tensors.count": 2} if number == 0 else {})
        content = file_bytes([*METADATA, *(entries | changes.get(number, {})).items()], tensors)
        (folder / f"big-{number + 1:05d}-of-{len(parts):05d}.gguf").write_bytes(content)
    return folder / "big-00001-of-00003.gguf"


def test_parts_are_read_as_one_model(tmp_path: Path) -> None:
    file = read_file(write_parts(tmp_path, {}))
    assert list(file.tensors) == ["m", "v"] and file.tensors["v"].where.startswith(
        f"{tmp_path}/big-00003-of-00003.gguf"
    )
    assert file.tensors["v"].blocks.tobytes() == np.ones(3, "<f4").tobytes()


WRONG_PARTS: dict[str, tuple[dict[int, dict[str, Any]], str]] = {
    "count": ({0: {"split.count": 4}}, "is one of 4 parts of a model by its metadata, but has the name of a whole one"),
    "list": ({0: {"split.count": [3, 3]}}, r"split.count is \[3 3\]; expected a whole number"),
    "order": ({2: {"split.no": 1}}, "00003-of-00003.gguf: is part 1 .from 0. of 3 by its metadata; expected 2 of 3"),
    "others": ({1: {"split.count": 2}}, "is part 1 .from 0. of 2"),
    "tensors": ({0: {"split.tensors.count": 3}}, "has 2 tensors in its parts; expected 3"),
}


@pytest.mark.parametrize("name", WRONG_PARTS)
def test_parts_that_do_not_belong_together(name: str, tmp_path: Path) -> None:
    changes, message = WRONG_PARTS[name]
    with pytest.raises(MoecError, match=message):
        read_file(write_parts(tmp_path, changes))


def test_parts_that_are_missing_or_come_twice(tmp_path: Path) -> None:
    first = write_parts(tmp_path, {}, [PARTS[0], [], PARTS[0]])
    with pytest.raises(MoecError, match="has the tensor 'm', and so has a part before it"):
        read_file(first)
    with pytest.raises(MoecError, match=r"is not the first part of a model; expected big-00001-of-00003\.gguf"):
        read_file(tmp_path / "big-00002-of-00003.gguf")
    (tmp_path / "big-00002-of-00003.gguf").unlink()
    with pytest.raises(MoecError, match=r"big-00002-of-00003\.gguf: cannot be read: No such file"):
        read_file(first)
    with pytest.raises(
        MoecError, match="is one of 3 parts of a model by its metadata, but has the name of a whole one"
    ):
        read_file(first.rename(tmp_path / "model.gguf"))


def test_the_command_line_says_so_in_one_line(tmp_path: Path) -> None:
    path = write_model("llama", tmp_path / "model.gguf")
    path.write_bytes(path.read_bytes()[:-100])
    program = "from moec.cli.main import main; main()"
    command = [sys.executable, "-c", program, "compile", str(path), "-o", tmp_path / "made"]
    done = subprocess.run(command, capture_output=True, text=True)
    error = done.stderr.strip()
    assert done.returncode == 2 and error.count("\n") == 0 and "the file is truncated" in error
    assert not (tmp_path / "made").exists()


def test_names_stay_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(MoecError) as caught:
        read(tmp_path, file_bytes([], [("a\nb", Stored(0, (3,), b""))]))
    assert "\n" not in str(caught.value)
