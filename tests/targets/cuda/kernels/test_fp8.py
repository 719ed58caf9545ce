"""Rows packed in fp8, and their products with matrices in fp8, in the emulator."""

from __future__ import annotations

import dataclasses
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from moec.ir.dialect import ProductSpec
from moec.ir.products import quantize_rows, rounded_rows
from moec.ir.weights.encode import decode
from moec.targets.cuda.kernels.grouped_gemm_mma import GEMM_MMA, GROUPED_GEMM_MMA, why_not
from moec.targets.cuda.kernels.grouped_gemm_mma import grouped_gemm_mma as mma
from moec.targets.cuda.kernels.grouped_gemm_wgmma import grouped_gemm_wgmma as wgmma
from moec.targets.gpu.kernels import round_rows
from moec.targets.gpu.kernels.dense_problem import dense_kernel, dense_problem
from moec.targets.gpu.kernels.fp8_rows import FP8, row_bytes
from moec.targets.gpu.kernels.gemv import gemv as dense_gemv
from moec.targets.gpu.kernels.grouped_gemm_simt import GROUPED_GEMM_SIMT
from moec.targets.gpu.kernels.grouped_gemv import grouped_gemv as gemv
from moec.targets.gpu.kernels.grouped_problem import GroupedProblem
from moec.targets.gpu.kernels.packed_format import PackedFormat
from moec.targets.gpu.kernels.round_rows import RowRounding, round_blocks, round_pairs
from tests.targets.gpu.kernels.test_round_rows import SPECIAL

from ....products import thinned
from .kernel_runner import build
from .layers import sort_pairs, undefined
from .test_quantized import FORMATS, E, encoded, packed

RANDOM = np.random.default_rng(0)
SPEC = ProductSpec(arithmetic="fp8", activation_group=128)
FP8_TOLERANCE = 1e-6
"""The tolerance as a share of the largest output. Products of 8-bit numbers are exact in float32; only sums round."""


def fp8_tables(stored: PackedFormat, *matrices: list[Any]) -> list[np.ndarray]:
    """The tables of :func:`packed`, with scales transposed to group by group."""
    data, scales, none = packed(stored, *matrices)
    return [data, np.ascontiguousarray(scales.swapaxes(1, 2)), none]


def pack_rows(rows: np.ndarray) -> np.ndarray:
    """Rows [R, inner] in the packed format of the kernel, computed in numpy."""
    with np.errstate(all="ignore"):
        scales, codes = quantize_rows(rows.astype(np.float32), 128, "fp8")
    result = np.zeros((len(rows), row_bytes(rows.shape[1])), np.uint8)
    result[:, : rows.shape[1]] = codes.view(np.uint8)
    result[:, rows.shape[1] : rows.shape[1] + 4 * scales.shape[1]] = np.ascontiguousarray(scales).view(np.uint8)
    return result


@thinned("dtype", [np.float32, np.float16, ml_dtypes.bfloat16], 2)
def test_rows_are_packed(dtype):
    kernel = build(round_rows.round_rows(RowRounding(384, 128, np.dtype(dtype).name, "fp8", packed=True)))
    for count in (0, 1, 7):
        rows = (RANDOM.standard_normal((count, 384)) * 2.0 ** RANDOM.integers(-14, 1, (count, 384))).astype(dtype)
        expected = pack_rows(rows)
        np.testing.assert_array_equal(kernel(rows, np.zeros_like(expected)), expected)


def test_numbers_that_are_none_and_groups_without_a_scale_are_packed():
    rows = np.pad(SPECIAL, ((0, 0), (60, 60))) * np.float32(0.5)
    (actual,) = build(round_rows.round_rows(RowRounding(128, 128, "float32", "fp8", packed=True))).outputs(
        1, rows, np.zeros((len(rows), row_bytes(128)), np.uint8)
    )
    expected = pack_rows(rows)
    np.testing.assert_array_equal(actual[:, :128], expected[:, :128])
    scales, expected_result = (np.ascontiguousarray(rows[:, 128:132]).view(np.float32) for rows in (actual, expected))
    np.testing.assert_array_equal(np.isfinite(scales), np.isfinite(expected_result))
    np.testing.assert_array_equal(scales[np.isfinite(expected_result)], expected_result[np.isfinite(expected_result)])


def test_only_rows_in_use_are_packed():
    ids = np.array([[0, 2], [-1, 2], [2, 0]], np.int32)
    sorted_pairs, _, block_count = order = sort_pairs(3, 16, ids)
    rows, rounding = (
        RANDOM.standard_normal((len(sorted_pairs), 128), np.float32),
        RowRounding(128, 128, "float32", "fp8", packed=True),
    )
    nothing, expected = np.full((len(rows), row_bytes(128)), 77, np.uint8), pack_rows(rows)
    result = build(round_blocks(rounding, 16))(ids, sorted_pairs, block_count, rows, nothing)
    used = (sorted_pairs >= 0) & (np.arange(len(order[0])) < block_count[0] * 16)
    np.testing.assert_array_equal(result[used, :132], expected[used, :132])
    assert (result[~used] == 77).all()
    result = build(round_pairs(rounding))(ids, rows, nothing)
    np.testing.assert_array_equal(result[: ids.size, :132], expected[: ids.size, :132])
    assert (result[ids.size :] == 77).all()


@thinned(("inner", "group"), [(72, 32), (128, 128), (72, 0), (5, 128)], 2)
def test_rows_that_stay_floats(inner, group):
    kernel = build(round_rows.round_rows(RowRounding(inner, group, "bfloat16", "fp8")))
    rows = RANDOM.standard_normal((7, inner)).astype(ml_dtypes.bfloat16)
    spec = dataclasses.replace(SPEC, activation_group=group)
    expected = rounded_rows(spec, rows.astype(np.float32)).astype(rows.dtype)
    np.testing.assert_array_equal(kernel(rows, np.full_like(rows, np.nan)), expected)


