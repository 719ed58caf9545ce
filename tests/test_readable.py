"""Kernels of whole artifacts, and the golden texts, read as a person would write them."""

from __future__ import annotations

import pathlib

import pytest

from moec.compiling import compiler
from moec.compiling.compile_options import CompileOptions
from moec.targets.cuda import nvcc
from moec.targets.tvm.text.steps import STEP

from .conftest import GOLDEN
from .readable import FORMS, check_sources, unreadable_parts

CHAR_LM = pathlib.Path(__file__).parents[1] / "examples" / "char_lm" / "model.onnx"


@pytest.mark.parametrize("path", [*GOLDEN.glob("*.tir"), *GOLDEN.glob("*.cu")], ids=lambda path: path.name)
def test_golden_texts(path):
    text = path.read_text()
    assert not unreadable_parts(text, FORMS[path.suffix])
    assert STEP not in text


@pytest.mark.nightly
def test_kernels_for_a_gpu(tmp_path, monkeypatch):
    monkeypatch.setattr(nvcc, "find_tool", lambda _name: None)
    compiler.write(CHAR_LM, tmp_path / "art", CompileOptions(target="cuda:sm_90a"))
    check_sources(tmp_path / "art" / "src")


@pytest.mark.parametrize(
    ("text", "form", "found"),
    [
        ("x" * 121, "asm", ["x" * 121]),
        ("x = y + T.int64(3)", "tir", ["T.int64(3"]),
        ("n: T.let = 3\nx[0] = m", "tir", ["n"]),
        ("n: T.let = 3\nx[0] = n", "tir", []),
        ("  int n = 0x1p+0f;\n", "cuda", ["0x1p+0", "n"]),
        ("  int n = 3;\n  x[n] = 1.0f;\n", "cuda", []),
    ],
)
def test_the_checks_find(text, form, found):
    assert unreadable_parts(text, form) == found
