"""Blocks of threads: order, barriers, shared memory, and what the driver and the memory refuse."""

from __future__ import annotations

import numpy as np
import pytest

from .emulated import load

SOURCE = """
extern "C" __global__ void reverse(float* values) {
  __shared__ alignas(64) float staged_ptr[256];
  staged_ptr[threadIdx.x] = values[blockIdx.x * 256 + threadIdx.x];
  __syncthreads();
  values[blockIdx.x * 256 + threadIdx.x] = staged_ptr[255 - threadIdx.x];
}
extern "C" __global__ void reverse_unsynchronised(float* values) {
  __shared__ alignas(64) float staged_ptr[256];
  staged_ptr[threadIdx.x] = values[threadIdx.x];
  values[threadIdx.x] = staged_ptr[255 - threadIdx.x];
}
extern "C" __global__ void half_of_the_block(int* results) {
  __shared__ int sum_ptr[1];
  if (threadIdx.x == 0) sum_ptr[0] = 0;
  __syncthreads();
  if (threadIdx.x >= 64) {
    atomicAdd(sum_ptr, 1);
    asm volatile("bar.sync %0, %1;" : : "r"(3), "r"(64));
    results[threadIdx.x - 64] = sum_ptr[0];
  }
}
extern "C" __global__ void some_exit(int* results) {
  if (threadIdx.x % 2) return;
  __syncthreads();
  results[threadIdx.x] = 1;
}
extern "C" __global__ void unborn(float* values, int* kept) {
  extern __shared__ __align__(64) unsigned char pool_ptr[];
  __shared__ float array_ptr[4];
  values[threadIdx.x] = ((float*)pool_ptr)[threadIdx.x] + array_ptr[threadIdx.x % 4];
  kept[threadIdx.x] = threadIdx.x;
}
extern "C" __global__ void behind_array(int* index) {
  __shared__ alignas(64) int first_ptr[5];
  __shared__ alignas(64) int second_ptr[5];
  second_ptr[0] = 1;
  first_ptr[*index] = 1;
}
extern "C" __global__ void behind_pool(int* index) {
  extern __shared__ __align__(64) unsigned char pool_ptr[];
  ((int*)pool_ptr)[*index] = 1;
}
extern "C" __global__ void __launch_bounds__(64) bounded(int* index, int* other) {
  if (blockIdx.x == 3 && threadIdx.x == 5) index[0] = other[0];
}
extern "C" __global__ void not_initialised(float* results) {
  float sums_ptr[8];
  if (threadIdx.x > 16)
    for (int i = 0; i < 8; ++i) sums_ptr[i] = 0.0f;
  for (int i = 0; i < 8; ++i) sums_ptr[i] += 1.0f;
  results[threadIdx.x] = sums_ptr[threadIdx.x % 8];
}
extern "C" __global__ void large_frame(int* results) {
  volatile int local[40000];
  for (int i = 0; i < 40000; ++i) local[i] = i;
  results[threadIdx.x] = local[39999 - threadIdx.x];
}
extern "C" __global__ void divide(int* results) { results[0] = 7 / results[0]; }
extern "C" __global__ void stuck(int* results) {
  if (threadIdx.x < 32) asm volatile("bar.sync 1, 64;");
}
extern "C" __global__ void sums(float* totals) { atomicAdd(totals + blockIdx.x % 7, 1.0f); }
"""
NAMES = (
    *("reverse", "reverse_unsynchronised", "half_of_the_block", "some_exit", "unborn"),
    *("behind_array", "behind_pool", "bounded", "large_frame", "not_initialised", "divide", "stuck", "sums"),
)


@pytest.fixture(scope="module")
def kernels():
    return load(SOURCE, *NAMES)


@pytest.mark.parametrize("threads", ["1", "3"])
def test_blocks_may_run_on_any_number_of_threads(kernels, monkeypatch, threads):
    monkeypatch.setenv("MOEC_EMULATOR_THREADS", threads)
    values = np.arange(50 * 256, dtype=np.float32)
    expected = values.reshape(50, 256)[:, ::-1].copy()
    kernels["reverse"](values, grid=50, block=256)
    np.testing.assert_array_equal(values.reshape(50, 256), expected)
    totals = np.zeros(7, np.float32)
    kernels["sums"](totals, grid=70, block=32)
    np.testing.assert_array_equal(totals, [320] * 7)


