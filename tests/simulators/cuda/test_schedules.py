"""Adverse schedules of warps, as far as the hardware allows: a correct kernel gives the same results in every order,
and an incorrect one is caught."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator

import numpy as np
import pytest

from moec.simulators.cuda import emulated_library
from moec.targets.cuda.kernels.grouped_gemm_wgmma import grouped_gemm_wgmma
from moec.targets.gpu.kernels.grouped_problem import GroupedProblem

from ...targets.cuda.kernels import kernel_runner
from ...targets.cuda.kernels.layers import sort_pairs, undefined

PRODUCER, CONSUMERS = range(4), (range(4, 8), range(8, 12))
SCHEDULES = {
    "the producer falls behind": {"behind": PRODUCER},
    "a consumer falls behind": {"behind": CONSUMERS[0]},
    "the other consumer falls behind": {"behind": CONSUMERS[1]},
    **{f"warp {warp} falls behind": {"behind": [warp]} for warp in (3, 4, 7, 11)},
    "a warp of each consumer falls behind": {"behind": [6, 9]},
    **{f"order {seed}": {"seed": seed} for seed in range(1, 5)},
}


def _with_turns_of_one_thread(source: str) -> str:
    """The kernel with an exported switch ``one_thread``: whether one thread of a consumer gives the turn, instead of
    one of each warp."""
    gives = "if (thread % 32 == 0) {\n"
    initialised = ", 4u);"
    assert source.count(gives) == source.count(initialised) == 1
    source = source.replace(gives, "if (thread % (one_thread ? 128 : 32) == 0) {\n")
    source = source.replace(initialised, ", one_thread ? 1u : 4u);")
    return 'extern "C" __attribute__((visibility("default"))) int one_thread = 0;\n' + source


@pytest.fixture(scope="module")
def product() -> Iterator[tuple[kernel_runner.Kernel, ctypes.c_int, list[np.ndarray], np.ndarray]]:
    """A product whose tiles have a single panel, its switch, its arguments, and its expected result."""
    problem = GroupedProblem(2, 64, 64, 64, gathered=True, dtype="float16", matrix_dtype="float16", out_dtype="float16")
    paths = []

    def switched(source, launches, **options):
        paths.append(emulated_library(_with_turns_of_one_thread(source), launches, **options))
        return paths[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernel_runner, "emulated_library", switched)
        kernel = kernel_runner.build(grouped_gemm_wgmma(problem, lambda total: total), "sm_90a")
    random = np.random.default_rng(0)
    ids = random.integers(0, 2, (400, 1)).astype(np.int32)
    x, matrix = (random.integers(-2, 3, shape).astype(np.float16) for shape in ((400, 64), (2, 64, 64)))
    order = sort_pairs(2, 64, ids)
    bias, weights = np.zeros((2, 64), np.float32), np.ones((400, 1), np.float32)
    arrays = [x, matrix, bias, weights, *order, undefined((len(order[0]), 64), "float16")]
    pairs = order[0]
    expected = np.where(pairs[:, None] < 0, np.nan, np.einsum("ri,rci->rc", x[pairs], matrix[ids[pairs, 0]]))
    yield kernel, ctypes.c_int.in_dll(ctypes.CDLL(str(paths[0])), "one_thread"), arrays, expected


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_order_computes_the_same(product, schedule):
    kernel, _, arrays, expected = product
    with kernel.scheduled(**SCHEDULES[schedule]):
        actual = kernel(*arrays)
    np.testing.assert_array_equal(np.where(arrays[4][:, None] < 0, np.nan, actual), expected)


def test_a_warp_that_misses_its_turn_is_a_deadlock(product):
    kernel, one_thread, arrays, expected = product
    one_thread.value = 1
    try:
        actual = kernel(*arrays)  # in turn, no warp misses it
        np.testing.assert_array_equal(np.where(arrays[4][:, None] < 0, np.nan, actual), expected)
        with kernel.scheduled(behind=[7]), pytest.raises(RuntimeError, match=r"deadlock: .* at an mbarrier"):
            kernel(*arrays)
    finally:
        one_thread.value = 0
