"""The grouped product with clusters, whose blocks of threads share a matrix: any rows, any GPU, any order of
threads."""

from __future__ import annotations

import contextlib
import ctypes
import re
from collections.abc import Iterator

import numpy as np
import pytest
import tvm

from moec.simulators.cuda import emulated_library
from moec.simulators.cuda.driver import driver_library
from moec.targets.cuda.kernels.grouped_gemm_wgmma import grouped_gemm_wgmma as wgmma
from moec.targets.cuda.kernels.wgmma_tile import wgmma_tile

from . import kernel_runner
from .layers import Data, Layer, assert_matches, compute, products, sort_pairs, undefined

ROWS = 128
LAYER = Layer(experts=3, inner=72, hidden=56, block_rows=ROWS, dtype="float16")
RANDOM = np.random.default_rng(0)


def routed(*rows: int) -> np.ndarray:
    """Ids of one expert per token, in random order. ``rows``: the number of tokens of each expert."""
    return RANDOM.permutation(np.repeat(np.arange(len(rows)), rows))[:, None]


SPREADS = {
    "no rows": routed(0, 0, 0),
    "one row": routed(0, 1, 0),
    "pairs of blocks with one matrix": routed(2 * ROWS, 0, 2 * ROWS),
    "a pair of two matrices": routed(ROWS, 1, 0),
    "an odd number of blocks": routed(0, 2 * ROWS + 5, 0),
    "pairs of both kinds": routed(ROWS + 1, ROWS - 3, 2 * ROWS + 1),
}
BOTH_KINDS = Data(LAYER, SPREADS["pairs of both kinds"])
DEEP = Data(Layer(experts=3, inner=24, hidden=264, block_rows=ROWS, dtype="float16"), BOTH_KINDS.ids)
"""Data of a layer whose second product has more k-tiles than the ring has stages."""
WARPS = 12
"""Warps of a block of threads."""
SCHEDULES = {
    "a block falls behind": {"behind": range(WARPS)},
    "the other block falls behind": {"behind": range(WARPS, 2 * WARPS)},
    "a producer falls behind": {"behind": range(4)},
    "the other producer falls behind": {"behind": range(WARPS, WARPS + 4)},
    "a consumer of each block falls behind": {"behind": [*range(4, 8), *range(WARPS + 8, WARPS + 12)]},
    "a warp of each block falls behind": {"behind": [4, WARPS + 11]},
    **{f"order {seed}": {"seed": seed} for seed in (1, 2, 3)},
}
ALIKE = {"order 2", "order 3"}


def test_high_blocks_are_for_clusters():
    assert [wgmma_tile(problem).cluster for problem in LAYER.problems] == [2, 2]
    assert wgmma_tile(Layer(3, 72, 56, 64, dtype="float16").problems[0]).cluster == 1


@pytest.mark.parametrize("ids", SPREADS)
def test_any_rows(ids):
    assert_matches(Data(LAYER, SPREADS[ids]), wgmma)


@pytest.fixture(scope="module")
def in_turn() -> np.ndarray:
    """The results on two multiprocessors, with warps that run in turn."""
    return compute(BOTH_KINDS, wgmma)


@pytest.mark.parametrize("multiprocessors", [1, 3, 6])
def test_results_do_not_depend_on_the_gpu(monkeypatch, in_turn, multiprocessors):
    number = ctypes.c_int.in_dll(ctypes.CDLL(str(driver_library())), "emulated_multiprocessors")
    monkeypatch.setattr(number, "value", multiprocessors)
    assert tvm.cuda(0).multi_processor_count == multiprocessors
    np.testing.assert_array_equal(compute(BOTH_KINDS, wgmma), in_turn)


@pytest.mark.parametrize(
    "schedule", [pytest.param(name, marks=pytest.mark.nightly) if name in ALIKE else name for name in SCHEDULES]
)
def test_every_order_computes_the_same(in_turn, schedule):
    with contextlib.ExitStack() as stack:
        for kernel in products(LAYER, wgmma):
            stack.enter_context(kernel.scheduled(**SCHEDULES[schedule]))
        np.testing.assert_array_equal(compute(BOTH_KINDS, wgmma), in_turn)


