"""Plain files are read whole; pipes, devices, large files, other encodings and damaged JSON are refused."""

from __future__ import annotations

import os

import pytest

from moec.common.errors import MoecError
from moec.common.plain_files import parse_json, read_bytes, read_text


def test_text(tmp_path):
    path = tmp_path / "a"
    path.write_bytes("é".encode())
    assert read_text(path, 2) == "é"
    with pytest.raises(MoecError, match=r"a: has 2 bytes; expected at most 1"):
        read_text(path, 1)
    path.write_bytes(b"\xff")
    with pytest.raises(MoecError, match=r"a: cannot be read as text: .*invalid start byte"):
        read_text(path, 2)


def test_what_is_no_plain_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "circle").symlink_to("circle")
    places = {tmp_path / "pipe": "is a pipe", "/dev/zero": "is a device", tmp_path: "is a folder", "a\0b": "null byte"}
    places |= {tmp_path / "circle": "symbolic links", tmp_path / "none": "No such file", "x" * 5000: "name too long"}
    for path, reason in places.items():
        with pytest.raises(MoecError, match=reason) as caught:
            read_bytes(path, 100)
        assert "cannot be read" in str(caught.value)


def test_json():
    assert parse_json(b'{"a": [1, "\\u00e9", "\\ud83d\\ude00"]}') == {"a": [1, "é", "\N{GRINNING FACE}"]}
    assert parse_json("[{}]", lambda result: 7) == [7]
    assert parse_json('[{"a":' * 50 + "0" + "}]" * 50)[0]["a"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        b"\xff",
        "9" * 5000,
        "[" * 100_000,
        '[{"a":' * 50 + "[]" + "}]" * 50,
        '"\\ud800"',
        '{"\\uDFFF": 1}',
        b"\xff\xfe{\0",
    ],
)
def test_what_is_no_json(text):
    with pytest.raises(ValueError) as caught:
        parse_json(text)
    assert "\n" not in str(caught.value) and 5 < len(str(caught.value)) < 301


@pytest.mark.parametrize("text", ['{"a": NaN}', "[-Infinity]", '[{"a": 1, "b": 2, "a": 1}]'])
def test_what_is_no_strict_json(text):
    parse_json(text)
    with pytest.raises(ValueError, match=r"is no number of JSON|has the name 'a' twice"):
        parse_json(text, strict=True)
    assert parse_json('{"a": [1e5, {"a": 2}]}', strict=True) == {"a": [1e5, {"a": 2}]}


def test_no_more_memory_is_taken_than_the_file_has(tmp_path, monkeypatch):
    """Python allocates as many bytes as it is asked to read."""
    import builtins

    asked = []

    class Watched:
        def __init__(self, file):
            self._file = file

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self._file.close()

        def read(self, count):
            asked.append(count)
            return self._file.read(count)

    (tmp_path / "a").write_bytes(b"abc")
    real = builtins.open
    monkeypatch.setattr(builtins, "open", lambda *arguments: Watched(real(*arguments)))
    assert read_bytes(tmp_path / "a", 1 << 40) == b"abc" and asked == [3]
