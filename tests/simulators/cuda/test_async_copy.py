"""cp.async: copies are complete after a wait, and, with the latest completion, not before."""

from __future__ import annotations

import numpy as np
import pytest

from .emulated import aligned, load

SOURCE = """
#define COPY(to, from, bytes) asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" \\
  : : "r"(__cvta_generic_to_shared(to)), "l"(from), "r"(bytes) : "memory")
extern "C" __global__ void two_groups(float* values, float* results) {
  __shared__ alignas(64) float first_ptr[128];
  __shared__ alignas(64) float second_ptr[128];
  int at = threadIdx.x * 4;
  COPY(&first_ptr[at], values + at, 16);
  asm volatile("cp.async.commit_group;");
  COPY(&second_ptr[at], values + 128 + at, 8);
  asm volatile("cp.async.commit_group;");
  asm volatile("cp.async.wait_group 1;" : : : "memory");
  for (int i = 0; i < 4; ++i) { results[at + i] = first_ptr[at + i]; results[128 + at + i] = second_ptr[at + i]; }
  asm volatile("cp.async.wait_group 0;" : : : "memory");
  for (int i = 0; i < 4; ++i) results[256 + at + i] = second_ptr[at + i];
}
extern "C" __global__ void not_committed(float* values, float* results) {
  __shared__ alignas(64) float first_ptr[128];
  int at = threadIdx.x * 4;
  COPY(&first_ptr[at], values + at, 16);
  asm volatile("cp.async.wait_group 0;" : : : "memory");
  results[at] = first_ptr[at];
  asm volatile("cp.async.wait_all;" : : : "memory");
  results[at + 1] = first_ptr[at + 1];
}
extern "C" __global__ void misaligned(float* values) {
  __shared__ alignas(64) float first_ptr[8];
  COPY(&first_ptr[1], values, 16);
}
extern "C" __global__ void too_much(float* values) {
  __shared__ alignas(64) float first_ptr[8];
  COPY(&first_ptr[0], values, 20);
}
extern "C" __global__ void outside(float* values) {
  extern __shared__ __align__(64) unsigned char pool_ptr[];
  COPY(pool_ptr + 128, values, 16);
}
"""
NAMES = ("two_groups", "not_committed", "misaligned", "too_much", "outside")


@pytest.fixture(scope="module", params=["latest", "earliest"])
def completion(request):
    return request.param


@pytest.fixture(scope="module")
def kernels(completion):
    return load(SOURCE, *NAMES, completion=completion)


def test_a_wait_completes_all_groups_but_the_last(kernels, completion):
    values, results = aligned(np.arange(256, dtype=np.float32)), np.zeros((3, 128), np.float32)
    kernels["two_groups"](values, results)
    filled = np.where(np.arange(128) % 4 < 2, values[128:], 0)
    np.testing.assert_array_equal(results[0], values[:128])
    np.testing.assert_array_equal(results[1], filled if completion == "earliest" else np.full(128, np.nan))
    np.testing.assert_array_equal(results[2], filled)


def test_without_a_commit_a_copy_is_in_no_group(kernels, completion):
    values, results = aligned(np.arange(128, dtype=np.float32)), np.zeros(128, np.float32)
    kernels["not_committed"](values, results)
    np.testing.assert_array_equal(results[1::4], values[1::4])
    assert np.isnan(results[::4]).all() == (completion == "latest")


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("misaligned", "cp.async: shared address 4 is no multiple of 16"),
        ("too_much", "cp.async reads 20 of 16 bytes"),
        ("outside", "cp.async: bytes 128 to 144 of shared memory, which has 64"),
    ],
)
def test_bad_copies_are_errors(kernels, name, problem):
    with pytest.raises(RuntimeError, match=problem):
        kernels[name](aligned(np.zeros(32, np.float32)), block=1, dynamic_bytes=64)
