"""Clusters of blocks: multicast tiles arrive in both blocks, and faults seeded into the pattern are caught."""

from __future__ import annotations

import numpy as np
import pytest

from ...products import thinned
from .cluster_sums import DYNAMIC_BYTES, SOURCE, ClusterSums
from .mutation import NO_FAULT, SCHEDULES, Fault, Mutants

MEETING = "  arrive_at_cluster();\n  wait_for_cluster();\n"
FAULTS = {
    "copied to one block alone": Fault("copy_to(3,", "copy_to(1 << rank,"),
    "a block that is not there": Fault("copy_to(3,", "copy_to(7,"),
    "half the bytes announced": Fault("arrive_with_bytes(&full[stage], 2048)", "arrive_with_bytes(&full[stage], 1024)"),
    "both bring the same half": Fault("+ rank * 8,", "+ 0,"),
    "both write the same half": Fault("+ rank * 256,", ","),
    "stages given back to one's own block": Fault("arrive_in(threadIdx.x % 32,", "arrive_in(rank,"),
    "stages not given back to the other": Fault("if (threadIdx.x % 32 < 2)", "if (threadIdx.x % 32 == rank)"),
    "stages given back by one block": Fault("init(&empty[i], 2)", "init(&empty[i], 1)"),
    "stages given back before they are read": Fault("      __syncwarp();\n", ""),
    "barriers not published": Fault("  publish_barriers();\n", ""),
    "copies before the other has its barriers": Fault(MEETING + "  int", "  int"),
    "copies without waiting for the other": Fault(MEETING + "  int", "  arrive_at_cluster();\n  int"),
    "an end without waiting for the other": Fault("  __syncwarp();\n" + MEETING, ""),
}


@pytest.fixture(scope="module")
def sums() -> ClusterSums:
    return ClusterSums()


@pytest.fixture(scope="module")
def mutants() -> Mutants:
    return Mutants(SOURCE, FAULTS)


@thinned("schedule", SCHEDULES, 3)
def test_without_faults_every_schedule_agrees(sums, mutants, schedule):
    assert not sums.wrong(mutants.kernel(NO_FAULT, schedule))


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_caught(sums, mutants, fault):
    assert mutants.caught(fault, sums.wrong) is not None


@pytest.mark.parametrize(("grid", "problem"), [(3, "is no whole number of clusters of 2"), (0, "is empty")])
def test_grids_that_the_driver_would_refuse(sums, mutants, grid, problem):
    with pytest.raises(RuntimeError, match=problem):
        kernel = mutants.kernel(NO_FAULT, SCHEDULES[0])
        kernel(sums.map, np.zeros((4, 32), np.float32), grid=grid, block=64, dynamic_bytes=DYNAMIC_BYTES)