@pytest.mark.nightly
@pytest.mark.parametrize("ids", SPREADS)
def test_accesses_to_memory_are_ordered(ids):
    """Accesses of threads to shared memory, and of blocks to global memory, are ordered. If two blocks compute the same
    rows, only one stores them."""
    assert_matches(Data(LAYER, SPREADS[ids]), wgmma, watch=True)


MEETING = re.compile(r"^ +barrier_cluster_(?:arrive|wait)\w*\(\);$", re.MULTILINE)
FAULTS = {
    "no meeting before the first copies": (MEETING, slice(0, 2), ""),
    "no meeting at the end": (MEETING, slice(2, 4), ""),
    "stages given back to one block alone": (
        re.compile(r"\(thread & 127\) < 2"),
        slice(None),
        "(thread & 127) < 1",
    ),
    "copies to one block alone": (re.compile(r"shares \? 3 : 1 << rank"), slice(None), "1 << rank"),
    "both blocks bring the same half": (
        re.compile(r"rank \* \d+ \+ first_column"),
        slice(None),
        "first_column",
    ),
    "one matrix for both blocks": (re.compile(r"(?<=bool shares = )[^;]*"), slice(None), "true"),
}


def _with_faults(source: str) -> str:
    """The kernel's source with all faults; the exported variable ``fault`` is the number of the active one."""
    changes = []
    for number, (pattern, which, fault) in enumerate(FAULTS.values()):
        actual = list(pattern.finditer(source))[which]
        assert actual
        changes += [(match.span(), number, match[0], fault) for match in actual]
    for (start, end), number, right, wrong in sorted(changes, reverse=True):
        if right.lstrip().endswith(";"):
            new = f"if (fault != {number}) {{ {right.lstrip()} }}"
        else:
            new = f"(fault == {number} ? {wrong} : {right})"
        source = source[:start] + new + source[end:]
    return 'extern "C" __attribute__((visibility("default"))) int fault = -1;\n' + source


@pytest.fixture(scope="module")
def faulty() -> Iterator[tuple[kernel_runner.Kernel, ctypes.c_int]]:
    """The second product with switchable faults, and the variable that switches them."""
    paths = []

    def switched(source, launches, **options):
        paths.append(emulated_library(_with_faults(source), launches, **options))
        return paths[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernel_runner, "emulated_library", switched)
        kernel = kernel_runner.build(
            wgmma(DEEP.layer.problems[1], lambda total: total), "sm_90a", completion="late products"
        )
    yield kernel, ctypes.c_int.in_dll(ctypes.CDLL(str(paths[0])), "fault")


@pytest.mark.parametrize("fault", [None, *FAULTS])
def test_a_fault_is_caught(faulty, fault):
    kernel, switch = faulty
    order, layer = sort_pairs(DEEP.layer.experts, ROWS, DEEP.ids), DEEP.layer
    hidden = RANDOM.standard_normal((len(order[0]), layer.hidden)).astype(np.float16)
    arrays = [
        hidden,
        DEEP.down,
        DEEP.down_bias,
        DEEP.weights,
        *order,
        undefined((len(DEEP.ids), layer.inner), layer.dtype),
    ]
    expected = kernel(*arrays)
    switch.value = -1 if fault is None else list(FAULTS).index(fault)
    caught = any(_differs(kernel, schedule, arrays, expected) for schedule in ({}, *SCHEDULES.values()))
    switch.value = -1
    assert caught == (fault is not None)


def _differs(kernel: kernel_runner.Kernel, schedule: dict, arrays: list[np.ndarray], expected: np.ndarray) -> bool:
    """Whether the kernel fails under a schedule, or computes something else than expected."""
    try:
        with kernel.scheduled(**schedule):
            return not np.array_equal(kernel(*arrays), expected)
    except RuntimeError:
        return True
