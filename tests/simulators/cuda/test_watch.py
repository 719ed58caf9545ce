"""Watched kernels: accesses of two threads to a byte of shared memory need a barrier between them, in any schedule."""

from __future__ import annotations

import numpy as np
import pytest

from .barrier_functions import BARRIER_FUNCTIONS
from .emulated import load

KERNEL = """
extern "C" __global__ void {name}(int* results) {{
  __shared__ alignas(64) int values_ptr[64];
  __shared__ alignas(64) uint64_t barrier_ptr[1];
  int other = (threadIdx.x + {distance}) % 64;
  if (threadIdx.x == 0) init(barrier_ptr, 64);
  __syncthreads();
  values_ptr[threadIdx.x] = threadIdx.x;
  {between}
  results[threadIdx.x] = values_ptr[other];
  {behind}
}}
"""
BAR = "__syncthreads();"
NAMED = 'asm volatile("bar.sync 1, 64;" : : : "memory");'
LANES = "__syncwarp();"
MEMORY = "arrive(barrier_ptr, 1); wait(barrier_ptr, 0);"
ARRIVAL_ALONE = "arrive(barrier_ptr, 1);"
SHUFFLE = "other += __shfl_sync(0xffffffff, 0, 0);"
REUSE = "values_ptr[threadIdx.x] = 0;"

FINE = {
    "barrier": (33, BAR, ""),
    "named_barrier": (33, NAMED, ""),
    "mbarrier": (33, MEMORY, ""),
    "own_value": (0, "", REUSE),
    "barrier_before_reuse": (33, BAR, BAR + REUSE),
    "reads_of_many": (33, BAR, "results[threadIdx.x] += values_ptr[5] - 5;" + BAR + REUSE),
}
RACES = {
    "nothing": (33, "", ""),
    "lanes_only": (33, LANES, ""),
    "shuffle": (33, SHUFFLE, ""),
    "arrival_alone": (33, ARRIVAL_ALONE, ""),
    "reuse": (33, BAR, REUSE),
    "twice_written": (33, BAR, BAR + "values_ptr[0] = 1;"),
}
RACE = (
    r"race: thread \(\d+, 0, 0\) (reads|overwrites) byte \d+ of shared memory, in values_ptr, "
    r"which thread \(\d+, 0, 0\) (read|wrote), and no barrier lies between them"
)
APART = ("own_part", "atomic_total", "all_read")
TOGETHER = ("total", "both_write", "neighbour")
LANES_SOURCE = """
extern "C" __global__ void lanes(int* results) {
  __shared__ alignas(64) int values_ptr[64];
  values_ptr[threadIdx.x] = threadIdx.x;
  __syncwarp();
  results[threadIdx.x] = values_ptr[threadIdx.x ^ 7];
}
extern "C" __global__ void in_flight(int* results) {
  __shared__ alignas(64) int values_ptr[64];
  int at = threadIdx.x % 16 * 4;
  if (threadIdx.x < 16)
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;"
                 : : "r"(__cvta_generic_to_shared(&values_ptr[at])), "l"(results + at) : "memory");
  if (threadIdx.x < 16) results[at] = values_ptr[at];
}
extern "C" __global__ void own_part(int* results) { results[blockIdx.x * 64 + threadIdx.x] += 1; }
extern "C" __global__ void atomic_total(int* results) { atomicAdd(results, 1); }
extern "C" __global__ void total(int* results) { if (threadIdx.x == 0) results[0] += 1; }
extern "C" __global__ void both_write(int* results) { results[threadIdx.x] = 7; }
extern "C" __global__ void neighbour(int* results) {
  results[blockIdx.x * 64 + threadIdx.x] = results[(blockIdx.x + 1) % 3 * 64 + threadIdx.x];
}
extern "C" __global__ void all_read(int* results) { results[blockIdx.x + 64] = results[threadIdx.x]; }
extern "C" __global__ void counted(int* results) {
  __shared__ alignas(64) int count_ptr[1];
  if (threadIdx.x == 0) count_ptr[0] = 0;
  __syncthreads();
  atomicAdd(count_ptr, 1);
  __syncthreads();
  results[threadIdx.x] = count_ptr[0];
}
"""


@pytest.fixture(scope="module")
def kernels():
    cases = {**FINE, **RACES}
    source = BARRIER_FUNCTIONS + LANES_SOURCE
    for name, (distance, between, behind) in cases.items():
        source += KERNEL.format(name=name, distance=distance, between=between, behind=behind)
    return load(source, *cases, "lanes", "in_flight", "counted", *APART, *TOGETHER, watch=True)


@pytest.mark.parametrize("name", FINE)
def test_barriers_order_accesses(kernels, name):
    results = np.zeros(64, np.int32)
    kernels[name](results, block=64)
    np.testing.assert_array_equal(results, (np.arange(64) + FINE[name][0]) % 64)


def test_lanes_are_ordered_by_syncwarp(kernels):
    results = np.zeros(64, np.int32)
    kernels["lanes"](results, block=64)
    np.testing.assert_array_equal(results, np.arange(64) ^ 7)


def test_atomic_operations_do_not_race(kernels):
    results = np.zeros(64, np.int32)
    kernels["counted"](results, block=64)
    np.testing.assert_array_equal(results, [64] * 64)


@pytest.mark.parametrize("name", RACES)
def test_a_race_is_found(kernels, name):
    with pytest.raises(RuntimeError, match=RACE):
        kernels[name](np.zeros(64, np.int32), block=64)


def test_a_load_of_what_is_being_copied_is_found(kernels):
    memory = np.zeros(96, np.int32)
    aligned = memory[-memory.ctypes.data % 64 // 4 :][:64]
    with pytest.raises(RuntimeError, match="a load: byte 0 of shared memory is read while a copy to it is under way"):
        kernels["in_flight"](aligned, block=64)


@pytest.mark.parametrize("name", APART)
def test_blocks_may_share_what_none_writes(kernels, name):
    kernels[name](np.zeros(192, np.int32), grid=3, block=64)
    kernels[name](np.zeros(192, np.int32), grid=3, block=64)  # what was known of a launch is forgotten


@pytest.mark.parametrize("name", TOGETHER)
def test_a_race_between_blocks_is_found(kernels, name):
    kernels[name](np.zeros(192, np.int32), grid=1, block=64)
    result = r"race: this block (reads|overwrites) byte \d+ of an array in global memory, which .* in the same launch"
    with pytest.raises(RuntimeError, match=result):
        kernels[name](np.zeros(192, np.int32), grid=3, block=64)
