"""Rows with block scales, and their products with matrices in 4 bits on sm_120a, in the emulator."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from moec.ir.dialect import ExpertsSpec, ProductSpec
from moec.ir.products import codes_and_factors, quantize_rows, rounded_rows
from moec.ir.weights.encode import decode
from moec.targets.cuda.estimates.gpus import GPUS
from moec.targets.cuda.kernels.grouped_gemm_mma import why_not as why_no_mma
from moec.targets.cuda.kernels.grouped_gemm_scaled import grouped_gemm_scaled as scaled
from moec.targets.cuda.kernels.grouped_gemm_scaled import row_chunks, scaled_tile_shape, why_not
from moec.targets.cuda.kernels.mma_tile import SHAPES
from moec.targets.cuda.nvcc import compile_source, find_tool
from moec.targets.gpu.kernels import round_rows
from moec.targets.gpu.kernels.activation import experts_epilogue
from moec.targets.gpu.kernels.block_scaled_rows import BLOCK_SCALINGS
from moec.targets.gpu.kernels.dense_problem import dense_kernel, dense_problem
from moec.targets.gpu.kernels.gemv import gemv as dense_gemv
from moec.targets.gpu.kernels.grouped_gemm_simt import GROUPED_GEMM_SIMT
from moec.targets.gpu.kernels.grouped_gemv import grouped_gemv as gemv
from moec.targets.gpu.kernels.grouped_problem import GroupedProblem
from moec.targets.gpu.kernels.round_rows import RowRounding, round_blocks

from ....products import thinned
from .kernel_runner import build, source_of
from .layers import sort_pairs, undefined
from .test_quantized import FORMATS, E, encoded, packed

RANDOM = np.random.default_rng(0)
NAMES = list(BLOCK_SCALINGS)
ARCHITECTURE = "sm_120a"
TOLERANCE = 2e-6
"""The tolerance as a share of the largest output. Products of small floats are exact in float32; only sums round."""


CASES = [(128, 104, True), (16, 72, True), (64, 200, False)]
"""Rows of a block, outputs, and whether they are gated."""


def spec_of(name: str) -> ProductSpec:
    return ProductSpec(arithmetic=name, activation_group=BLOCK_SCALINGS[name].group)


def pack_rows(name: str, rows: np.ndarray) -> np.ndarray:
    """Rows [R, inner] in the packed layout, computed in numpy; bytes of padding are 77."""
    scaling, (count, inner) = BLOCK_SCALINGS[name], rows.shape
    group, rows = scaling.group, rows.astype(np.float32)
    with np.errstate(all="ignore"):
        scales, numbers = quantize_rows(rows, group, name)
        largest = np.abs(rows).reshape(count, inner // group, group).max(axis=-1)
        codes, factors = (
            codes_and_factors(largest) if scaling.has_factors else (scales.astype(ml_dtypes.float8_e8m0fnu), None)
        )
    stored = numbers.view(np.uint8)
    if scaling.bits == 8:
        stored = stored.reshape(count, inner // group, group // 2, 2).swapaxes(2, 3).reshape(count, inner)
    else:
        stored = stored[:, 0::2] | stored[:, 1::2] << 4
    parts = [stored, codes.view(np.uint8), *([] if factors is None else [np.ascontiguousarray(factors).view(np.uint8)])]
    whole = np.concatenate(parts, axis=1)
    return np.pad(whole, ((0, 0), (0, scaling.row_bytes(inner) - whole.shape[1])), constant_values=77)


def rows_of(count: int, inner: int) -> np.ndarray:
    """Rows, the first of which have an infinity, a NaN, zeros, and numbers of very different sizes."""
    x = RANDOM.standard_normal((count, inner), np.float32)
    x[:1, 5], x[1:2, 70], x[2:3] = np.inf, np.nan, 0
    x[3:4] *= 2.0 ** RANDOM.integers(-60, 60, inner)
    x[4:5, :64], x[5:6] = 0, 1e-40
    return x


@pytest.mark.parametrize("name", NAMES)
@thinned("dtype", [np.float32, np.float16, ml_dtypes.bfloat16], 2)
def test_rows_are_packed(name, dtype):
    kernel = build(
        round_rows.round_rows(RowRounding(384, BLOCK_SCALINGS[name].group, np.dtype(dtype).name, name, True))
    )
    for count in (0, 1, 7):
        with np.errstate(all="ignore"):
            rows = rows_of(count, 384).astype(dtype)
        expected = pack_rows(name, rows)
        actual = kernel(rows, np.full_like(expected, 77))
        known = np.isfinite(rows.astype(np.float32)).all(axis=1)
        np.testing.assert_array_equal(actual[known], expected[known])
        codes = actual.shape[1] if name != "nvfp4" else BLOCK_SCALINGS[name].place_of_factor(384) * 4
        np.testing.assert_array_equal(actual[:, :codes], expected[:, :codes])


def test_only_rows_in_use_are_packed():
    ids = np.array([[0, 2], [-1, 2], [2, 0]], np.int32)
    sorted_pairs, _, block_count = order = sort_pairs(3, 16, ids)
    rows = RANDOM.standard_normal((len(sorted_pairs), 128), np.float32)
    expected = pack_rows("mxfp8", rows)
    nothing = np.full_like(expected, 77)
    result = build(round_blocks(RowRounding(128, 32, "float32", "mxfp8", True), 16))(
        ids, sorted_pairs, block_count, rows, nothing
    )
    used = (sorted_pairs >= 0) & (np.arange(len(order[0])) < block_count[0] * 16)
    np.testing.assert_array_equal(result[used], expected[used])
    assert (result[~used] == 77).all()


def problem_of(name: str, *sizes: int, **fields: Any) -> GroupedProblem:
    scaling = BLOCK_SCALINGS[name]
    _, stored = FORMATS[scaling.matrix]
    return GroupedProblem(E, *sizes, stored=stored, dtype="uint8", scaling=scaling, **fields)


def check(kernel: Any, name: str, problem: GroupedProblem, tokens: int = 9, ids: Any = None, **options: Any) -> None:
    """Compare a grouped product with numpy."""
    form, stored = FORMATS[BLOCK_SCALINGS[name].matrix]
    problem = dataclasses.replace(problem, gathered=True, scattered=True)
    matrices = [encoded(form, problem.width, problem.inner) for _ in range(2 if problem.gated else 1)]
    x = rows_of(tokens, problem.inner)
    ids = RANDOM.integers(0, E, (tokens, 2)).astype(np.int32) if ids is None else ids
    weights = np.ones((tokens, 2), np.float32)
    order = [ids] if kernel is gemv else sort_pairs(E, problem.block_rows, ids)
    epilogue = (lambda gate, up: gate * up) if problem.gated else (lambda total: total)
    run = build(kernel(problem, epilogue), ARCHITECTURE, **options)
    bias = np.zeros((E, problem.columns), np.float32)
    out = undefined((ids.size, problem.width), "float32")
    out = run(pack_rows(name, x), *packed(stored, *matrices), bias, weights, *order, out)

    with np.errstate(all="ignore"):
        rows = rounded_rows(spec_of(name), x).astype(np.float64).repeat(2, axis=0)

    def products(matrix: list[Any]) -> np.ndarray:
        decoded = [decode(expert, form).astype(np.float64) for expert in matrix]
        return np.stack([decoded[e] @ row for row, e in zip(rows, ids.flat, strict=True)])

    expected = np.prod([products(matrix) for matrix in matrices], axis=0) if tokens else out
    assert np.isnan(out[:4]).all() and np.isnan(expected[:4]).all()
    largest = np.abs(expected).max(axis=1, initial=0, keepdims=True)
    differences = np.abs(out - expected)[4:]
    assert (differences <= (TOLERANCE * (1 + problem.gated) * np.maximum(largest, 1e-34))[4:]).all()


@thinned("name", NAMES, 3)
@thinned("inner, gated", [(384, True), (640, False)], 2)
def test_few_tokens(name, inner, gated):
    check(gemv, name, problem_of(name, inner, 20, 16, gated=gated), tokens=7)


@thinned("name, rows, width, gated", [(name, *case) for case in CASES for name in NAMES], 4)
def test_tensor_cores(name, rows, width, gated):
    check(scaled, name, problem_of(name, 640, width, rows, gated=gated), tokens=70)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("options", [{"completion": "late products"}, {"first_thread": 77}, {"watch": True}])
@pytest.mark.nightly
def test_every_schedule(name, options):
    check(scaled, name, problem_of(name, 640, 136, 128, gated=True), tokens=150, **options)


@thinned("name, count", [("mxfp8", 1), ("nvfp4", 17), ("mxfp4", 0), ("mxfp8", 0), ("nvfp4", 1), ("mxfp4", 17)], 6)
def test_all_tokens_with_one_expert(name, count):
    """The other experts are unused, and most of a block is padding."""
    ids = np.full((count + 4, 1), E - 1, np.int32)
    check_one(name, problem_of(name, 128, 24, 64), ids)


def check_one(name: str, problem: GroupedProblem, ids: np.ndarray) -> None:
    """Compare the product of tokens that have one expert each with numpy."""
    form, stored = FORMATS[BLOCK_SCALINGS[name].matrix]
    problem = dataclasses.replace(problem, gathered=True, scattered=True)
    matrix, x = (
        encoded(form, problem.width, problem.inner),
        RANDOM.standard_normal((len(ids), problem.inner), np.float32),
    )
    run = build(scaled(problem, lambda total: total), ARCHITECTURE)
    none, weights = np.zeros((E, problem.columns), np.float32), np.ones(ids.shape, np.float32)
    out = undefined((ids.size, problem.width), "float32")
    out = run(pack_rows(name, x), *packed(stored, matrix), none, weights, *sort_pairs(E, problem.block_rows, ids), out)
    rows = rounded_rows(spec_of(name), x)
    expected = np.stack([decode(matrix[e], form) @ row for row, e in zip(rows, ids.flat, strict=True)])
    np.testing.assert_allclose(out, expected, rtol=0, atol=4 * TOLERANCE * np.abs(expected).max())


@pytest.mark.nightly
@pytest.mark.parametrize("count", [0, 1, 37])
@pytest.mark.parametrize("kernel", [dense_gemv, scaled])
@pytest.mark.parametrize("name", ["mxfp8", "nvfp4"])
def test_a_dense_product(name, kernel, count):
    scaling = BLOCK_SCALINGS[name]
    form, stored = FORMATS[scaling.matrix]
    problem = dense_problem(256, 40, dtype="uint8", scaling=scaling, stored=stored, block_rows=16)
    matrix = encoded(form, 40, 256)[:1]
    x, bias = RANDOM.standard_normal((count, 256), np.float32), RANDOM.standard_normal((1, 40), np.float32)
    form_of = {} if kernel is dense_gemv else {"form": dense_kernel}
    run = build(kernel(problem, lambda total: total, **form_of), ARCHITECTURE)
    out = run(pack_rows(name, x), *packed(stored, matrix), bias, undefined((count, 40), "float32"))
    expected = rounded_rows(spec_of(name), x) @ decode(matrix[0], form).T + bias
    np.testing.assert_allclose(out, expected, rtol=1e-6, atol=1e-5)


@thinned("name", NAMES, 3)
def test_a_scale_that_is_no_number_makes_its_row_and_its_column_nan(name):
    """The first inputs of a row, and those of a column, have such a scale; all others stay what they are."""
    scaling = BLOCK_SCALINGS[name]
    form, stored = FORMATS[scaling.matrix]
    problem = dense_problem(256, 40, dtype="uint8", scaling=scaling, stored=stored, block_rows=64)
    data, scales, none = packed(stored, encoded(form, 40, 256)[:1])
    rows, bias = pack_rows(name, RANDOM.standard_normal((30, 256), np.float32)), np.zeros((1, 40), np.float32)
    run = build(scaled(problem, lambda total: total, form=dense_kernel), ARCHITECTURE)
    usual = run(rows, data, scales, none, bias, undefined((30, 40), "float32"))
    wrong = 127 if scaling.has_factors else 255
    rows[11, scaling.code_bytes(256)] = wrong
    scales.view(np.uint8)[0, 33, 4 if scaling.has_factors else 0] = wrong
    actual = run(rows, data, scales, none, bias, undefined((30, 40), "float32"))
    is_nan = np.zeros((30, 40), bool)
    is_nan[11], is_nan[:, 33] = True, True
    np.testing.assert_array_equal(np.isnan(actual), is_nan)
    np.testing.assert_array_equal(actual[~is_nan], usual[~is_nan])


def test_two_blocks_of_threads_fit_on_a_multiprocessor():
    for name in NAMES:
        for rows in SHAPES:
            shape, chunks = scaled_tile_shape(problem_of(name, 128, 16, rows)), row_chunks(BLOCK_SCALINGS[name])
            stage = rows * chunks * 16 + shape.columns * 64
            assert shape.stages >= 2 and shape.stages * stage <= 48 << 10


def test_reasons():
    problem = problem_of("mxfp8", 256, 64, 64)
    assert why_not(problem, ARCHITECTURE) is None
    assert why_not(problem_of("nvfp4", 256, 64, 64), ARCHITECTURE) is None
    for architecture, fields, reason in (
        ("sm_120", {}, "the code is for sm_120; products with block scales need sm_120a"),
        (ARCHITECTURE, {"inner": 192}, "192 inputs are no multiple of 128"),
        (ARCHITECTURE, {"stored": FORMATS["nvfp4"][1]}, "scales); rows in mxfp8 need one in mxfp4"),
        (ARCHITECTURE, {"stored": None}, "a matrix in float32"),
        (ARCHITECTURE, {"scaling": None}, "without block scales"),
        (ARCHITECTURE, {"block_rows": 32}, "blocks of 32 rows"),
        (ARCHITECTURE, {"gated": True, "width": 20}, "20 hidden units are no multiple of 8"),
    ):
        assert reason in why_not(dataclasses.replace(problem, **fields), architecture)
    assert "block scales" in why_no_mma(problem, ARCHITECTURE)
    assert "mxfp8" in GROUPED_GEMM_SIMT.why_not(problem, ARCHITECTURE)


@pytest.mark.skipif(find_tool("nvcc") is None, reason="there is no nvcc")
@pytest.mark.parametrize(
    ("name", "rows", "instruction"),
    [
        pytest.param("mxfp8", 128, "QMMA.SF.16832.F32.E4M3.E4M3.E8", marks=pytest.mark.nightly),
        pytest.param("mxfp8", 64, "QMMA.SF.16832.F32.E4M3.E4M3.E8", marks=pytest.mark.nightly),
        pytest.param("mxfp8", 16, "QMMA.SF.16832.F32.E4M3.E4M3.E8", marks=pytest.mark.nightly),
        pytest.param("mxfp4", 128, "OMMA.SF.16864.F32.E2M1.E2M1.E8", marks=pytest.mark.nightly),
        pytest.param("nvfp4", 128, "OMMA.SF.16864.F32.E2M1.E2M1.UE4M3.4X", marks=pytest.mark.nightly),
        pytest.param("nvfp4", 16, "OMMA.SF.16864.F32.E2M1.E2M1.UE4M3.4X", marks=pytest.mark.nightly),
    ],
)
def test_machine_code(name, rows, instruction):
    """Block-scaled instructions, no spills, and few enough registers for two blocks of threads at once."""
    problem = problem_of(name, 2048, 768, rows, gated=True, gathered=True, out_dtype="bfloat16", biased=False)
    source = source_of(scaled(problem, experts_epilogue(ExpertsSpec(), "bfloat16")), ARCHITECTURE)
    compiled = compile_source(source, ARCHITECTURE)
    assert not compiled.advisories
    (resources,) = compiled.resources.values()
    assert "0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads" in resources
    registers = int(re.search(r"Used (\d+) registers", resources)[1])
    shape = scaled_tile_shape(problem)
    shared = shape.stages * 16 * (rows * row_chunks(BLOCK_SCALINGS[name]) + shape.columns * 4)
    assert GPUS["rtx5090"].occupancy(shape.threads, registers, shared).blocks >= 2
    (instructions,) = compiled.sass.values() or ("",)
    if instructions:  # cuobjdump is there
        of_k_tile = shape.row_steps * shape.column_steps * (4 if name == "mxfp8" else 2)
        assert instructions.count(instruction) % of_k_tile == 0 < instructions.count(instruction)
        assert "LDL" not in instructions and "STL" not in instructions
