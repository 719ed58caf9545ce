"""Dense products whose inputs are divided into parts, emulated, against numpy; and the number of parts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tvm import tirx

from moec.ir.weights.encode import decode, encode
from moec.ir.weights.format import WeightFormat
from moec.targets.cuda.kernels.gemm_parts import GEMM_PARTS, gemm_parts, join_parts, most_rows, parts_for
from moec.targets.gpu.kernels.dense_problem import dense_problem
from moec.targets.gpu.kernels.grouped_problem import GroupedProblem
from moec.targets.gpu.kernels.packed_format import PackedFormat, pack
from moec.targets.gpu.kernels.tiled_kernels import DenseLaunch

from .kernel_runner import Kernel, build
from .layers import undefined

RANDOM = np.random.default_rng(0)
HALF: dict[str, Any] = {"dtype": "float16", "matrix_dtype": "float16", "out_dtype": "float16"}
INNER, WIDTH = 840, 136
"""Sizes with fourteen k-tiles, the last one incomplete, in three parts: each has more k-tiles than the ring has
stages."""


def _normal(*shape: int) -> np.ndarray:
    return RANDOM.standard_normal(shape, np.float32)


def _parts(problem: GroupedProblem, rows: int) -> int:
    return int(parts_for(problem, tirx.IntImm("int64", rows), "int64"))


def _multiply(problem: GroupedProblem, kernels: tuple[Kernel, Kernel], x: np.ndarray, *operands: np.ndarray) -> Any:
    (*matrix, bias), (product, join) = operands, kernels
    sums = undefined((_parts(problem, len(x)) * len(x), problem.width), "float32")
    return join(product(x, *matrix, sums), bias, undefined((len(x), problem.width), problem.out_dtype))


@pytest.mark.nightly
@pytest.mark.parametrize("options", [{"watch": True}, {"completion": "earliest", "first_thread": 77}])
def test_sums_of_parts_are_joined(options):
    problem = dense_problem(INNER, WIDTH, **HALF)
    kernels = build(gemm_parts(problem), **options), build(join_parts(problem, lambda total: 2 * total), **options)
    matrix, bias = (_normal(1, WIDTH, INNER) / INNER**0.5).astype(np.float16), _normal(1, WIDTH)
    for rows in (0, 1, 70):
        x = _normal(rows, INNER).astype(np.float16)
        assert _parts(problem, rows) == 3
        expected = 2 * (x.astype(np.float64) @ matrix[0].astype(np.float64).T + bias)
        actual = _multiply(problem, kernels, x, matrix, bias)
        np.testing.assert_allclose(actual, expected, rtol=2e-3, atol=2e-3)


@pytest.mark.nightly
def test_a_quantised_matrix():
    stored, form = PackedFormat("int4", 64, "float16"), WeightFormat("int4", 64)
    problem = dense_problem(832, WIDTH, stored=stored, dtype="float16", biased=False)
    encoded = encode(_normal(WIDTH, 832), form, axis=1)
    packed = [pack(stored, "data", encoded.data)[None], pack(stored, "scale", encoded.scale)[None]]
    packed.append(np.zeros((1, 1, 1), np.uint8))
    numbers, x = decode(encoded, form, axis=1), (_normal(65, 832) / 29).astype(np.float16)
    kernels = build(gemm_parts(problem), watch=True), build(join_parts(problem, lambda total: total), watch=True)
    actual = _multiply(problem, kernels, x, *packed, np.zeros((1, 1), np.float32))
    np.testing.assert_allclose(actual, x.astype(np.float64) @ numbers.T, rtol=5e-3, atol=5e-3)


@pytest.mark.parametrize(
    ("inner", "width", "rows", "parts"),
    [
        (2048, 128, 17, 8),  # four k-tiles each
        (4096, 2048, 64, 8),  # 16 tiles
        (4096, 2048, 65, 4),
        (4096, 2048, 256, 2),
        (4096, 2048, 257, 1),
        (448, 128, 17, 1),  # seven k-tiles
    ],
)
def test_so_many_parts_keep_a_device_busy(inner, width, rows, parts):
    problem = dense_problem(inner, width, **HALF)
    assert _parts(problem, rows) == parts
    assert (rows <= most_rows(problem)) == (parts > 1)


def test_what_is_not_divided_has_a_reason():
    def reason(**fields: Any) -> str | None:
        return GEMM_PARTS.why_not(
            DenseLaunch(dense_problem(**{"inner": 1024, "width": 128, **HALF, **fields}), 64), "sm_80"
        )

    assert reason() is None
    assert "too few inputs" in reason(inner=448) and "tiles enough" in reason(width=65 * 128)
    assert "float32 rows" in reason(dtype="float32", matrix_dtype="float32")
