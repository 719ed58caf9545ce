"""Blocks of threads: order, barriers, shared memory, refused launches and invalid accesses."""

from __future__ import annotations

import numpy as np
import pytest

from moec.common.errors import MoecError

from ...products import thinned
from .emulated import load, load_one

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
    asm volatile("bar.sync %0, %1;" : : "r"(3), "r"(64) : "memory");
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
extern "C" __global__ void load_float(float* values, float* results) { results[0] = values[0]; }
extern "C" __global__ void load_float2(float* values, float* results) { *(float2*)results = *(float2*)values; }
extern "C" __global__ void load_float4(float* values, float* results) { *(float4*)results = *(float4*)values; }
extern "C" __global__ void stuck(int* results) {
  if (threadIdx.x < 32) asm volatile("bar.sync 1, 64;" : : : "memory");
}
extern "C" __global__ void sums(float* totals) { atomicAdd(totals + blockIdx.x % 7, 1.0f); }
"""
NAMES = (
    *("reverse", "reverse_unsynchronised", "half_of_the_block", "some_exit", "unborn"),
    *("load_float", "load_float2", "load_float4"),
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


@thinned("architecture, kib", [("sm_80", 163), ("sm_86", 99), ("sm_89", 99), ("sm_90a", 227), ("sm_120a", 99)], 3)
def test_shared_memory_is_that_of_the_architecture(architecture, kib):
    source = 'extern "C" __global__ void nothing(int* results) { results[0] = 1; }'
    kernel = load_one(source, "nothing", architecture=architecture)
    kernel(np.zeros(1, np.int32), dynamic_bytes=kib * 1024)
    with pytest.raises(RuntimeError, match=f"bytes of shared memory of {kib} KiB"):
        kernel(np.zeros(1, np.int32), dynamic_bytes=kib * 1024 + 1)


def test_an_architecture_without_limits_is_refused():
    with pytest.raises(MoecError, match="architecture 'sm_70': its limits are not known; expected one of sm_80, "):
        load_one("", "nothing", architecture="sm_70")


@pytest.mark.parametrize("bytes_, vector", [(4, "float"), (8, "float2"), (16, "float4")])
def test_a_misaligned_access_is_found(kernels, bytes_, vector):
    memory = np.zeros(64, np.uint8)
    aligned = memory[-memory.ctypes.data % 16 :]
    run = kernels[f"load_{vector}"]
    run(aligned[bytes_:], aligned, block=1)
    for from_, to in ((bytes_ // 2, 0), (0, bytes_ // 2)):
        with pytest.raises(RuntimeError, match=f"misaligned access: an address of .* {bytes_ // 2} bytes behind a mul"):
            run(aligned[from_:], aligned[to:], block=1)


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
