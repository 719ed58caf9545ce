"""The command ``moec export``."""

from __future__ import annotations

import json

import pytest

from ..command import moec

MODEL = "examples/char_lm/model.onnx"


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    path = tmp_path_factory.mktemp("export") / "out.onnx"
    return path, moec("export", MODEL, "-o", path, "--json")


def test_it_says_how_each_block_was_written(written):
    path, result = written
    assert result.returncode == 0, result.stderr
    answer = json.loads(result.stdout)
    assert (answer["path"], answer["form"]) == (str(path), "onnxruntime")
    assert [part["written_as"] for part in answer["parts"]] == ["com.microsoft.MoE"] * 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-o", "DIR/missing/out.onnx"], "missing does not exist; create it first"),
        (["-o", "DIR/foreign.onnx"], "is a file that moec did not write; remove it or choose another path"),
        (
            ["-o", "DIR", "--for", "onnxruntime"],
            "is a folder that moec did not write; remove it or choose another path",
        ),
        (["-o", "DIR/out"], "the name does not say which form to write; name it by --for: "),
        (["-o", "DIR/out.onnx", "--for", "onnxrt"], "no form 'onnxrt'"),
        (["-o", "DIR/out.onnx", "--passes", "no-pass"], "unknown pass 'no-pass'"),
    ],
)
def test_bad_outputs_are_one_line_and_nothing_is_written(tmp_path, arguments, message):
    (tmp_path / "foreign.onnx").write_bytes(b"mine")
    result = moec("export", MODEL, *(argument.replace("DIR", str(tmp_path)) for argument in arguments))
    assert result.returncode == 2 and message in result.stderr and result.stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["foreign.onnx"]
    assert (tmp_path / "foreign.onnx").read_bytes() == b"mine"
