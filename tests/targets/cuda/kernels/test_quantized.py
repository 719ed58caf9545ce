"""Products with quantised matrices against the numbers that they decode to, in the emulator."""

from __future__ import annotations

import dataclasses
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from moec.ir.weights import encode as encodings
from moec.ir.weights.encode import Encoded, Table
from moec.ir.weights.format import WeightFormat
from moec.targets.cuda.kernels import grouped_gemm_mma, grouped_gemm_umma, grouped_gemm_wgmma
from moec.targets.cuda.kernels.grouped_gemm_mma import grouped_gemm_mma as mma
from moec.targets.cuda.kernels.grouped_gemm_umma import grouped_gemm_umma as umma
from moec.targets.cuda.kernels.grouped_gemm_wgmma import grouped_gemm_wgmma as wgmma
from moec.targets.gpu.kernels import grouped_gemm_simt, grouped_gemv
from moec.targets.gpu.kernels.grouped_gemm_simt import grouped_gemm_simt as simt
from moec.targets.gpu.kernels.grouped_gemv import grouped_gemv as gemv
from moec.targets.gpu.kernels.grouped_problem import GroupedProblem, interleave
from moec.targets.gpu.kernels.packed_format import PackedFormat, pack, scale_rows

from ....products import thinned
from .kernel_runner import build
from .layers import DTYPES, TOLERANCES, architecture_of, sort_pairs, undefined

RANDOM = np.random.default_rng(0)
E = 3
FORMATS = {
    "int8": (WeightFormat("int8"), PackedFormat("int8")),
    "int8 in groups": (WeightFormat("int8", 32), PackedFormat("int8", 32, "float16")),
    "int8 with zero points": (WeightFormat("int8", 32, True), PackedFormat("int8", 32, "float16", True)),
    "int4": (WeightFormat("int4", 32), PackedFormat("int4", 32, "float16")),
    "int4 with zero points": (WeightFormat("int4", 64, True), PackedFormat("int4", 64, "float16", True)),
    "iq4": (WeightFormat("iq4", 32), PackedFormat("iq4", 32, "float16")),
    "int3": (WeightFormat("int3", 32), PackedFormat("int3", 32, "float16")),
    "int3 with zero points": (WeightFormat("int3", 64, True), PackedFormat("int3", 64, "float16", True)),
    "int2": (WeightFormat("int2", 64), PackedFormat("int2", 64, "float16")),
    "int2 with zero points": (WeightFormat("int2", 32, True), PackedFormat("int2", 32, "float16", True)),
    "fp8": (WeightFormat("fp8"), PackedFormat("fp8")),
    "fp8 in blocks": (WeightFormat("fp8", 128), PackedFormat("fp8", 128)),
    "fp4": (WeightFormat("fp4", 16), PackedFormat("fp4", 16, "float16")),
    "mxfp4": (WeightFormat("mxfp4", 32), PackedFormat("mxfp4", 32, "float8_e8m0fnu")),
    "nvfp4": (WeightFormat("nvfp4", 16), PackedFormat("nvfp4", 16, "float8_e4m3fn")),
}


def encoded(form: WeightFormat, width: int, inner: int) -> list[Encoded]:
    weights = RANDOM.standard_normal((E, width, inner), np.float32) / inner**0.5
    return [encodings.encode(weight, form) for weight in weights]


def packed(stored: PackedFormat, *matrices: list[Encoded]) -> list[np.ndarray]:
    """Data, scales and zero points of all experts. ``matrices``: one, or gate and up."""
    arrays = []
    for table in ("data", "scale", "zero_point") if stored.zero_points else ("data", "scale"):
        parts = [np.stack([packed_table(stored, table, expert) for expert in matrix]) for matrix in matrices]
        arrays.append(parts[0] if len(parts) == 1 else interleave(*parts))
    return arrays if stored.zero_points else [*arrays, np.zeros((1, 1, 1), np.uint8)]


def packed_table(stored: PackedFormat, table: Table, expert: Encoded) -> np.ndarray:
    if table == "scale" and stored.has_factors:
        assert expert.scale_code is not None and expert.scale_factor is not None
        return scale_rows(stored, expert.scale_code, expert.scale_factor, expert.data.shape[1])
    return pack(stored, table, getattr(expert, table))


