"""Products in fp8 where 128 outputs share scales: the bits are those of products that load a scale for each column."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from moec.ir.weights.encode import Encoded
from moec.targets.cuda.kernels.grouped_gemm_mma import grouped_gemm_mma as mma
from moec.targets.cuda.kernels.grouped_gemm_wgmma import grouped_gemm_wgmma as wgmma
from moec.targets.cuda.kernels.wgmma_tile import wgmma_tile
from moec.targets.gpu.kernels.fp8_rows import FP8
from moec.targets.gpu.kernels.grouped_problem import GroupedProblem

from ....products import thinned
from .kernel_runner import build
from .layers import sort_pairs, undefined
from .test_fp8 import fp8_tables, pack_rows
from .test_quantized import FORMATS, E, encoded


def _sharing(matrix: list[Encoded]) -> list[Encoded]:
    """The matrices with the scales of the first output of each block for all of its outputs."""
    return [expert._replace(scale=np.repeat(expert.scale[::128], 128, axis=0)[: len(expert.data)]) for expert in matrix]


def _outputs(kernel: Any, problem: GroupedProblem, *operands: np.ndarray) -> np.ndarray:
    epilogue = (lambda gate, up: gate * up) if problem.gated else (lambda total: total)
    return build(kernel(problem, epilogue), "sm_90a" if kernel is wgmma else "sm_89")(*operands)


@thinned(
    "kernel, name, rows, width, gated",
    [
        (wgmma, "fp8 in blocks", 128, 136, True),
        (wgmma, "fp8 in blocks", 64, 200, False),
        (wgmma, "fp8", 64, 264, True),
        (wgmma, "fp8 in blocks", 128, 72, False),
        (mma, "fp8 in blocks", 128, 264, False),
        (mma, "fp8", 16, 136, True),
    ],
    6,
)
def test_bits_are_the_same(kernel, name, rows, width, gated):
    """Matrices have several blocks of outputs, of which the last one is not full, or a single one."""
    random, (form, stored) = np.random.default_rng(width), FORMATS[name]
    problem = GroupedProblem(E, 256, width, rows, gated=gated, gathered=True, scattered=True, dtype=FP8, stored=stored)
    matrices = [_sharing(encoded(form, width, problem.inner)) for _ in range(problem.columns_per_output)]
    ids = random.integers(0, E, (150, 2)).astype(np.int32)
    x, bias = random.standard_normal((150, 256), np.float32), random.standard_normal((E, problem.columns), np.float32)
    operands = [pack_rows(x), *fp8_tables(stored, *matrices), bias, np.ones(ids.shape, np.float32)]
    operands += [*sort_pairs(E, rows, ids), undefined((ids.size, width), "float32")]
    expected = _outputs(kernel, problem, *operands)
    actual = _outputs(kernel, dataclasses.replace(problem, shares_scales=True), *operands)
    assert np.any(expected) and np.array_equal(actual.view(np.uint32), expected.view(np.uint32))


def test_the_columns_of_a_consumer_share_scales():
    for rows, gated, width in (
        (128, True, 768),
        (128, False, 2048),
        (64, False, 200),
        (64, True, 2880),
        (128, False, 24),
    ):
        _, stored = FORMATS["fp8 in blocks"]
        problem = GroupedProblem(E, 256, width, rows, gated=gated, dtype=FP8, stored=stored, shares_scales=True)
        tile, block = wgmma_tile(problem), 128 * problem.columns_per_output
        firsts = range(0, problem.columns, tile.instruction_columns)
        assert all(first // block == (first + tile.instruction_columns - 1) // block for first in firsts)
