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


FOUR = "float[4] per_output = {1, 2, 3, 4}"
SCALES = {
    "one per output": ("int8[6,4]", FOUR, "(data, per_output)", "float[1,4] w_scale", 6),
    "one per output, from behind": ("int8[6,4]", FOUR, "<axis = -1> (data, per_output)", "float[1,4] w_scale", 6),
    "one for all": ("fp8[6,4]", "float one = {2}", "(data, one)", "float[1,4] w_scale", 6),
    "zero points that are zero": (
        *("int4[6,4]", FOUR + ", int4[4] zero = {0, 0, 0, 0}", "(data, per_output, zero)"),
        *("float[1,4] w_scale", 6),
    ),
    "groups that kernels read": ("int2[80,4]", FOUR, "(data, per_output)", "float[2,4] w_scale", 64),
    "zero points": (
        *("uint4[6,4]", FOUR + ", uint4[4] zero = {7, 8, 9, 0}", "(data, per_output, zero)"),
        *("float[1,4] w_scale, uint4[1,4] w_zero_point", 6),
    ),
}


@pytest.mark.parametrize("case", SCALES)
def test_scales_are_put_in_groups(case):
    """The numbers of small types are zeros here; tests/targets compares others."""
    data, tables, decode, after, block = SCALES[case]
    data = data.replace("fp8", "float8e4m3fn")
    signature = f"(float[T,{data[data.index('[') + 1 : data.index(',')]}] x) => (float[T,4] y)"
    before = f"{signature} <{data} data, {tables}> {{ w = DequantizeLinear {decode} y = MatMul (x, w) }}"
    operands = "data, " + ", ".join(part.split()[1] for part in after.replace(",4]", ";4]").split(", "))
    linear = "y = moec.Linear <transposed = 1> (x, w_in_groups)"
    decoded = f"w_in_groups = DequantizeLinear <axis = 0, block_size = {block}> ({operands})"
    check(PASSES, before, f"{signature} <{data} data, {after}> {{ {decoded} {linear} }}")


STAY = {
    "groups along the outputs": (
        "DequantizeLinear <axis = 1, block_size = 2> (data, scales)".replace("scales", "others"),
        "MatMul (x, w)",
    ),
    "one scale per input": ("DequantizeLinear <axis = 0> (data, per_input)", "MatMul (x, w)"),
    "signed elements with zero points": ("DequantizeLinear (data, one, three)", "MatMul (x, w)"),
    "a scaled product": (DECODE.partition(" = ")[2], "Gemm <alpha = 2.0> (x, w)"),
    "floats": ("Cast <to = 1> (data)", "MatMul (x, w)"),
}


@pytest.mark.parametrize("case", STAY)
def test_siblings_that_stay(case):
    decode, product = STAY[case]
    constants = MATRIX.replace(
        "float[4] b",
        f"float one = {{2}}, float[6,2] others = {{{', '.join(['1', '3'] * 6)}}}, int8 three = {{3}}, "
        "float[6] per_input = {1, 2, 3, 4, 5, 6}, float[4] b",
    )
    text = f"(float[T,6] x) => (float[T,4] y) {constants} {{ w = {decode} y = {product} }}"
    check(PASSES, text, None, ROWS)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_16_bits(dtype):
    start = f"(float[T,6] x) => (float[T,4] y) <{dtype}[6,4] data> {{ w = Cast <to = 1> (data) "
    check(PASSES, f"{start} y = MatMul (x, w) }}", f"{start} y = moec.Linear <transposed = 1> (x, w) }}", ROWS)


def test_sibling_cast_to_16_bits_stays():
    check(
        PASSES, "(float16[T,6] x) => (float16[T,4] y) <float[6,4] data> { w = Cast <to = 10> (data) y = MatMul (x, w) }"
    )