def check(kernel: Any, name: str, problem: GroupedProblem, tokens: int = 9, **options: Any) -> None:
    """Compare a grouped product with numpy. ``options``: for the emulator."""
    form, stored = FORMATS[name]
    problem = dataclasses.replace(problem, stored=stored, gathered=True, scattered=True)
    matrices = [encoded(form, problem.width, problem.inner) for _ in range(2 if problem.gated else 1)]
    x = RANDOM.standard_normal((tokens, problem.inner), np.float32).astype(DTYPES[problem.dtype])
    ids, weights = RANDOM.integers(0, E, (tokens, 2)).astype(np.int32), np.ones((tokens, 2), np.float32)
    order = [ids] if kernel is gemv else sort_pairs(E, problem.block_rows, ids)
    epilogue = (lambda gate, up: gate * up) if problem.gated else (lambda total: total)
    run = build(kernel(problem, epilogue), architecture_of(kernel), **options)
    bias = np.zeros((E, problem.columns), np.float32)
    out = run(x, *packed(stored, *matrices), bias, weights, *order, undefined((ids.size, problem.width), "float32"))

    def products(matrix: list[Encoded]) -> np.ndarray:
        decoded = [encodings.decode(expert, form) for expert in matrix]
        rows = x.astype(np.float32).repeat(2, axis=0)
        return np.stack([decoded[e] @ row for row, e in zip(rows, ids.flat, strict=True)])

    expected = np.prod([products(matrix) for matrix in matrices], axis=0)
    np.testing.assert_allclose(out, expected, rtol=0, atol=TOLERANCES[problem.dtype] * np.abs(expected).max())


@thinned("name", list(FORMATS), 6)
def test_any_size_without_tensor_cores(name):
    check(simt, name, GroupedProblem(E, 70, 20, 16, gated=name == "int4"))


@thinned("name", list(FORMATS), 6)
def test_few_tokens(name):
    check(gemv, name, GroupedProblem(E, 72, 20, 16, gated=name == "mxfp4", dtype="float16"), tokens=3)


@thinned(
    "name, rows, gated",
    [
        ("int8", 16, False),
        ("int4 with zero points", 64, True),
        ("mxfp4", 128, False),
        ("int3 with zero points", 16, True),
        ("int2", 16, False),
        ("fp8 in blocks", 16, False),
        ("nvfp4", 64, True),
    ],
    3,
)
def test_tensor_cores(name, rows, gated):
    check(mma, name, GroupedProblem(E, 320, 128, rows, gated=gated, dtype="float16"), tokens=70)


@thinned(
    "name, rows, gated, options",
    [
        ("int8 with zero points", 64, True, {"completion": "earliest"}),
        ("int4", 128, False, {}),
        ("int3", 64, False, {}),
        ("fp8", 64, False, {}),
        ("mxfp4", 64, False, {"first_thread": 77}),
        ("nvfp4", 128, True, {}),
    ],
    3,
)
def test_tensor_cores_that_read_shared_memory(name, rows, gated, options):
    problem = GroupedProblem(E, 384, 128, rows, gated=gated, dtype="bfloat16")
    check(wgmma, name, problem, tokens=40, **options)


@thinned(
    "name, rows, width, gated",
    [
        ("int4", 128, 136, True),  # columns of two tiles, of which the last is not whole
        ("nvfp4", 64, 132, False),
        ("int8 with zero points", 128, 128, False),
        ("fp8 in blocks", 128, 128, True),
        ("mxfp4", 64, 128, False),
    ],
    5,
)
def test_sums_in_tensor_memory(name, rows, width, gated):
    check(umma, name, GroupedProblem(E, 384, width, rows, gated=gated, dtype="bfloat16"), tokens=40)


@pytest.mark.parametrize("name", ["int4", "int4 with zero points", "iq4"])
def test_every_code_of_four_bits_at_every_place_of_a_word(name):
    """The products of rows with a single 1 are the decoded numbers. The tested places are the first two words, which
    one lane reads at once, and the last two."""
    stored, inner = FORMATS[name][1], 512
    places = np.r_[:16, inner - 16 : inner]
    codes = (np.arange(inner) + np.arange(16)[:, None]).astype(np.uint8) % 16
    zeros = RANDOM.integers(0, 16, (1, 16, stored.groups(inner))).astype(np.uint8)
    problem = GroupedProblem(1, inner, 16, gathered=True, biased=False, stored=stored)
    order, ones = np.zeros((len(places), 1), np.int32), np.ones((len(places), 1), np.float32)
    scales, data = np.full(zeros.shape, 0.5, np.float16), (codes[:, 0::2] | codes[:, 1::2] << 4)[None]
    tables = [data, scales, zeros if stored.zero_points else np.zeros((1, 1, 1), np.uint8)]
    rows, bias = np.eye(inner, dtype=np.float32)[places], np.zeros((1, 1), np.float32)
    out = build(gemv(problem, lambda total: total))(rows, *tables, bias, ones, order, undefined((32, 16), "float32"))
    numbers = np.array(stored.numbers or np.arange(-8, 8))[codes]
    if stored.zero_points:
        numbers = codes.astype(np.int32) - zeros[0].repeat(stored.group, 1)
    np.testing.assert_array_equal(out, 0.5 * numbers.T[places])


