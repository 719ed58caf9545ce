"""Products of several tiles in tensor memory: those of numpy under every schedule; faults of waits are noticed."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from moec.targets.cuda import nvcc

from ...products import thinned
from .emulated import Kernel, load
from .mutation import NO_FAULT, SCHEDULES, Fault, Mutants
from .tensor_product import FUNCTIONS, depth, kernel_text, run

TYPES = {"f16": np.float16, "bf16": ml_dtypes.bfloat16, "tf32": np.float32, "e4m3": ml_dtypes.float8_e4m3fn}
SHAPES = [(128, 16), (64, 8), (64, 24), (128, 256), (64, 256)]
SMALL = (128, 32)


def operands(type_: str, rows: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(rows + columns)
    x, w = (random.integers(-8, 8, (count, depth(type_))).astype(TYPES[type_]) for count in (rows, columns))
    return x, w


def expected(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    product = x.astype(np.float32) @ w.astype(np.float32).T
    return np.stack([product, product])


def wrong(kernel: Kernel) -> bool:
    x, w = operands("bf16", *SMALL)
    return not np.array_equal(run(kernel, x, w), expected(x, w))


@pytest.fixture(scope="module")
def kernels() -> dict[str, Kernel]:
    texts = {type_: kernel_text(type_, type_, *SMALL) for type_ in TYPES}
    texts |= {
        f"of_{rows}_{columns}": kernel_text(f"of_{rows}_{columns}", "bf16", rows, columns) for rows, columns in SHAPES
    }
    return load(FUNCTIONS + "".join(texts.values()), *texts)


@pytest.mark.parametrize("type_", TYPES)
def test_types_of_operands(kernels, type_):
    x, w = operands(type_, *SMALL)
    np.testing.assert_array_equal(run(kernels[type_], x, w), expected(x, w))


@pytest.mark.parametrize(("rows", "columns"), SHAPES)
def test_shapes(kernels, rows, columns):
    x, w = operands("bf16", rows, columns)
    np.testing.assert_array_equal(run(kernels[f"of_{rows}_{columns}"], x, w), expected(x, w))


def test_tf32_drops_the_last_bits(kernels):
    x, w = operands("tf32", *SMALL)
    with_more = (x.view(np.uint32) | 0x1FFF).view(np.float32)
    np.testing.assert_array_equal(run(kernels["tf32"], with_more, w), expected(x, w))


ORDERS = [{"behind": [4]}, {"behind": [0]}, {"behind": [2, 4]}, *({"seed": seed} for seed in range(1, 30))]


def test_every_order_computes_the_same(kernels):
    x, w = operands("bf16", *SMALL)
    for order in ORDERS:
        np.testing.assert_array_equal(run(kernels["bf16"], x, w, **order), expected(x, w))


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


@pytest.fixture(scope="module")
def mutants() -> Mutants:
    return Mutants(FUNCTIONS + kernel_text("product", "bf16", *SMALL), FAULTS)


@thinned("schedule", SCHEDULES, 2)
def test_without_faults_every_schedule_agrees(mutants, schedule):
    assert not wrong(mutants.kernel(NO_FAULT, schedule))


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_caught(mutants, fault):
    assert mutants.caught(fault, wrong) is not None


@pytest.mark.parametrize("fault", ["reader without its fence", "product without its fence"])
def test_a_fence_that_is_left_out_is_named(mutants, fault):
    side = {"reader": "without tcgen05.fence::before_thread_sync", "product": "no tcgen05.fence::after_thread_sync"}
    with pytest.raises(RuntimeError, match=f"tcgen05.mma: column 480 .* was read by warp .*{side[fault.split()[0]]}"):
        wrong(mutants.kernel(fault, ("latest", 96, False)))


@pytest.mark.nightly
def test_nvcc_compiles_the_same_text():
    texts = [kernel_text(f"of_{type_}", type_) for type_ in TYPES]
    compiled = nvcc.compile_source("".join(["#include <cstdint>\n", FUNCTIONS, *texts]), "sm_100a")
    if compiled is None:
        pytest.skip("nvcc is not installed")
    assert all("tcgen05.mma" in compiled.ptx[f"of_{type_}"] for type_ in TYPES)
