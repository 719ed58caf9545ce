"""Products of several tiles in tensor memory: those of numpy under every schedule; faults of waits are noticed."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from moec.targets.cuda import nvcc

from ...products import thinned
from .emulated import Kernel, load, load_one
from .mutation import NO_FAULT, SCHEDULES, Fault, Mutants
from .tensor_product import FUNCTIONS, Shape, depth, kernel_text, run

TYPES = {"f16": np.float16, "bf16": ml_dtypes.bfloat16, "tf32": np.float32, "e4m3": ml_dtypes.float8_e4m3fn}
SMALL = {1: Shape(128, 32), 2: Shape(128, 64, 2)}
SHAPES = [
    *(Shape(*shape) for shape in [(64, 24), (128, 16), (128, 256), (64, 8), (64, 256)]),
    *(Shape(*shape, 2) for shape in [(256, 32), (128, 256), (256, 256), (128, 32)]),
]


def operands(type_: str, shape: Shape) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(shape.rows + shape.columns)
    x, w = (random.integers(-8, 8, (n, depth(type_))).astype(TYPES[type_]) for n in (shape.rows, shape.columns))
    return x, w


def expected(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    product = x.astype(np.float32) @ w.astype(np.float32).T
    return np.stack([product, product])


OF_GROUP = {1: TYPES, 2: ("bf16", "e4m3")}
"""Types of operands, by blocks of a group."""


def texts(group: int) -> dict[str, str]:
    """The kernels of a group, one for each type."""
    return {type_: kernel_text(type_, SMALL[group], type_) for type_ in OF_GROUP[group]}


@pytest.fixture(scope="module")
def kernels() -> dict[int, dict[str, Kernel]]:
    return {group: load(FUNCTIONS[group] + "".join(texts(group).values()), *texts(group)) for group in SMALL}


@pytest.mark.parametrize(("group", "type_"), [(group, type_) for group, types in OF_GROUP.items() for type_ in types])
def test_types_of_operands(kernels, type_, group):
    x, w = operands(type_, SMALL[group])
    np.testing.assert_array_equal(run(kernels[group][type_], SMALL[group], x, w), expected(x, w))


@thinned("shape", SHAPES, 3)
def test_shapes(shape):
    kernel = load_one(FUNCTIONS[shape.group] + kernel_text("product", shape), "product")
    x, w = operands("bf16", shape)
    np.testing.assert_array_equal(run(kernel, shape, x, w), expected(x, w))


def test_tf32_drops_the_last_bits(kernels):
    x, w = operands("tf32", SMALL[1])
    with_more = (x.view(np.uint32) | 0x1FFF).view(np.float32)
    np.testing.assert_array_equal(run(kernels[1]["tf32"], SMALL[1], with_more, w), expected(x, w))


ORDERS = [{"behind": [4]}, {"behind": [0]}, {"behind": [2, 4]}, *({"seed": seed} for seed in range(1, 6))]


@pytest.mark.parametrize("group", SMALL)
def test_every_order_computes_the_same(kernels, group):
    x, w = operands("bf16", SMALL[group])
    for order in ORDERS:
        np.testing.assert_array_equal(run(kernels[group]["bf16"], SMALL[group], x, w, **order), expected(x, w))


FAULTS = {
    "sums that are still read are overwritten": Fault(
        "if (tile == 2) { wait(read, 0); fence_after(); }", "if (tile == 2) fence_after();"
    ),
    "reader without its fence": Fault("      fence_before();\n", ""),
    "product without its fence": Fault("wait(read, 0); fence_after();", "wait(read, 0);"),
    "reader that waits for one tile alone": Fault("wait(summed, time % 2);", "wait(multiplied, 0);"),
    "tile overwritten": Fault("if (time * 2 + tile > 0) wait(multiplied", "if (time * 2 + tile > 1) wait(multiplied"),
    "tile multiplied too early": Fault("        wait(full, tile % 2);\n", ""),
    "sums begun late": Fault("tile % 2 + step > 0", "tile + step > 0"),
    "commits that change places": Fault("commit(multiplied);", "commit(summed);"),
}
PAIR_FAULTS = {
    "commit to the issuer alone": Fault("(unsigned short)3", "(unsigned short)1"),
    "commit to a block that is not there": Fault("(unsigned short)3", "(unsigned short)7"),
    "products of both blocks": Fault("lane == 0 && rank == 0", "lane == 0"),
    "products of the odd block": Fault(
        "  meet();\n  unsigned sums = *place;\n",
        "  meet();\n  unsigned sums = *place;\n"
        "  if (rank == 1 && lane == 0) multiply_f16(sums, operand(x_tile), operand(w_tile), 0x8100490, 0, 0);\n",
    ),
    "own tile alone is waited for": Fault("init(full, 128 * 2)", "init(full, 128)"),
    "one block's readers alone are waited for": Fault("init(read, 128 * 2)", "init(read, 128)"),
    "allocation of one block": Fault("if (warp == 1) { alloc", "if (warp == 1 && rank == 0) { alloc"),
    "allocations that differ": Fault("allocate(place, 32)", "allocate(place, 32 << rank)"),
    "deallocation of one block": Fault("if (warp == 1) dealloc", "if (warp == 1 && rank == 0) dealloc"),
    "an end without waiting for the other": Fault("  meet();\n  if (warp == 1)", "  if (warp == 1)"),
    "a fence of the issuer's block alone": Fault("      fence_before();\n", "      if (rank == 0) fence_before();\n"),
    "a product of one block": Fault("tcgen05.mma.cta_group::2.kind::f16", "tcgen05.mma.cta_group::1.kind::f16"),
    "no cluster": Fault("__cluster_dims__(2, 1, 1) ", ""),
}
MUTANTS = {1: FAULTS, 2: PAIR_FAULTS}
UNWATCHED = [schedule for schedule in SCHEDULES if not schedule[2]]


def wrong(group: int, kernel: Kernel) -> bool:
    x, w = operands("bf16", SMALL[group])
    return not np.array_equal(run(kernel, SMALL[group], x, w), expected(x, w))


@pytest.fixture(scope="module")
def mutants() -> dict[int, Mutants]:
    return {
        group: Mutants(FUNCTIONS[group] + kernel_text("product", SMALL[group]), faults)
        for group, faults in MUTANTS.items()
    }


@pytest.mark.parametrize("group", SMALL)
@thinned("schedule", SCHEDULES, 3)
def test_without_faults_every_schedule_agrees(schedule, group):
    alone = Mutants(FUNCTIONS[group] + kernel_text("product", SMALL[group]), {})
    assert not wrong(group, alone.kernel(NO_FAULT, schedule))


@pytest.mark.parametrize(("group", "fault"), [(group, fault) for group, faults in MUTANTS.items() for fault in faults])
def test_a_fault_is_caught(mutants, group, fault):
    assert mutants[group].caught(fault, lambda kernel: wrong(group, kernel), UNWATCHED) is not None


@pytest.mark.parametrize(
    ("group", "fault", "problem"),
    [
        (1, "reader without its fence", "column 480 .* by warp . .* without tcgen05.fence::before_thread_sync"),
        (1, "product without its fence", "column 480 .* by warp . .* no tcgen05.fence::after_thread_sync"),
        (2, "a fence of the issuer's block alone", "column 480 .* by warp [5-8] .* without tcgen05.fence::before"),
        (2, "products of the odd block", "no model of work that the odd block of a pair issues"),
        (2, "allocations that differ", "the blocks of a pair ask for different numbers of columns"),
        (2, "allocation of one block", "deadlock: .* at tcgen05.alloc, .* or for the other block"),
        (2, "a product of one block", "tcgen05.mma.cta_group::1 in a kernel with others of cta_group::2"),
        (2, "no cluster", "tcgen05.alloc.cta_group::2 in a block that no other makes a pair with"),
    ],
)
def test_what_is_wrong_is_named(mutants, group, fault, problem):
    with pytest.raises(RuntimeError, match=problem):
        wrong(group, mutants[group].kernel(fault, ("latest", 96, False)))


@pytest.mark.nightly
@pytest.mark.parametrize("group", SMALL)
def test_nvcc_compiles_the_same_text(group):
    compiled = nvcc.compile_source(
        "#include <cstdint>\n" + FUNCTIONS[group] + "".join(texts(group).values()), "sm_100a"
    )
    if compiled is None:
        pytest.skip("nvcc is not installed")
    assert all(f"tcgen05.mma.cta_group::{group}." in compiled.ptx[name] for name in texts(group))
