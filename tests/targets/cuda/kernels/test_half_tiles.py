"""Blocks of 128 rows of which at most 64 are used: wgmma leaves out the others, and results stay the same."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from moec.targets.cuda.kernels.grouped_gemm_wgmma import grouped_gemm_wgmma
from moec.targets.cuda.kernels.wgmma_tile import wgmma_tile
from moec.targets.cuda.nvcc import compile_source, find_disassembler
from moec.targets.gpu.kernels.grouped_problem import GroupedProblem

from .kernel_runner import build, source_of
from .layers import DTYPES, sort_pairs, undefined
from .machine_code import inner_loops
from .test_machine_code import HOPPER, KERNELS
from .test_quantized import FORMATS, encoded, packed

E = 3


@pytest.mark.parametrize("name", ["bfloat16", pytest.param("int4", marks=pytest.mark.nightly)])
def test_bits_do_not_depend_on_the_rows_of_a_block(name):
    """The rows of a block of 128 also alone, with one more than half a block, with half a block, and with one."""
    random = np.random.default_rng(0)
    types = {"dtype": "bfloat16", "matrix_dtype": "bfloat16", "out_dtype": "float32"}
    problem = GroupedProblem(E, 192, 24, 128, gathered=True, scattered=True, **types)
    if name == "bfloat16":
        matrix = [random.standard_normal((E, 24, 192), np.float32).astype(DTYPES["bfloat16"])]
    else:
        form, stored = FORMATS[name]
        problem, matrix = dataclasses.replace(problem, stored=stored), packed(stored, encoded(form, 24, 192))
    run = build(grouped_gemm_wgmma(problem, lambda total: total), HOPPER)
    x, bias = random.standard_normal((128, 192), np.float32).astype(DTYPES["bfloat16"]), np.zeros((E, 24), np.float32)

    def product(rows: int) -> np.ndarray:
        ids = np.full((rows, 1), 1, np.int32)
        operands = [x[:rows], *matrix, bias, np.ones((rows, 1), np.float32), *sort_pairs(E, 128, ids)]
        return run(*operands, undefined((rows, 24), "float32")).view(np.uint32)

    whole = product(128)
    assert len(np.unique(whole, axis=0)) == 128
    for rows in (65, 64, 1):
        np.testing.assert_array_equal(product(rows), whole[:rows])


@pytest.mark.skipif(find_disassembler() is None, reason="there is no cuobjdump, or no nvdisasm")
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("wgmma, 128 rows", [4, 8]),
        pytest.param("wgmma, int4", [4, 8], marks=pytest.mark.nightly),
        pytest.param("wgmma, results of pairs", [4, 8], marks=pytest.mark.nightly),
        pytest.param("wgmma, 64 rows", [4], marks=pytest.mark.nightly),
    ],
)
def test_few_rows_have_a_loop_of_their_own(name, expected):
    """``expected``: instructions of each loop over k-tiles; nvcc does not say that it serialises them."""
    compiled = compile_source(source_of(KERNELS[name](), HOPPER), HOPPER)
    (sass,) = compiled.sass.values()
    counts = [sum(what.startswith("HGMMA") for what in loop) for loop in inner_loops(sass)]
    assert sorted(filter(None, counts)) == expected and not compiled.advisories


def test_half_a_tile_saves_time_where_no_neighbour_waits():
    half = GroupedProblem(E, 192, 24, 128, dtype="bfloat16", matrix_dtype="bfloat16")
    decoded = dataclasses.replace(half, stored=FORMATS["int4"][1])
    problems = [half, decoded, dataclasses.replace(decoded, block_rows=64)]
    assert [wgmma_tile(problem).computed_multiple for problem in problems] == [128, 64, 64]