def check(kernel: Any, name: str, problem: GroupedProblem, tokens: int = 9, **options: Any) -> None:
    """Compare a grouped product with numpy. Among its rows are ones with an infinity, with a NaN, and of zeros."""
    form, stored = FORMATS[name]
    problem = dataclasses.replace(problem, stored=stored, gathered=True, scattered=True, dtype=FP8)
    matrices = [encoded(form, problem.width, problem.inner) for _ in range(2 if problem.gated else 1)]
    x = RANDOM.standard_normal((tokens, problem.inner), np.float32)
    x[:3, 5] = np.inf, np.nan, 1e4
    x[3:4] = 0
    ids, weights = RANDOM.integers(0, E, (tokens, 2)).astype(np.int32), np.ones((tokens, 2), np.float32)
    order = [ids] if kernel is gemv else sort_pairs(E, problem.block_rows, ids)
    epilogue = (lambda gate, up: gate * up) if problem.gated else (lambda total: total)
    run = build(kernel(problem, epilogue), options.pop("architecture", "sm_89"), **options)
    bias = np.zeros((E, problem.columns), np.float32)
    out = run(
        pack_rows(x),
        *fp8_tables(stored, *matrices),
        bias,
        weights,
        *order,
        undefined((ids.size, problem.width), "float32"),
    )

    with np.errstate(all="ignore"):
        rows = rounded_rows(SPEC, x).repeat(2, axis=0)

    def products(matrix: list[Any]) -> np.ndarray:
        decoded = [decode(expert, form) for expert in matrix]
        return np.stack([decoded[e] @ row for row, e in zip(rows, ids.flat, strict=True)])

    expected = np.prod([products(matrix) for matrix in matrices], axis=0)
    assert np.isnan(expected[:4]).all() and np.isnan(out[:4]).all()
    scale = np.abs(expected[4:]).max(initial=0) or 1.0
    np.testing.assert_allclose(out[4:], expected[4:], rtol=0, atol=FP8_TOLERANCE * scale)


@thinned("name, gated", [("fp8", True), ("fp8 in blocks", False)], 2)
def test_few_tokens(name, gated):
    check(gemv, name, GroupedProblem(E, 384, 20, 16, gated=gated), tokens=5)


@thinned("name, rows, gated", [("fp8", 16, True), ("fp8 in blocks", 64, True), ("fp8 in blocks", 128, False)], 2)
def test_tensor_cores(name, rows, gated):
    check(mma, name, GroupedProblem(E, 640, 72, rows, gated=gated), tokens=70)


@thinned(
    "name, rows, width, options",
    [
        ("fp8 in blocks", 128, 72, {}),
        ("fp8", 64, 200, {"completion": "earliest"}),
        ("fp8 in blocks", 64, 40, {"first_thread": 300}),
    ],
    3,
)
def test_tensor_cores_that_read_shared_memory(name, rows, width, options):
    problem = GroupedProblem(E, 640, width, rows, gated=rows == 64)
    check(wgmma, name, problem, tokens=300 if rows == 128 else 70, architecture="sm_90a", **options)


@pytest.mark.nightly
@pytest.mark.parametrize(
    "options", [{"completion": "late products"}, {"completion": "earliest"}, {"watch": True}, {"first_thread": 400}]
)
def test_clusters_bring_one_another_halves_of_a_matrix(options):
    """Most experts have two blocks of rows, and there are more k-tiles than stages of the ring."""
    check(wgmma, "fp8 in blocks", GroupedProblem(E, 640, 72, 128), tokens=300, architecture="sm_90a", **options)


@pytest.mark.parametrize("count", [0, 1, 37])
@pytest.mark.parametrize("kernel", [dense_gemv, mma])
def test_a_dense_product(kernel, count):
    form, stored = FORMATS["fp8 in blocks"]
    problem = dense_problem(256, 40, dtype=FP8, stored=stored, block_rows=16)
    matrix = encoded(form, 40, 256)[:1]
    x, bias = RANDOM.standard_normal((count, 256), np.float32), RANDOM.standard_normal((1, 40), np.float32)
    form_of = {} if kernel is dense_gemv else {"form": dense_kernel}
    run = build(kernel(problem, lambda total: total, **form_of), "sm_89")
    out = run(pack_rows(x), *fp8_tables(stored, matrix), bias, undefined((count, 40), "float32"))
    expected = rounded_rows(SPEC, x) @ decode(matrix[0], form).T + bias
    np.testing.assert_allclose(out, expected, rtol=1e-6, atol=1e-5)


def test_reasons():
    problem = GroupedProblem(E, 256, 64, 64, dtype=FP8, stored=PackedFormat("fp8", 128))
    assert why_not(problem, "sm_89") is None and why_not(problem, "sm_120") is None
    assert GROUPED_GEMM_MMA.why_not(problem, "sm_90a") is None and GEMM_MMA is not GROUPED_GEMM_MMA
    for architecture, fields, reason in (
        ("sm_86", {}, "sm_89"),
        ("sm_89", {"inner": 192}, "192 inputs are no multiple of 128"),
        ("sm_89", {"stored": PackedFormat("fp8", 64)}, "groups of 64"),
        ("sm_89", {"stored": PackedFormat("int8")}, "int8"),
        ("sm_89", {"stored": None}, "float32"),
    ):
        assert reason in why_not(dataclasses.replace(problem, **fields), architecture)
    assert "fp8" in GROUPED_GEMM_SIMT.why_not(problem, "sm_89")
