"""Dense products with weights that DequantizeLinear makes."""

from __future__ import annotations

import numpy as np
import pytest

from .before_after import check

PASSES = "infer-shapes,fuse-stored-weights"
MATRIX = "<int8[6,4] data = {INTS}, float[2,4] scales = {FLOATS}, float[4] b = {1, 2, 3, 4}>"
MATRIX = MATRIX.replace("INTS", ", ".join(map(str, range(-12, 12)))).replace("FLOATS", ", ".join(["0.5", "2"] * 4))
DECODE = "w = DequantizeLinear <axis = 0, block_size = 3> (data, scales)"
ROWS = {"x": np.arange(12, dtype=np.float32).reshape(2, 6)}


@pytest.mark.parametrize(
    "product, operands", [("y = MatMul (x, w)", "x, w"), ("p = MatMul (x, w) y = Add (p, b)", "x, w, b")]
)
def test_matmul(product, operands):
    start = f"(float[T,6] x) => (float[T,4] y) {MATRIX} {{ {DECODE} "
    after = f"y = moec.Linear <transposed = 1> ({operands}) }}"
    check(PASSES, f"{start} {product} }}", start + after, ROWS)


@pytest.mark.parametrize(("trans", "x", "bias"), [(0, "float[T,6] x", ", b"), (1, "float[T,4] x", "")])
def test_gemm(trans, x, bias):
    decode = DECODE if not trans else DECODE.replace("axis = 0", "axis = 1").replace("block_size = 3", "block_size = 4")
    matrix = MATRIX if not trans else MATRIX.replace("float[2,4] scales", "float[6,1] scales").replace(", 0.5, 2}", "}")
    size = 4 if not trans else 6
    start = f"({x}) => (float[T,{size}] y) {matrix} {{ {decode} "
    after = f"y = moec.Linear {'' if trans else '<transposed = 1>'} (x, w{bias}) }}"
    case = ROWS if not trans else {"x": ROWS["x"][:, :4]}
    check(PASSES, f"{start} y = Gemm <transB = {trans}> (x, w{bias}) }}", start + after, case)


STAY = {
    "groups along the outputs": (
        "DequantizeLinear <axis = 1, block_size = 2> (data, scales)".replace("scales", "others"),
        "MatMul (x, w)",
    ),
    "one scale for all": ("DequantizeLinear (data, one)", "MatMul (x, w)"),
    "a scaled product": (DECODE.partition(" = ")[2], "Gemm <alpha = 2.0> (x, w)"),
    "floats": ("Cast <to = 1> (data)", "MatMul (x, w)"),
}


@pytest.mark.parametrize("case", STAY)
def test_siblings_that_stay(case):
    decode, product = STAY[case]
    constants = MATRIX.replace(
        "float[4] b", f"float one = {{2}}, float[6,2] others = {{{', '.join(['1', '3'] * 6)}}}, float[4] b"
    )
    text = f"(float[T,6] x) => (float[T,4] y) {constants} {{ w = {decode} y = {product} }}"
    check(PASSES, text, None, ROWS)
