"""Experts of any form, as graphs over dispatched rows: the interpreter and the processor against dense numpy."""

from __future__ import annotations

import re

import numpy as np
import onnx_ir as ir
import pytest

import moec
from moec.common.errors import UnsupportedError
from moec.compiling import compiler
from moec.compiling.compile_options import CompileOptions
from moec.ir import interpreter
from moec.ir.shapes import infer
from moec.ir.text import parse_model
from moec.ir.verifier import verify
from moec.passes import pipeline
from moec.targets.hls.options import HlsOptions

from ..products import thinned
from .dispatched_cases import FORMS, E, choices, d, expected, f, inputs, k, model_of


@pytest.mark.parametrize("name", FORMS)
def test_the_interpreter_computes_what_dense_experts_do(name: str) -> None:
    model = model_of(FORMS[name])
    verify(model)
    infer(model)
    for tokens in (0, 1, 7):
        for ids in choices(tokens):
            feeds = inputs(tokens, ids)
            y = interpreter.run(model, feeds, dtype=np.float64)["y"]
            np.testing.assert_allclose(y, expected(FORMS[name], feeds), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", FORMS)
def test_the_processor_computes_what_dense_experts_do(name: str) -> None:
    compiled = moec.compile(model_of(FORMS[name]), passes="O2")
    assert sum(kernel.startswith("moe_grouped_gemm") for kernel in compiled.kernels) <= FORMS[name].body.count(
        "Grouped"
    )
    for tokens in (0, 1, 7, 210):
        for ids in choices(tokens):
            feeds = inputs(tokens, ids)
            np.testing.assert_allclose(compiled.run(feeds)["y"], expected(FORMS[name], feeds), rtol=1e-4, atol=1e-4)


def test_every_number_of_threads_gives_the_same_bits(tmp_path) -> None:
    moec.compile(model_of(FORMS["three layers"]), passes="O2").save(tmp_path / "a.moec")
    feeds = inputs(210, next(choices(210)))
    results = [moec.load(tmp_path / "a.moec", threads=threads).run(feeds)["y"] for threads in (1, 2, 3)]
    assert all(np.array_equal(results[0], result) for result in results)


def test_narrow_floats() -> None:
    form = FORMS["a norm of its own"]
    feeds = inputs(9, next(choices(9)), np.float16)
    y = moec.compile(model_of(form, np.float16), passes="O2").run(feeds)["y"]
    assert y.dtype == np.float16
    np.testing.assert_allclose(y.astype(np.float32), expected(form, feeds), rtol=2e-2, atol=2e-2)


FORMATS = [
    f"quantize-experts{{format={form}}}"
    for form in ("int8", "int4,group=32,zero_points=true", "int3", "int2", "fp8", "mxfp4")
]
MIXED = "quantize-experts{format=int4,group=32,experts=0+3},quantize-experts{format=int8,experts=1}"


@thinned("passes", [*FORMATS, MIXED], 8)
def test_weights_in_every_format(passes: str) -> None:
    form, given = FORMS["three layers"], inputs(40, next(choices(40)))
    model = model_of(form)
    pipeline.run(model, pipeline.parse(passes))
    reference = interpreter.run(model, given, dtype=np.float64)["y"]
    y = moec.compile(model_of(form), passes=passes).run(given)["y"]
    assert np.linalg.norm(y - reference) <= 2e-2 * np.linalg.norm(reference)


GROUPED = f"""<ir_version: 11, opset_import: ["" : 24, "moec" : 1]>
g (float[R,{d}] x, int32[{E + 1}] o, float[T,{k}] w, int32[T,{k}] p) => (float[R,{f}] y, float[T,{d}] z)
<float[{E},{d},{f}] up = ["location": "sha256:{"0" * 16}"]> {{
   y = moec.GroupedMatMul (x, up, o)
   z = moec.Combine (x, w, p)
}}"""


def test_offsets_and_positions_from_outside_never_lead_outside_the_rows() -> None:
    """Whatever they are, results of rows before the first wrong offset are right, and nothing crashes."""
    model, random = parse_model(GROUPED), np.random.default_rng(1)
    up = random.standard_normal((E, d, f)).astype(np.float32)
    model.graph.initializers["up"].const_value = ir.tensor(up, name="up")
    compiled = moec.compile(model, passes="")
    x, weights = random.standard_normal((6, d)).astype(np.float32), np.ones((2, k), np.float32)
    far = 2**31 - 1
    for offsets in ((0, 2, 2, 4, 5, 5), (0, 2, far, far, far, far), (-far, 2, -5, 70, 4, -1), (far,) * 6):
        feeds = {
            "x": x,
            "o": np.array(offsets, np.int32),
            "w": weights,
            "p": np.array([[0, far, -far], [-1, 6, 5]], np.int32),
        }
        actual = compiled.run(feeds)
        np.testing.assert_allclose(actual["z"], [x[0], x[5]])
        owners = [sum(bound <= row for bound in offsets[1:]) for row in range(6)]
        rows = [row @ up[owner] if owner < E else np.zeros(f) for row, owner in zip(x, owners, strict=True)]
        np.testing.assert_allclose(actual["y"], rows, rtol=1e-4, atol=1e-4)


def test_a_number_of_experts_that_offsets_do_not_have_is_refused() -> None:
    model = parse_model(GROUPED.replace(f"int32[{E + 1}] o", "int32[N] o"))
    model.graph.initializers["up"].const_value = ir.tensor(np.zeros((E, d, f), np.float32), name="up")
    compiled = moec.compile(model, passes="")
    feeds = {"x": np.zeros((2, d), np.float32), "w": np.ones((2, k), np.float32), "p": np.zeros((2, k), np.int32)}
    with pytest.raises(moec.MoecError, match=re.escape("o")):
        compiled.run({**feeds, "o": np.zeros(E, np.int32)})


def test_projects_for_fpgas_refuse_them(tmp_path) -> None:
    model, given = model_of(FORMS["three layers"]), inputs(8, next(choices(8)))
    with pytest.raises(UnsupportedError, match=r"moec\.Dispatch: .*expected moec.Experts"):
        compiler.write(
            model,
            tmp_path / "never.moec",
            CompileOptions(target="hls:zcu102", target_options=HlsOptions(given, max_tokens=8)),
        )
    assert not (tmp_path / "never.moec").exists()
