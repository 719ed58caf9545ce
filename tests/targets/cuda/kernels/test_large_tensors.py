"""Tensors of more than 2**31 elements, in the emulator. Most of their memory is never touched, so it costs nothing."""

from __future__ import annotations

import ctypes
import math
import re
from typing import Any

import numpy as np
import pytest
import tvm

from moec.targets.cuda.kernels.grouped_gemm_mma import grouped_gemm_mma as mma
from moec.targets.gpu.kernels import combine
from moec.targets.gpu.kernels.grouped_gemm_simt import grouped_gemm_simt as simt
from moec.targets.gpu.kernels.grouped_gemv import grouped_gemv as gemv
from moec.targets.gpu.kernels.grouped_problem import GroupedProblem
from moec.targets.gpu.kernels.packed_format import PackedFormat
from moec.targets.gpu.kernels.round_rows import RowRounding, round_blocks
from moec.targets.tvm.heavy.experts import CombineProblem, PlacedRows

from ....products import thinned
from .kernel_runner import build, source_of
from .layers import DTYPES

E, inner, width, slots = 8200, 16384, 16, 1024
LAST = E - 1
TOKEN = 131075
"""A token whose row of the input, and whose pairs' rows of the output, begin after 2**31 elements. So does the matrix
of the last expert."""
_STALE_BYTES = 64 << 20
"""The most bytes of an allocation that are not zero: the emulated driver poisons the first of each, and the allocator
takes memory from the operating system each time only for large ones."""
RANDOM = np.random.default_rng(0)


def reserve(shape: tuple[int, ...], dtype: str) -> tuple[Any, np.ndarray]:
    """A tensor of zeros on the emulated device, and a numpy view of its memory."""
    tensor = tvm.runtime.empty(shape, dtype, tvm.cuda(0))
    kind = np.dtype(DTYPES.get(dtype, dtype))
    memory = (ctypes.c_char * (math.prod(shape) * kind.itemsize)).from_address(tensor.data_ptr())
    view = np.frombuffer(memory, kind).reshape(shape)
    view.reshape(-1)[: _STALE_BYTES // kind.itemsize] = 0
    return tensor, view


@thinned("kernel", [simt, mma, gemv], 2)
@thinned("stored", [None, PackedFormat("int8")], 2)
def test_an_expert_far_behind(kernel, stored):
    types = {"dtype": "bfloat16", "matrix_dtype": "bfloat16", "stored": stored}
    problem = GroupedProblem(E, inner, width, 16, gathered=True, scattered=True, **types)
    few = kernel is gemv  # computes all tokens, so it gets one token only
    token, tokens, count = (0, 1, 1) if few else (TOKEN, TOKEN + 1, slots)
    x, row = reserve((tokens, inner), "bfloat16")
    row[token] = RANDOM.standard_normal(inner)
    matrices = [reserve((E, width, inner), "bfloat16" if stored is None else "uint8")]
    if stored is not None:
        matrices += [reserve((E, width, 1), "float32"), reserve((1, 1, 1), "uint8")]
        matrices[1][1][LAST] = 1 / 64
    matrix = matrices[0][1]
    matrix[LAST] = RANDOM.standard_normal((width, inner)) if stored is None else RANDOM.integers(0, 256, (width, inner))
    pair = token * count + count - 1
    order = [np.full((1, 1), LAST)] if few else [np.array([pair] + [-1] * 15), np.array([LAST]), np.array([1])]
    out, result = reserve(((pair + 1), width), "float32")
    bias, weights = reserve((E, width), "float32")[0], reserve((tokens, count), "float32")[0]
    tensors = [tvm.runtime.tensor(array.astype(np.int32), tvm.cuda(0)) for array in order]
    build(kernel(problem, lambda total: total)).run_on(
        x, *(codes for codes, _ in matrices), bias, weights, *tensors, out
    )
    numbers = matrix[LAST].astype(np.float32) if stored is None else (matrix[LAST].astype(np.float32) - 128) / 64
    expected = numbers @ row[token].astype(np.float32)
    np.testing.assert_allclose(result[pair], expected, atol=2e-2 * np.abs(expected).max())
    assert pair == 0 or not result[:slots].any()


def _combined(**options: Any) -> CombineProblem:
    return CombineProblem(256, 7168, "bfloat16", **options)


LARGE_BUFFERS = {
    "combine": (lambda: combine.combine(_combined(weighted=True, identity_experts=1)), {"x", "pairs", "y"}),
    "trim": (lambda: combine.trim(_combined()), {"rows", "y"}),
    "combine_placed": (
        lambda: combine.combine_placed(PlacedRows(7168, "bfloat16", "float32")),
        {"rows", "y"},
    ),
    "round": (lambda: round_blocks(RowRounding(7168, 128), 64), {"rows"}),
}
"""Kernels that would take too long to run, since they have a block for every row, and their tensors with a row per
token or pair."""


@pytest.mark.parametrize("name", LARGE_BUFFERS)
def test_rows_are_found_with_64_bits(name):
    kernel, buffers = LARGE_BUFFERS[name]
    uses = re.findall(r"\b(\w+)_ptr(?:\[| \+ )([^\[\];=]*)", source_of(kernel()))
    actual = {buffer for buffer, index in uses if "(int64_t)" in index}
    assert buffers <= actual
    assert not {buffer for buffer, index in uses if "(int64_t)" not in index} & buffers
