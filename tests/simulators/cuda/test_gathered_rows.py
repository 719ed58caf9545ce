"""TMA: four rows of a matrix that are named by number come in one copy."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest

from moec.common.errors import UnsupportedError
from moec.simulators.cuda.tensor_map import encode_tensor_map
from moec.targets.cuda import nvcc

from .barrier_functions import BARRIER_FUNCTIONS
from .emulated import aligned, load, load_one

COPY = "cp.async.bulk.tensor.2d.shared::cta.global.tile::gather4.mbarrier::complete_tx::bytes"
SOURCE = (
    BARRIER_FUNCTIONS
    + f"""
__forceinline__ __device__ void copy_rows(void* to, const void* map, int column, int row0, int row1, int row2, int row3,
                                          void* barrier) {{
  asm volatile("{COPY} [%0], [%1, {{%2, %3, %4, %5, %6}}], [%7];"
               : : "r"(shared_address(to)), "l"(map), "r"(column), "r"(row0), "r"(row1), "r"(row2), "r"(row3),
                   "r"(shared_address(barrier)) : "memory");
}}
extern "C" __global__ void gather(const __grid_constant__ CUtensorMap map, int* rows, int bytes, int* results) {{
  extern __shared__ __align__(1024) unsigned char pool_ptr[];
  __shared__ alignas(64) uint64_t barrier_ptr[1];
  if (threadIdx.x == 0) {{
    init(barrier_ptr, 1);
    publish_barriers();
    arrive_with_bytes(barrier_ptr, bytes);
    for (int i = 0; i < 2; ++i)
      copy_rows(pool_ptr + i * 512, &map, 32, rows[i * 4], rows[i * 4 + 1], rows[i * 4 + 2], rows[i * 4 + 3],
                barrier_ptr);
  }}
  __syncthreads();
  wait(barrier_ptr, 0);
  for (int i = threadIdx.x; i < 8 * 32; i += 32) results[i] = ((int*)pool_ptr)[i ^ (i / 32 % 8 * 4)];
}}
"""
)
NUMBERS = np.arange(40 * 64, dtype=np.int32).reshape(40, 64)


def gathered(kernel, rows: list[int], *, box_rows: int = 1, bytes_: int = 1024) -> np.ndarray:
    """Columns 32 to 64 of eight rows."""
    numbers, tensor_map = aligned(NUMBERS), aligned(np.zeros(128, np.uint8))
    box = (64, 40, 64 * 4, 32, box_rows, 1, 1, 0, 3, 0, 0)
    encode_tensor_map(tensor_map.ctypes.data, "int32", 2, ctypes.c_void_p(numbers.ctypes.data), *box)
    results = np.full((8, 32), -1, np.int32)
    kernel(tensor_map, np.array(rows, np.int32), bytes_, results, dynamic_bytes=1024)
    return results


@pytest.mark.parametrize("completion", ["latest", "earliest"])
def test_rows_come_in_their_order(completion):
    kernel = load_one(SOURCE, "gather", completion=completion)
    rows = [39, 0, 7, 7, 12, 3, 38, 1]
    np.testing.assert_array_equal(gathered(kernel, rows), NUMBERS[rows, 32:])
    outside = gathered(kernel, [5, -1, 40, 6, -(2**31), 2**31 - 1, 8, 9])
    expected = np.zeros((8, 32), np.int32)
    expected[[0, 3, 6, 7]] = NUMBERS[[5, 6, 8, 9], 32:]
    np.testing.assert_array_equal(outside, expected)


def test_what_gathered_copies_cannot_do():
    kernel = load_one(SOURCE, "gather")
    rows = list(range(8))
    with pytest.raises(RuntimeError, match=r"whose box has 2 rows in 2 dimensions; expected one row in two"):
        gathered(kernel, rows, box_rows=2)
    with pytest.raises(RuntimeError, match=r"deadlock: .* at an mbarrier"):
        gathered(kernel, rows, bytes_=2048)
    with pytest.raises(UnsupportedError, match=r"with 4 coordinates: .* expected 5"):
        load(SOURCE.replace(", %6}", "}"), "gather")


@pytest.mark.nightly
def test_nvcc_compiles_the_same_text():
    compiled = nvcc.compile_source("#include <cstdint>\n#include <cuda.h>\n" + SOURCE, "sm_100a")
    if compiled is None:
        pytest.skip("nvcc is not installed")
    assert COPY in compiled.ptx["gather"]
