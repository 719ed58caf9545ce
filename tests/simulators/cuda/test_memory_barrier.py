"""mbarrier: a phase ends when all threads and all expected bytes have arrived."""

from __future__ import annotations

import numpy as np
import pytest

from .barrier_functions import BARRIER_FUNCTIONS
from .emulated import load

SOURCE = (
    BARRIER_FUNCTIONS
    + """
// Warp 0 fills two slots in turn, warp 1 empties them: value i of lane l is 100 * i + l.
extern "C" __global__ void ring(int* results, int count) {
  __shared__ alignas(64) uint64_t full_ptr[2];
  __shared__ alignas(64) uint64_t empty_ptr[2];
  __shared__ alignas(64) int slots_ptr[64];
  if (threadIdx.x == 0)
    for (int i = 0; i < 2; ++i) { init(&full_ptr[i], 32); init(&empty_ptr[i], 32); }
  __syncthreads();
  int lane = threadIdx.x % 32;
  for (int i = 0; i < count; ++i) {
    int slot = i % 2, parity = i / 2 % 2;
    if (threadIdx.x < 32) {
      wait(&empty_ptr[slot], parity ^ 1);
      slots_ptr[slot * 32 + lane] = 100 * i + lane;
      arrive(&full_ptr[slot], 1);
    } else {
      wait(&full_ptr[slot], parity);
      results[i * 32 + lane] = slots_ptr[slot * 32 + (lane + 1) % 32];
      arrive(&empty_ptr[slot], 1);
    }
  }
}
extern "C" __global__ void polled(int* results) {
  __shared__ alignas(64) uint64_t barrier_ptr[1];
  if (threadIdx.x == 0) init(barrier_ptr, 1);
  __syncthreads();
  if (threadIdx.x == 0) {
    unsigned done = 0;
    while (!done)
      asm volatile("{ .reg .pred p; mbarrier.test_wait.parity.shared.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
                   : "=r"(done) : "r"(shared_address(barrier_ptr)), "r"(0) : "memory");
    results[0] = 1;
  } else if (threadIdx.x == 40) {
    arrive(barrier_ptr, 1);
  }
}
extern "C" __global__ void after_copies(float* values, float* results) {
  __shared__ alignas(64) uint64_t barrier_ptr[1];
  __shared__ alignas(64) float copied_ptr[128];
  if (threadIdx.x == 0) init(barrier_ptr, 32);
  __syncthreads();
  int at = threadIdx.x * 4;
  asm volatile("cp.async.ca.shared.global [%0], [%1], 16;"
               : : "r"(shared_address(&copied_ptr[at])), "l"(values + at) : "memory");
  asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" : : "r"(shared_address(barrier_ptr)) : "memory");
  wait(barrier_ptr, 0);
  for (int i = 0; i < 4; ++i) results[at + i] = copied_ptr[127 - at - i];
}
extern "C" __global__ void not_initialised(int* results) {
  __shared__ alignas(64) uint64_t barrier_ptr[1];
  arrive(barrier_ptr, 1);
}
extern "C" __global__ void too_many(int* results) {
  __shared__ alignas(64) uint64_t barrier_ptr[1];
  if (threadIdx.x == 0) init(barrier_ptr, 2);
  __syncthreads();
  arrive(barrier_ptr, 3);
}
extern "C" __global__ void never(int* results) {
  __shared__ alignas(64) uint64_t barrier_ptr[1];
  if (threadIdx.x == 0) init(barrier_ptr, 33);
  __syncthreads();
  arrive(barrier_ptr, 1);
  wait(barrier_ptr, 0);
}
"""
)
NAMES = ("ring", "polled", "after_copies", "not_initialised", "too_many", "never")


@pytest.fixture(scope="module", params=["latest", "earliest"])
def kernels(request):
    return load(SOURCE, *NAMES, completion=request.param, first_thread=33)


def test_a_producer_and_a_consumer_take_turns(kernels):
    results = np.zeros((7, 32), np.int32)
    kernels["ring"](results, 7, block=64)
    np.testing.assert_array_equal(results, 100 * np.arange(7)[:, None] + (np.arange(32) + 1) % 32)


def test_a_thread_may_ask_again_and_again(kernels):
    results = np.zeros(1, np.int32)
    kernels["polled"](results, block=64)
    assert results[0] == 1


def test_copies_arrive_when_they_are_complete(kernels):
    memory = np.arange(160, dtype=np.float32)
    values = memory[-memory.ctypes.data % 64 // 4 :][:128]
    results = np.zeros(128, np.float32)
    kernels["after_copies"](values, results)
    np.testing.assert_array_equal(results, values[::-1])


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("not_initialised", "mbarrier.arrive: byte 0 of shared memory holds no mbarrier"),
        ("too_many", "mbarrier.arrive: more arrivals than"),
        ("never", "deadlock: .* 32 at an mbarrier"),
    ],
)
def test_misuse_is_an_error(kernels, name, problem):
    with pytest.raises(RuntimeError, match=problem):
        kernels[name](np.zeros(1, np.int32))
