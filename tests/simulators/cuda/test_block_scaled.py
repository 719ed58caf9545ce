"""mma with block scales: fragments, scales and selectors as the PTX manual has them, and products as numpy has them."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from moec.common.errors import UnsupportedError

from .emulated import load, load_one

E2M1, E4M3, E8M0 = ml_dtypes.float4_e2m1fn, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e8m0fnu
KIND = {64: "mxf4nvf4", 32: "mxf8f6f4"}
PRODUCTS = {  # depth, chunks, types of A and B, type of the scales
    "nvfp4": (64, 4, E2M1, E2M1, E4M3),
    "mxfp4": (64, 2, E2M1, E2M1, E8M0),
    "e4m3_e2m1": (32, 1, E4M3, E2M1, E8M0),
    "e2m1_e4m3": (32, 1, E2M1, E4M3, E8M0),
    "e4m3_e4m3": (32, 1, E4M3, E4M3, E8M0),
}
NAMES = {E2M1: "e2m1", E4M3: "e4m3", E8M0: "ue8m0"}
MULTIPLY = """
extern "C" __global__ void multiply_{name}(unsigned* a, unsigned* b, unsigned* scales, float* c, float* d,
                                           int byte_a, int lane_a, int byte_b, int lane_b) {{
  int lane = threadIdx.x;
  float r[4];
  asm volatile("{opcode} {{%0, %1, %2, %3}}, {{%4, %5, %6, %7}}, {{%8, %9}}, {{%10, %11, %12, %13}}, "
               "{{%14}}, {{%15, %16}}, %17, {{%18, %19}};"
               : "=f"(r[0]), "=f"(r[1]), "=f"(r[2]), "=f"(r[3])
               : "r"(a[lane]), "r"(a[32 + lane]), "r"(a[64 + lane]), "r"(a[96 + lane]), "r"(b[lane]), "r"(b[32 + lane]),
                 "f"(c[lane]), "f"(c[32 + lane]), "f"(c[64 + lane]), "f"(c[96 + lane]),
                 "r"(scales[lane]), "h"((unsigned short)byte_a), "h"((unsigned short)lane_a),
                 "r"(scales[32 + lane]), "h"((unsigned short)byte_b), "h"((unsigned short)lane_b));
  for (int i = 0; i < 4; ++i) d[i * 32 + lane] = r[i];
}}
"""


def opcode(name: str) -> str:
    depth, chunks, a, b, scale = PRODUCTS[name]
    stored = "ue4m3" if scale is E4M3 else "ue8m0"
    shape = f"m16n8k{depth}.row.col.kind::{KIND[depth]}.block_scale.scale_vec::{chunks}X"
    return f"mma.sync.aligned.{shape}.f32.{NAMES[a]}.{NAMES[b]}.f32.{stored}"


@pytest.fixture(scope="module")
def kernels() -> Any:
    source = "".join(MULTIPLY.format(name=name, opcode=opcode(name)) for name in PRODUCTS)
    return load(source, *(f"multiply_{name}" for name in PRODUCTS))


def packed(numbers: np.ndarray, depth: int) -> np.ndarray:
    """Numbers [rows, depth] as words [rows, depth / elements]: 4-bit floats fill words of products of 64 inputs, and
    lie in the middle of bytes in others."""
    codes = np.ascontiguousarray(numbers).view(np.uint8)
    if numbers.dtype == E2M1:
        codes = codes[:, ::2] | codes[:, 1::2] << 4 if depth == 64 else codes << 2
    return np.ascontiguousarray(codes).view(np.uint32)


def registers(words: np.ndarray) -> np.ndarray:
    """The registers [count, 32] of rows of words: eight rows, then the next eight, then the next four words."""
    halves = range(0, len(words), 8)
    quarters = [words[half : half + 8, at : at + 4] for at in range(0, words.shape[1], 4) for half in halves]
    return np.stack([quarter.reshape(32) for quarter in quarters])


def of_sums(sums: np.ndarray) -> np.ndarray:
    return np.stack([sums[half * 8 : half * 8 + 8, i::2].reshape(32) for half in (0, 1) for i in (0, 1)])


def of_scales(scales: np.ndarray, byte: int, lane: int) -> np.ndarray:
    """The register of each lane that holds scales [rows, chunks] from ``byte`` on; all others are full of NaN."""
    lanes = np.full((32, 4), 0x7F if scales.dtype == E4M3 else 0xFF, np.uint8)
    for row, codes in enumerate(scales.view(np.uint8)):
        place = row % 8 * 4 + (2 * lane + row // 8 if len(scales) == 16 else lane)
        lanes[place, byte : byte + len(codes)] = codes
    return lanes.view(np.uint32).reshape(32)


def case(name: str) -> tuple[np.ndarray, ...]:
    depth, chunks, a, b, scale = PRODUCTS[name]
    random = np.random.default_rng(7)

    def codes(shape: tuple[int, int], dtype: Any) -> np.ndarray:
        if dtype is E2M1:
            return random.integers(0, 16, shape).astype(np.uint8).view(dtype)
        return random.normal(size=shape).astype(dtype)

    def scales(rows: int) -> np.ndarray:
        if scale is E8M0:
            return random.integers(120, 134, (rows, chunks)).astype(np.uint8).view(scale)
        return random.integers(0, 0x7F, (rows, chunks)).astype(np.uint8).view(scale)

    c = random.normal(size=(16, 8)).astype(np.float32)
    return codes((16, depth), a), codes((8, depth), b), scales(16), scales(8), c


def run(kernels: Any, name: str, selectors: tuple[int, ...], *arrays: np.ndarray) -> np.ndarray:
    a, b, scale_a, scale_b, c = arrays
    byte_a, lane_a, byte_b, lane_b = selectors
    d, depth = np.zeros((4, 32), np.float32), PRODUCTS[name][0]
    scales = np.stack([of_scales(scale_a, byte_a, lane_a), of_scales(scale_b, byte_b, lane_b)])
    operands = registers(packed(a, depth)), registers(packed(b, depth)), scales, of_sums(c)
    kernels[f"multiply_{name}"](*operands, d, *selectors)
    return d


def expected(a: np.ndarray, b: np.ndarray, scale_a: np.ndarray, scale_b: np.ndarray, c: np.ndarray) -> np.ndarray:
    group = a.shape[1] // scale_a.shape[1]
    left, right = (
        numbers.astype(np.float64) * scales.astype(np.float64).repeat(group, 1)
        for numbers, scales in ((a, scale_a), (b, scale_b))
    )
    return left @ right.T + c


@pytest.mark.parametrize("name", PRODUCTS)
def test_products_with_every_selector(kernels, name):
    arrays, chunks = case(name), PRODUCTS[name][1]
    result = of_sums(expected(*arrays))
    for byte in range(0, 5 - chunks, chunks):
        for lane in range(4):
            d = run(kernels, name, (byte, lane % 2, (4 - chunks) - byte, lane), *arrays)
            np.testing.assert_allclose(d, result, rtol=1e-5, atol=1e-5 * np.abs(result).max())


@pytest.mark.parametrize("name", ["nvfp4", "mxfp4"])
def test_a_scale_belongs_to_its_row_and_chunk(kernels, name):
    """A scale that is no number makes that of one row, or of one column."""
    a, b, scale_a, scale_b, c = case(name)
    scale_a, scale_b = scale_a.copy(), scale_b.copy()
    wrong = 0x7F if name == "nvfp4" else 0xFF
    scale_a.view(np.uint8)[11, 1] = wrong
    scale_b.view(np.uint8)[5, 0] = wrong
    is_nan = np.zeros((16, 8), np.float32)
    is_nan[11], is_nan[:, 5] = 1, 1
    d = run(kernels, name, (0, 1, 0, 3), a, b, scale_a, scale_b, c)
    np.testing.assert_array_equal(np.isnan(d), of_sums(is_nan) == 1)


def test_the_smallest_and_largest_exponents(kernels):
    a, b = np.ones((16, 32), E4M3), np.ones((8, 32), E2M1)
    low, high = (np.full((rows, 1), code, np.uint8).view(E8M0) for rows, code in ((16, 0), (8, 254)))
    d = run(kernels, "e4m3_e2m1", (0, 0, 0, 0), a, b, low, high, np.zeros((16, 8), np.float32))
    np.testing.assert_array_equal(d, 32)


@pytest.mark.parametrize(
    ("name", "selectors", "message"),
    [
        ("nvfp4", (1, 0, 0, 0), "scales in byte 1 of lane 0; expected a multiple of 4 up to 0, and .* below 2"),
        ("nvfp4", (0, 2, 0, 0), "lane 2; .* below 2"),
        ("mxfp4", (0, 0, 1, 0), "byte 1 of lane 0; expected a multiple of 2 up to 2, and .* below 4"),
        ("e4m3_e2m1", (4, 0, 0, 0), "byte 4 of lane 0; expected a multiple of 1 up to 3"),
        ("e4m3_e2m1", (0, 0, 0, 4), "lane 4; .* below 4"),
    ],
)
def test_wrong_selectors(kernels, name, selectors, message):
    words = np.zeros((4, 32), np.uint32)
    with pytest.raises(RuntimeError, match=message):
        kernels[f"multiply_{name}"](words, words, words, words, words, *selectors)


def test_wrong_bits(kernels):
    words, ones = np.zeros((4, 32), np.uint32), np.full((4, 32), 1, np.uint32)
    with pytest.raises(RuntimeError, match="scale 0x00000080 of ue4m3 has a sign"):
        kernels["multiply_nvfp4"](words, words, 0x80 * ones, words, words, 0, 0, 0, 0)
    with pytest.raises(RuntimeError, match="byte 0x00000001 of e2m1 has bits outside of the middle four"):
        kernels["multiply_e4m3_e2m1"](words, ones, words, words, words, 0, 0, 0, 0)


def test_lanes_select_alike():
    source = MULTIPLY.format(name="nvfp4", opcode=opcode("nvfp4")).replace("(unsigned short)lane_a", "lane % 2")
    words = np.zeros((4, 32), np.uint32)
    with pytest.raises(RuntimeError, match="lanes select scales in different ways"):
        load_one(source, "multiply_nvfp4")(words, words, words, words, words, 0, 0, 0, 0)


@pytest.mark.parametrize(
    ("old", "new"), [("4X", "2X"), ("ue4m3", "ue8m0"), ("mxf4nvf4", "mxf4"), ("e2m1.e2m1", "e2m1.e3m2")]
)
def test_combinations_without_a_model_are_refused(old, new):
    source = MULTIPLY.format(name="nvfp4", opcode=opcode("nvfp4").replace(old, new))
    with pytest.raises(UnsupportedError, match=r"PTX instruction mma\..*no model"):
        load_one(source, "multiply_nvfp4")
