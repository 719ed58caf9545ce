"""Faults seeded into a product for Ampere are caught by wrong results or by an error."""

from __future__ import annotations

import pytest

from ...products import thinned
from .ampere_product import SOURCE, AmpereProduct
from .mutation import NO_FAULT, SCHEDULES, Fault, Mutants

FAULTS = {
    "dropped barrier": Fault("    __syncthreads();\n", ""),
    "wrong swizzle of the copies": Fault("(chunk ^ (row % 8)) * 8", "chunk * 8"),
    "wrong swizzle of the fragments": Fault("(step * 2 + lane / 16) ^ (lane % 8)", "(step * 2 + lane / 16)"),
    "early stage release": Fault("writing = 3;", "writing = 2;"),
    "stage that does not exist": Fault("writing == 3 ?", "writing == 4 ?"),
    "too lax wait_group": Fault('"cp.async.wait_group 2;"', '"cp.async.wait_group 3;"'),
    "missing commit": Fault("    commit_copies();  // of each k-tile\n", ""),
    "missing wait": Fault("    wait_for_tile();\n", ""),
    "off-by-one mask: a row too many": Fault("if (place >= 0)", "if (place >= -1)"),
    "off-by-one mask: a row too few": Fault("if (place >= 0)", "if (place > 0)"),
    "off-by-one mask: a k-tile too many": Fault("if (k_tile < 3)", "if (k_tile < 4)"),
    "off-by-one mask: a k-tile too few": Fault("if (k_tile < 3)", "if (k_tile < 2)"),
    "registers exchanged": Fault("multiply(sums_ptr, a[0], a[1], a[2]", "multiply(sums_ptr, a[0], a[2], a[1]"),
}


@pytest.fixture(scope="module")
def product() -> AmpereProduct:
    return AmpereProduct()


@pytest.fixture(scope="module")
def mutants() -> Mutants:
    return Mutants(SOURCE, FAULTS)


@thinned("schedule", SCHEDULES, 3)
def test_without_faults_every_schedule_agrees(product, mutants, schedule):
    assert not product.wrong(mutants.kernel(NO_FAULT, schedule))


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_caught(product, mutants, fault):
    assert mutants.caught(fault, product.wrong) is not None