def test_every_number_of_mxfp4_and_its_smallest_scale():
    codes = np.arange(16, dtype=np.uint8).repeat(2).reshape(1, 32)
    exponents = np.array([0, 1, 127, 200], np.uint8)
    run = build(simt(_mxfp4_problem(), lambda total: total))
    data = np.broadcast_to(codes[:, 0::2] | (codes[:, 1::2] << 4), (4, 1, 16)).astype(np.uint8)
    rows, ids = np.eye(32, dtype=np.float32).repeat(4, axis=0), np.tile(np.arange(4, dtype=np.int32), 32)[:, None]
    zeros, weights = np.zeros((1, 1, 1), np.uint8), np.ones((128, 1), np.float32)
    order = sort_pairs(4, 16, ids)
    scales = exponents.reshape(4, 1, 1)
    out = run(rows, data, scales, zeros, np.zeros((4, 1), np.float32), weights, *order, undefined((128, 1), "float32"))
    numbers = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6]).repeat(2)
    expected = (numbers[:, None] * 2.0 ** (exponents.astype(float) - 127)).astype(np.float32)
    np.testing.assert_array_equal(out.reshape(32, 4), expected)


def test_every_scale_of_nvfp4():
    """The product of a row with a single 1 is the scale of its group, since all numbers of the matrix are 1."""
    form, stored = FORMATS["nvfp4"]
    codes = np.arange(127, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn)[None]
    inner, factor = codes.size * form.group, np.full((1, 1), 0.3, np.float32)
    problem = GroupedProblem(1, inner, 1, 16, gathered=True, scattered=True, stored=stored)
    run = build(simt(problem, lambda total: total))
    data, rows = np.full((1, 1, inner // 2), 0x22, np.uint8), np.eye(inner, dtype=np.float32)[:: form.group]
    zeros, ids = np.zeros((1, 1, 1), np.uint8), np.zeros((codes.size, 1), np.int32)
    others = zeros, np.zeros((1, 1), np.float32), np.ones(ids.shape, np.float32), *sort_pairs(1, 16, ids)

    def sums(codes: np.ndarray) -> np.ndarray:
        scales = scale_rows(stored, codes, factor, inner)[None]
        return run(rows, data, scales, *others, undefined(ids.shape, "float32"))[:, 0]

    np.testing.assert_array_equal(sums(codes), codes[0].astype(np.float32) * factor[0, 0])
    assert np.isnan(sums(np.full_like(codes, np.nan))).all()


def _mxfp4_problem() -> GroupedProblem:
    return GroupedProblem(4, 32, 1, 16, gathered=True, scattered=True, stored=FORMATS["mxfp4"][1])


def test_what_a_kernel_cannot_read_has_a_reason():
    tensor_cores = [
        lambda problem: grouped_gemm_mma.why_not(problem, "sm_80"),
        lambda problem: grouped_gemm_wgmma.why_not(problem, "sm_90a"),
        lambda problem: grouped_gemm_umma.why_not(problem, "sm_100a"),
    ]
    problem = GroupedProblem(E, 128, 128, 64, dtype="float16", stored=PackedFormat("int4", 32, "float16"))
    odd = dataclasses.replace(problem, stored=PackedFormat("int4", 20, "float16"))
    for why_not in (*tensor_cores, grouped_gemv.why_not):
        assert why_not(problem) is None and "groups of 20" in why_not(odd)
    assert "groups of 20 inputs" in grouped_gemm_mma.why_not(odd, "sm_80")
    assert grouped_gemm_simt.why_not(odd) is None
    scales = dataclasses.replace(problem, stored=PackedFormat("int4", 32, "float64"))
    for why_not in (*tensor_cores, grouped_gemm_simt.why_not, grouped_gemv.why_not):
        assert "scales of type float64" in why_not(scales)
