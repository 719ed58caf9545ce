"""Products with a constant matrix on the CUDA target, emulated, against the reference interpreter; and their
kernels."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest

import moec
from moec.ir import interpreter
from moec.ir.dialect import LinearSpec
from moec.ir.products import rounded_to_tf32
from moec.targets.cuda.dense_products import choices
from moec.targets.gpu.kernels.dense_problem import dense_problem
from moec.targets.gpu.kernels.packed_format import PackedFormat

from ...products import thinned
from ..node_models import node_model

RANDOM = np.random.default_rng(0)
ROWS = (0, 1, 5, 16, 17, 70)
HALF: dict[str, Any] = {"dtype": "float16", "matrix_dtype": "float16", "out_dtype": "float16"}


def _model(text: str, **constants: np.ndarray) -> ir.Model:
    """A graph, with the inputs named in ``constants`` turned into initializers."""
    proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 24]> g {text}')
    model = ir.serde.deserialize_model(onnx.shape_inference.infer_shapes(proto))
    for value in [value for value in model.graph.inputs if value.name in constants]:
        value.const_value = ir.tensor(constants[value.name], name=value.name)
        model.graph.inputs.remove(value)
        model.graph.register_initializer(value)
    return model


def _numbers(*shape: int, dtype: Any = np.float32) -> np.ndarray:
    return RANDOM.standard_normal(shape, dtype=np.float32).astype(dtype)


def _check(run: Any, model: ir.Model, x: np.ndarray, tolerance: float) -> None:
    expected = interpreter.run(model, {"x": x}, dtype=np.float64)["y"]
    actual = run({"x": x})["y"]
    assert actual.shape == expected.shape and actual.dtype == x.dtype
    scale = float(np.abs(expected).max(initial=1))
    np.testing.assert_allclose(actual.astype(np.float64) / scale, expected / scale, rtol=0, atol=tolerance)


GRAPHS = {
    "few rows and many": ("(float[T,24] x, float[24,45] w) => (float[T,45] y) { y = MatMul (x, w) }", (24, 45)),
    "batches": ("(float[T,2,33] x, float[33,8] w) => (float[T,2,8] y) { y = MatMul (x, w) }", (33, 8)),
    "bias": (
        "(float[T,20] x, float[9,20] w, float[9] b) => (float[T,9] y) { y = Gemm <beta = 2.0, transB = 1> (x, w, b) }",
        (9, 20),
    ),
    "no bias": ("(float[T,20] x, float[20,9] w) => (float[T,9] y) { y = Gemm (x, w) }", (20, 9)),
    "scaled": (
        "(float[T,20] x, float[20,9] w, float[9] b) => (float[T,9] y) { y = Gemm <alpha = 0.5> (x, w, b) }",
        (20, 9),
    ),
}


@thinned("name", GRAPHS, 2)
def test_equals_the_interpreter(emulated, name):
    text, shape = GRAPHS[name]
    constants = {"w": _numbers(*shape), **({"b": _numbers(9)} if " b)" in text else {})}
    model = _model(text, **constants)
    run = emulated(model)
    for T in ROWS:
        sizes = [size if isinstance(size, int) else T for size in model.graph.inputs[0].shape]
        _check(run, model, _numbers(*sizes), 1e-6)


def test_vector(emulated):
    model = _model("(float[24] x, float[24,5] w) => (float[5] y) { y = MatMul (x, w) }", w=_numbers(24, 5))
    _check(emulated(model), model, _numbers(24), 1e-6)


def test_tensor_cores_with_less_than_a_tile(program_of, emulated):
    """The product has less than a tile of columns. Its inputs are no multiple of 16 bytes, so rows are padded with a
    zero."""
    text = "(float16[T,71] x, float16[71,49] w) => (float16[T,49] y) { y = MatMul (x, w) }"
    model = _model(text, w=_numbers(71, 49, dtype=np.float16))
    program = program_of(model)
    assert {"pad_rows", "gemv", "gemm_mma"} <= {kernel.name for kernel in program.kernels}
    run = emulated(program)
    for T in ROWS:
        _check(run, model, _numbers(T, 71, dtype=np.float16), 1e-3)


@pytest.mark.parametrize("rows", ["T", pytest.param("40", marks=pytest.mark.nightly)])
def test_inputs_in_parts(emulated, rows):
    """Numbers of rows between few rows and enough tiles, dynamic or static, with an odd number of columns."""
    weight, bias = (_numbers(131, 520) / 23).astype(np.float16), _numbers(131)
    spec, shape = LinearSpec(activation="relu"), (1 if rows == "T" else 40, 520)
    model = node_model("Linear", {"x": np.zeros(shape, np.float16)}, {"weight": weight, "bias": bias}, spec)
    if rows != "T":
        model.graph.inputs[0].shape = ir.Shape(shape)
    run = emulated(model)
    for T in (0, 17, 70) if rows == "T" else (40,):
        x = _numbers(T, 520, dtype=np.float16)
        expected = np.maximum(x.astype(np.float64) @ weight.astype(np.float64).T + bias, 0)
        np.testing.assert_allclose(run({"x": x})["y"], expected, rtol=3e-3, atol=3e-3)


@thinned("form, dtype", [("int4,group=32", np.float32), ("int8", ml_dtypes.bfloat16)], 2)
def test_quantised_weights_stay_packed(form, dtype):
    weight = (_numbers(131, 128, dtype=np.float32) / 8).astype(dtype)
    bias = _numbers(131, dtype=dtype)
    model = node_model("Linear", {"x": np.zeros((1, 128), dtype)}, {"weight": weight, "bias": bias}, LinearSpec())
    compiled = moec.compile(model, target="cuda", passes=f"quantize-linears{{format={form}}}", emulate=True)
    stored = sum(entry["bytes"] for entry in compiled.describe()["weights"])
    assert stored < 2 * weight.size
    for T in (3, 40):
        x = _numbers(T, 128, dtype=dtype)
        expected = x.astype(np.float64) @ weight.astype(np.float64).T + bias.astype(np.float64)
        y = compiled.run({"x": x})["y"].astype(np.float64)
        assert np.linalg.norm(y - expected) / np.linalg.norm(expected) < 0.15


@pytest.mark.nightly
def test_tf32_rounds_rows_in_every_way_to_compute(emulated):
    """The ways for few and for many rows. The reference rounds the same numbers, so only the order of summation
    differs."""
    weight = rounded_to_tf32(_numbers(136, 72))
    model = node_model(
        "Linear", {"x": np.zeros((1, 72), np.float32)}, {"weight": weight}, LinearSpec(arithmetic="tf32")
    )
    run = emulated(model)
    for T in (3, 40):
        x = _numbers(T, 72)
        expected = rounded_to_tf32(x).astype(np.float64) @ weight.T
        y = run({"x": x})["y"]
        np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
        assert np.abs(y - x.astype(np.float64) @ weight.T).max() > 1e-4


@pytest.mark.parametrize(
    "problem, architecture, expected",
    [
        (dense_problem(64, 100), "sm_80", [("gemv", 0, 16), ("gemm_simt of 64", 17, None)]),
        (dense_problem(33, 100), "sm_80", [("gemm_simt of 64", 0, None)]),
        (
            dense_problem(64, 4096, **HALF),
            "sm_90a",
            [
                ("gemv", 0, 16),
                ("gemm_mma of 16", 17, 256),
                ("gemm_wgmma of 64", 257, 512),
                ("gemm_wgmma of 128", 513, None),
            ],
        ),
        (
            dense_problem(2048, 4096, **HALF),
            "sm_80",
            [
                ("gemv", 0, 16),
                ("gemm_mma_parts", 17, 128),
                ("gemm_mma of 64", 129, 512),
                ("gemm_mma of 128", 513, None),
            ],
        ),
        (
            dense_problem(2048, 128, **HALF),
            "sm_90a",
            [
                ("gemv", 0, 16),
                ("gemm_mma_parts", 17, 4096),
                ("gemm_wgmma of 64", 4097, 16384),
                ("gemm_wgmma of 128", 16385, None),
            ],
        ),
        (dense_problem(64, 2**17, **HALF), "sm_80", [("gemv", 0, 16), ("gemm_mma of 128", 17, None)]),
        (dense_problem(60, 2**17, tf32=True), "sm_80", [("gemv", 0, 16), ("gemm_mma of 128", 17, None)]),
        (dense_problem(62, 100, tf32=True), "sm_80", [("gemm_simt of 64", 0, None)]),
        (dense_problem(64, 2**17 + 3, **HALF), "sm_80", [("gemv", 0, 16), ("gemm_mma of 128", 17, None)]),
        (dense_problem(64, 2**17 + 3, **HALF), "sm_90a", [("gemv", 0, 16), ("gemm_wgmma of 128", 17, None)]),
        (
            dense_problem(64, 100, stored=PackedFormat("int8", 4), **HALF),
            "sm_80",
            [("gemm_simt of 64", 0, None)],
        ),
    ],
)
def test_choices_cover_all_numbers_of_rows(problem, architecture, expected):
    actual = []
    for choice in choices(problem, architecture):
        name, rows = choice.selection.kernel.name, choice.rows
        height = "" if name in ("gemv", "gemm_mma_parts") else f" of {choice.problem.block_rows}"
        actual.append((f"{name}{height}", rows.least, rows.most))
    assert actual == expected


def test_what_is_not_chosen_has_a_reason():
    _, many = choices(dense_problem(64, 100), "sm_80")
    reasons = {candidate.kernel: candidate.reason for candidate in many.selection.candidates}
    assert "more than 16 rows" in reasons["gemv"] and "needs sm_90a" in reasons["gemm_wgmma"]
    assert "takes float16 or bfloat16" in reasons["gemm_mma"]
    assert "lane reads 4 at once" in choices(dense_problem(33, 100), "sm_80")[0].selection.candidates[0].reason
