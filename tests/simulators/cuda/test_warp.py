"""Lanes of a warp exchange values as on the device, and errors of divergence are found."""

from __future__ import annotations

import numpy as np
import pytest

from .emulated import load

SOURCE = """
extern "C" __global__ void shuffles(int* values, int* results, int offset, int width) {
  int lane = threadIdx.x;
  results[lane] = __shfl_sync(0xffffffff, values[lane], offset, width);
  results[32 + lane] = __shfl_down_sync(0xffffffff, values[lane], offset, width);
  results[64 + lane] = __shfl_up_sync(0xffffffff, values[lane], offset, width);
  results[96 + lane] = __shfl_xor_sync(0xffffffff, values[lane], offset, width);
}
extern "C" __global__ void votes(int* values, int* results) {
  int lane = threadIdx.x;
  bool odd = values[lane] % 2;
  results[lane] = __ballot_sync(0xffffffff, odd);
  results[32 + lane] = __any_sync(0xffffffff, values[lane] == 7) + 2 * __all_sync(0xffffffff, values[lane] < 99);
  results[64 + lane] = __reduce_add_sync(0xffffffff, values[lane]);
  results[96 + lane] = __reduce_max_sync(0xffffffff, values[lane]);
  results[128 + lane] = __reduce_min_sync(0xffffffffu, values[lane]);
}
extern "C" __global__ void branches(int* results) {
  int lane = threadIdx.x % 32;
  if (lane < 8) results[threadIdx.x] = __activemask();
  else if (lane < 20) results[threadIdx.x] = __activemask();
  else results[threadIdx.x] = __ballot_sync(0xfff00000, lane % 2);
}
extern "C" __global__ void from_outside(int* results) {
  if (threadIdx.x < 16) results[threadIdx.x] = __shfl_down_sync(0xffff, 5, 8);
}
extern "C" __global__ void after_exit(int* results) {
  if (threadIdx.x >= 24) return;
  results[threadIdx.x] = __ballot_sync(0xffffffff, 1);
}
extern "C" __global__ void diverged(int* results) {
  if (threadIdx.x < 16) results[0] = __shfl_sync(0xffffffff, 1, 0);
  else results[1] = __ballot_sync(0xffffffff, 1);
}
extern "C" __global__ void two_masks(int* results) {
  results[threadIdx.x] = __ballot_sync(threadIdx.x < 16 ? 0x1ffff : 0xffff0000, 1);
}
extern "C" __global__ void not_in_mask(int* results) { results[threadIdx.x] = __ballot_sync(0xffff, 1); }
extern "C" __global__ void some_missing(int* results) {
  if (threadIdx.x < 16) __syncwarp(0xffffffff);
  __syncthreads();
}
extern "C" __global__ void elected(int* results) {
  unsigned chosen = 0;
  asm volatile("{ .reg .pred %%px; elect.sync _|%%px, %1; @%%px mov.s32 %0, 1; }" : "+r"(chosen) : "r"(0xFFFFFFFF));
  results[threadIdx.x] = chosen;
}
"""
NAMES = (
    *("shuffles", "votes", "branches", "from_outside", "after_exit"),
    *("diverged", "two_masks", "not_in_mask", "some_missing", "elected"),
)


@pytest.fixture(scope="module")
def kernels():
    return load(SOURCE, *NAMES)


@pytest.mark.parametrize("width", [32, 16, 4, 1])
@pytest.mark.parametrize("offset", [0, 1, 3, 16, 31])
def test_shuffles(kernels, offset, width):
    values = np.random.default_rng(0).integers(0, 1000, 32).astype(np.int32)
    results = np.zeros((4, 32), np.int32)
    kernels["shuffles"](values, results, offset, width)
    lane = np.arange(32)
    segment, place = lane // width * width, lane % width
    sources = [
        segment + offset % width,
        np.where(place + offset < width, lane + offset, lane),
        np.where(place >= offset, lane - offset, lane),
        np.where((lane ^ offset) < segment + width, lane ^ offset, lane),
    ]
    np.testing.assert_array_equal(results, values[np.stack(sources)])


def test_votes_and_reductions(kernels):
    values = np.random.default_rng(0).integers(-50, 50, 32).astype(np.int32)
    results = np.zeros((5, 32), np.int32)
    kernels["votes"](values, results)
    odd = sum(1 << lane for lane in range(32) if values[lane] % 2)
    expected = [np.int64(odd).astype(np.int32), (7 in values) + 2, values.sum(), values.max(), values.min()]
    np.testing.assert_array_equal(results, np.repeat(np.int32(expected), 32).reshape(5, 32))


def test_lanes_of_one_branch_run_together(kernels):
    results = np.zeros(64, np.int32)
    kernels["branches"](results, block=64)
    odd_lanes = np.uint32(sum(1 << lane for lane in range(20, 32) if lane % 2)).astype(np.int32)
    expected = [0xFF] * 8 + [0xFFF00] * 12 + [odd_lanes] * 12
    np.testing.assert_array_equal(results, expected * 2)


def test_what_a_lane_outside_of_the_mask_gives_is_poison(kernels):
    results = np.zeros(16, np.int32)
    kernels["from_outside"](results)
    np.testing.assert_array_equal(results, [5] * 8 + [-1] * 8)


def test_lanes_that_have_exited_are_not_waited_for(kernels):
    results = np.zeros(32, np.int32)
    kernels["after_exit"](results)
    np.testing.assert_array_equal(results, [0xFFFFFF] * 24 + [0] * 8)


def test_one_lane_is_elected(kernels):
    results = np.zeros(64, np.int32)
    kernels["elected"](results, block=64)
    np.testing.assert_array_equal(results.reshape(2, 32).sum(1), [1, 1])


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("diverged", r"block \(0, 0, 0\), thread \(16, 0, 0\): lanes of one warp diverged: .*shuffle.*vote"),
        ("two_masks", "lanes of one warp name different lanes: 0x0001ffff and 0xffff0000"),
        ("not_in_mask", "lane 16 is not in its own mask 0x0000ffff"),
        ("some_missing", "deadlock.*16 at __syncthreads, 16 at __syncwarp"),
    ],
)
def test_divergence_is_an_error(kernels, name, problem):
    with pytest.raises(RuntimeError, match=f"emulated kernel {name}: .*{problem}"):
        kernels[name](np.zeros(32, np.int32))
