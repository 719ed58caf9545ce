"""Kernels of grouped products in the form of a dense one, and the product of few rows, emulated, against numpy."""

from __future__ import annotations

import numpy as np

from moec.common.dtypes import dtype_of
from moec.ir.products import rounded_to_tf32
from moec.ir.weights.encode import decode, encode
from moec.ir.weights.format import WeightFormat
from moec.targets.cuda.kernels.grouped_gemm_mma import grouped_gemm_mma
from moec.targets.cuda.kernels.grouped_gemm_umma import grouped_gemm_umma
from moec.targets.cuda.kernels.grouped_gemm_wgmma import grouped_gemm_wgmma
from moec.targets.gpu.kernels.dense_problem import dense_kernel, dense_problem
from moec.targets.gpu.kernels.gemv import gemv, why_not
from moec.targets.gpu.kernels.packed_format import PackedFormat, pack

from ....products import thinned
from .kernel_runner import build
from .layers import undefined

RANDOM = np.random.default_rng(0)
HALF = {"dtype": "float16", "matrix_dtype": "float16"}
BFLOAT = {"dtype": "bfloat16", "matrix_dtype": "bfloat16", "out_dtype": "bfloat16"}
KERNELS = {
    "tiles of 64 rows": (dense_problem(104, 200, block_rows=64, **HALF), grouped_gemm_mma, "sm_80"),
    "tiles of 128 rows": (dense_problem(64, 136, block_rows=128, **HALF), grouped_gemm_mma, "sm_80"),
    "for Hopper": (dense_problem(128, 256, block_rows=64, **HALF), grouped_gemm_wgmma, "sm_90a"),
    "for Blackwell": (dense_problem(128, 256, block_rows=256, **HALF), grouped_gemm_umma, "sm_100a"),
}

ANY_WIDTH = {
    "mma, 131": (dense_problem(72, 131, block_rows=128, **BFLOAT), grouped_gemm_mma, "sm_80"),
    "mma, 9": (dense_problem(64, 9, block_rows=16, **HALF), grouped_gemm_mma, "sm_80"),
    "mma, 3": (dense_problem(64, 3, block_rows=64, **BFLOAT), grouped_gemm_mma, "sm_80"),
    "mma, 49": (dense_problem(72, 49, block_rows=64, biased=False, **HALF), grouped_gemm_mma, "sm_80"),
    "mma, 130": (dense_problem(64, 130, block_rows=64, **{**HALF, "out_dtype": "float16"}), grouped_gemm_mma, "sm_80"),
    "wgmma, 131": (dense_problem(64, 131, block_rows=64, **BFLOAT), grouped_gemm_wgmma, "sm_90a"),
    "wgmma, 9": (dense_problem(72, 9, block_rows=64, **HALF), grouped_gemm_wgmma, "sm_90a"),
    "wgmma, 49": (dense_problem(64, 49, block_rows=128, **BFLOAT), grouped_gemm_wgmma, "sm_90a"),
    "wgmma, 130": (dense_problem(64, 130, block_rows=64, **BFLOAT), grouped_gemm_wgmma, "sm_90a"),
    "umma, 131": (dense_problem(64, 131, block_rows=64, **BFLOAT), grouped_gemm_umma, "sm_100a"),
    "umma, 9": (dense_problem(72, 9, block_rows=256, **HALF), grouped_gemm_umma, "sm_100a"),
    "umma, 330": (dense_problem(64, 330, block_rows=256, **BFLOAT), grouped_gemm_umma, "sm_100a"),
    "mma, 133, tf32": (dense_problem(36, 133, block_rows=64, tf32=True), grouped_gemm_mma, "sm_80"),
}
"""Widths at which rows of results are aligned to one element only, or to two."""


def _normal(*shape: int) -> np.ndarray:
    return RANDOM.standard_normal(shape, np.float32)


@thinned("name", KERNELS, 2)
def test_tensor_cores(name):
    problem, generate, architecture = KERNELS[name]
    kernel = build(generate(problem, lambda total: total, dense_kernel), architecture)
    matrix, bias = _normal(1, problem.width, problem.inner).astype(np.float16), _normal(1, problem.width)
    for rows in (0, 1, 150):
        x = _normal(rows, problem.inner).astype(np.float16)
        expected = x.astype(np.float64) @ matrix[0].astype(np.float64).T + bias
        actual = kernel(x, matrix, bias, undefined((rows, problem.width), "float32"))
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


@thinned("name", ANY_WIDTH, 5)
def test_any_number_of_columns(name):
    problem, generate, architecture = ANY_WIDTH[name]
    kernel = build(generate(problem, lambda total: total, dense_kernel), architecture)
    dtype, out_dtype = dtype_of(problem.dtype), dtype_of(problem.out_dtype)
    matrix, bias = _normal(1, problem.width, problem.inner), _normal(*problem.bias_shape)
    matrix = (rounded_to_tf32(matrix) if problem.tf32 else matrix).astype(dtype)
    for rows in (0, 1, 17, 130):
        x = _normal(rows, problem.inner)
        x = (rounded_to_tf32(x) if problem.tf32 else x).astype(dtype)
        expected = x.astype(np.float64) @ matrix[0].astype(np.float64).T + (bias if problem.biased else 0)
        actual = kernel(x, matrix, bias, undefined((rows, problem.width), problem.out_dtype)).astype(np.float64)
        tolerance = 1e-4 if out_dtype.itemsize == 4 else 1e-2
        np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance)


def test_few_rows_of_a_quantised_matrix():
    stored, form = PackedFormat("int4", 32, "float16"), WeightFormat("int4", 32)
    problem = dense_problem(64, 37, stored=stored)
    encoded = encode(_normal(37, 64), form, axis=1)
    packed = [pack(stored, "data", encoded.data)[None], pack(stored, "scale", encoded.scale)[None]]
    packed.append(np.zeros((1, 1, 1), np.uint8))
    numbers, bias = decode(encoded, form, axis=1), _normal(1, 37)
    kernel = build(gemv(problem, lambda total: 2 * total))
    for rows in (0, 1, 7):
        x = _normal(rows, 64)
        expected = 2 * (x.astype(np.float64) @ numbers.T + bias)
        actual = kernel(x, *packed, bias, undefined((rows, 37), "float32"))
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


def test_what_few_rows_cannot_be_has_a_reason():
    assert "no dense product" in why_not(dense_problem(64, 32, gated=True))
    assert "reads 4 at once" in why_not(dense_problem(66, 32)) and why_not(dense_problem(64, 33)) is None
