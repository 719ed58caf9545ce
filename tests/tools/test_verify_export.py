"""Comparison of exported models with their originals, in onnxruntime."""

from __future__ import annotations

import pathlib

import numpy as np
import onnx
import pytest

from ..command import moec

MODEL = "float[T, 4] x) => (float[T, 4] y) <float[4] w = {1, 2, 3, 4}>"
ORIGINAL = f"{MODEL} {{ y = Mul (x, w) }}"
OTHERS = {
    "equal": (f"{MODEL} {{ y = Mul (w, x) }}", 0, "match"),
    "other numbers": (ORIGINAL.replace("4}", "5}"), 1, "DIFFERS"),
    "wrong from three rows on": (
        f"{MODEL} {{ n = Shape <start = 0, end = 1> (x) two = Constant <value_ints = [2]> () less = Greater (n, two)"
        " f = Cast <to = 1> (less) z = Mul (x, w) y = Add (z, f) }",
        1,
        "x[1, 4] y [1, 4] 0.00e+00 0.00e+00 0.00e+00 match x[3, 4] y [3, 4] 1.00e+00",
    ),
    "one row alone": (
        f"{MODEL} {{ s = Constant <value_ints = [1, 4]> () r = Reshape (x, s) y = Mul (r, w) }}",
        1,
        "only the original runs",
    ),
    "another output": (ORIGINAL.replace("] y)", "] z)").replace("y =", "z ="), 1, "the original has no such output"),
    "another type": (
        "float[T, 4] x) => (double[T, 4] y) { y = Cast <to = 11> (x) }",
        1,
        "is float64[1, 4]; expected float32[1, 4]",
    ),
    "another input": (ORIGINAL.replace("] x)", "] v)").replace("(x", "(v"), 2, "does not take x and also takes v"),
    "nothing": ("", 2, "onnxruntime itself cannot load the model"),
}


def written(path: pathlib.Path, text: str) -> pathlib.Path:
    if not text:
        path.write_bytes(b"")
        return path
    model = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 21]> g ({text}')
    onnx.save(model, path)
    return path


def verified(*arguments: object) -> tuple[int, str]:
    """Run ``moec verify``. Returns the exit code and what it says, on one line."""
    result = moec("verify", *arguments)
    return result.returncode, " ".join((result.stdout + result.stderr).split())


@pytest.mark.parametrize("case", OTHERS)
def test_two_files(case, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    text, expected, message = OTHERS[case]
    code, said = verified(written(tmp_path / "a.onnx", ORIGINAL), written(tmp_path / "b.onnx", text))
    assert (code, message in said) == (expected, True), said
    if code != 2:
        assert all(f"x[{size}, 4]" in said for size in (1, 3, 16))


def test_an_export_in_a_folder_and_inputs_of_a_file(tmp_path):
    model = written(tmp_path / "a.onnx", ORIGINAL)
    np.savez(tmp_path / "x.npz", x=np.ones((5, 4), np.float32))
    assert moec("export", model, "-o", tmp_path / "out", "--for", "onnx").returncode == 0
    code, said = verified(model, tmp_path / "out", "--inputs", tmp_path / "x.npz")
    assert (code, "x[5, 4] y" in said, "DIFFERS" in said) == (0, True, False), said


def test_a_folder_of_neither_kind_is_no_artifact(tmp_path):
    code, said = verified(written(tmp_path / "a.onnx", ORIGINAL), tmp_path)
    assert (code, "is not a moec artifact" in said) == (2, True), said
