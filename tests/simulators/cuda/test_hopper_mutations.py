"""Faults seeded into a product for Hopper are caught by wrong results or by an error."""

from __future__ import annotations

import pytest

from ...products import thinned
from .hopper_product import SOURCE, HopperProduct
from .mutation import NO_FAULT, SCHEDULES, Fault, Mutants

POOL = "  extern __shared__ __align__(1024) unsigned char pool_ptr[];\n"
ARRAY_BEFORE = "  __shared__ alignas(64) int before_ptr[5];\n  if (threadIdx.x < 5) before_ptr[threadIdx.x] = 1;\n"
FAULTS = {
    "products without waiting for copies": Fault("      wait(&full[stage], phase);\n", ""),
    "copies without waiting for products": Fault("      wait(&empty[stage], phase ^ 1);\n", ""),
    "bytes miscounted": Fault("arrive_with_bytes(&full[stage], 8192)", "arrive_with_bytes(&full[stage], 4096)"),
    "early stage release": Fault("wgmma.wait_group.sync.aligned 1;", "wgmma.wait_group.sync.aligned 2;"),
    "stage released before its products": Fault("arrive(&empty[(stage + 2) % 3], 1)", "arrive(&empty[stage], 1)"),
    "results without waiting for products": Fault(
        'asm volatile("wgmma.wait_group.sync.aligned 0;" : : : "memory");', ""
    ),
    "wrong step of the descriptor": Fault("step * 2", "step", 2),
    "wrong swizzle of the descriptor": Fault("(uint64_t)1 << 62", "(uint64_t)2 << 62"),
    "wrong swizzle of the copies": Fault("(chunk ^ (row % 8)) * 8", "chunk * 8"),
    "too lax wait_group": Fault('"cp.async.wait_group 1;"', '"cp.async.wait_group 2;"'),
    "missing commit": Fault("      commit_copies();\n", ""),
    "missing proxy fence": Fault("        publish();\n", ""),
    "missing last proxy fence": Fault("    publish();\n    arrive", "    arrive"),
    "missing fence of registers": Fault('asm volatile("wgmma.fence.sync.aligned;" : : : "memory");', ""),
    "off-by-one mask": Fault("source < 0 ? 0 : 16", "source < -1 ? 0 : 16"),
    "missing fence of barriers": Fault("  publish_barriers();\n", ""),
    "promise of a pool at 64 bytes": Fault("__align__(1024)", "__align__(64)"),
    "promise of a pool at 64 bytes, behind an array": Fault(POOL, ARRAY_BEFORE + POOL.replace("1024", "64")),
    "dropped barrier": Fault("  __syncthreads();\n", ""),
}


@pytest.fixture(scope="module")
def product() -> HopperProduct:
    return HopperProduct()


@pytest.fixture(scope="module")
def mutants() -> Mutants:
    return Mutants(SOURCE, {**FAULTS, "array before the pool": Fault(POOL, ARRAY_BEFORE + POOL)})


@thinned("schedule", SCHEDULES, 3)
def test_without_faults_every_schedule_agrees(product, mutants, schedule):
    assert not product.wrong(mutants.kernel(NO_FAULT, schedule))


def test_a_pool_lies_as_it_declares_behind_an_array(product, mutants):
    assert not product.wrong(mutants.kernel("array before the pool", SCHEDULES[0]))


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_caught(product, mutants, fault):
    assert mutants.caught(fault, product.wrong) is not None