def test_a_missing_barrier_shows(kernels):
    values = np.arange(256, dtype=np.float32)
    kernels["reverse_unsynchronised"](values, block=256)
    assert np.isnan(values).any()


def test_a_named_barrier_is_for_some_threads(kernels):
    results = np.zeros(64, np.int32)
    kernels["half_of_the_block"](results, block=128)
    np.testing.assert_array_equal(results, [64] * 64)


def test_variables_without_a_value_hold_nonsense(kernels):
    results = np.zeros(32, np.float32)
    kernels["not_initialised"](results)
    np.testing.assert_array_equal(results[17:], 1)
    assert (abs(results[:17]) > 1e30).all()


def test_threads_that_exited_are_not_waited_for(kernels):
    results = np.zeros(64, np.int32)
    kernels["some_exit"](results, block=64)
    np.testing.assert_array_equal(results, [1, 0] * 32)


def test_shared_memory_is_born_as_not_a_number(kernels):
    values, kept = np.zeros(32, np.float32), np.zeros(32, np.int32)
    kernels["unborn"](values, kept, dynamic_bytes=128)
    assert np.isnan(values).all()
    np.testing.assert_array_equal(kept, np.arange(32))


@pytest.mark.parametrize(("index", "survives"), [(4, True), (5, False), (19, False)])
def test_a_write_behind_a_shared_array_is_found(kernels, index, survives):
    if survives:
        kernels["behind_array"](np.int32([index]), block=1)
        return
    with pytest.raises(RuntimeError, match="shared memory behind the end of first_ptr was written"):
        kernels["behind_array"](np.int32([index]), block=1)


@pytest.mark.parametrize(
    ("index", "problem"),
    [(24, None), (25, "behind the end of the dynamic pool"), (5000, "byte 20000 of shared memory")],
)
def test_a_write_behind_the_pool_is_found(kernels, index, problem):
    if problem is None:
        kernels["behind_pool"](np.int32([index]), block=1, dynamic_bytes=100)
        return
    with pytest.raises(RuntimeError, match=problem):
        kernels["behind_pool"](np.int32([index]), block=1, dynamic_bytes=100)


def test_a_fault_names_kernel_block_and_thread(kernels):
    with pytest.raises(
        RuntimeError, match=r"emulated kernel bounded: block \(3, 0, 0\), thread \(5, 0, 0\): access to"
    ):
        kernels["bounded"](np.zeros(1, np.int32), None, grid=4, block=64)


def test_a_stack_that_is_too_small_is_found(kernels):
    with pytest.raises(RuntimeError, match="the stack is too small"):
        kernels["large_frame"](np.zeros(64, np.int32), block=64)


def test_a_division_by_zero_is_found(kernels):
    results = np.int32([2])
    kernels["divide"](results, block=1)
    assert results[0] == 3
    with pytest.raises(RuntimeError, match="integer division by zero"):
        kernels["divide"](np.int32([0]), block=1)


def test_a_deadlock_is_found(kernels):
    with pytest.raises(RuntimeError, match="deadlock: no thread can go on; threads waiting: 32 at a named barrier"):
        kernels["stuck"](np.zeros(1, np.int32), block=64)


@pytest.mark.parametrize(
    ("shape", "problem"),
    [
        ({"grid": 0}, "is empty"),
        ({"grid": (1, 65536)}, "more than 2147483647 x 65535"),
        ({"block": 65}, "__launch_bounds__ says, 64"),
        ({"dynamic_bytes": 227 * 1024 + 1}, "bytes of shared memory of 227 KiB"),
    ],
)
def test_what_the_driver_refuses_is_refused(kernels, shape, problem):
    kernels["bounded"](np.zeros(1, np.int32), None, grid=1, block=64, dynamic_bytes=227 * 1024)
    with pytest.raises(RuntimeError, match=f"emulated kernel bounded: cannot be launched: .*{problem}"):
        kernels["bounded"](np.zeros(1, np.int32), None, **shape)
