"""TMA: boxes of tensors and plain bytes move between global and shared memory."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest

from moec.common.errors import MoecError, UnsupportedError
from moec.runtime.library import load_ffi
from moec.simulators.cuda import EmulatedLaunch, emulated_library
from moec.simulators.cuda.driver import emulated_driver, launch_recorder
from moec.simulators.cuda.tensor_map import encode_tensor_map

from .barrier_functions import BARRIER_FUNCTIONS
from .emulated import TAGS, aligned, load

NUMBERS = np.arange(40 * 64, dtype=np.int32).reshape(40, 64)
SOURCE = (
    BARRIER_FUNCTIONS
    + """
__forceinline__ __device__ void store(const void* map, int column, int row, const void* source) {
  asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%1, %2}], [%3];"
               : : "l"(map), "r"(column), "r"(row), "r"(shared_address(source)) : "memory");
}
extern "C" __global__ void load_box(
    const __grid_constant__ CUtensorMap map, int column, int row, int bytes, int* results) {
  extern __shared__ __align__(1024) unsigned char pool_ptr[];
  __shared__ alignas(64) uint64_t barrier_ptr[1];
  if (threadIdx.x == 0) {
    init(barrier_ptr, 1);
    publish_barriers();
    arrive_with_bytes(barrier_ptr, bytes);
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes"
                 " [%0], [%1, {%2, %3}], [%4];"
      : : "r"(shared_address(pool_ptr)), "l"(&map), "r"(column), "r"(row), "r"(shared_address(barrier_ptr))
      : "memory");
  }
  __syncthreads();
  results[threadIdx.x] = ((int*)pool_ptr)[threadIdx.x];
  wait(barrier_ptr, 0);
  for (int i = threadIdx.x; i < bytes / 4; i += 32) results[32 + i] = ((int*)pool_ptr)[i];
}
extern "C" __global__ void store_box(const __grid_constant__ CUtensorMap map, int column, int row, int early) {
  extern __shared__ __align__(1024) unsigned char pool_ptr[];
  for (int i = threadIdx.x; i < 64; i += 32) ((int*)pool_ptr)[i] = i;
  asm volatile("fence.proxy.async.shared::cta;" : : : "memory");
  __syncthreads();
  if (threadIdx.x == 0) {
    store(&map, column, row, pool_ptr);
    asm volatile("cp.async.bulk.commit_group;");
    if (early) ((int*)pool_ptr)[0] = -1;
    asm volatile("cp.async.bulk.wait_group.read 0;" : : : "memory");
    if (!early) ((int*)pool_ptr)[0] = -1;
  }
}
extern "C" __global__ void store_and_leave(const __grid_constant__ CUtensorMap map, int column, int row) {
  extern __shared__ __align__(1024) unsigned char pool_ptr[];
  if (threadIdx.x == 0) store(&map, column, row, pool_ptr);
}
extern "C" __global__ void load_bytes(int* values, int* results) {
  __shared__ alignas(1024) int copied_ptr[64];
  __shared__ alignas(64) uint64_t barrier_ptr[1];
  if (threadIdx.x == 0) { init(barrier_ptr, 1); publish_barriers(); }
  __syncthreads();
  if (threadIdx.x == 0) {
    arrive_with_bytes(barrier_ptr, 256);
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];"
      : : "r"(shared_address(copied_ptr)), "l"(values), "r"(256), "r"(shared_address(barrier_ptr)) : "memory");
  }
  wait(barrier_ptr, 0);
  results[threadIdx.x] = copied_ptr[threadIdx.x];
  results[32 + threadIdx.x] = copied_ptr[32 + threadIdx.x];
}
"""
)
NAMES = ("load_box", "store_box", "store_and_leave", "load_bytes")


@pytest.fixture(scope="module", params=["latest", "earliest"])
def completion(request):
    return request.param


@pytest.fixture(scope="module")
def kernels(completion):
    return load(SOURCE, *NAMES, completion=completion)


def _map(tensor: np.ndarray, box: tuple[int, int], swizzle: int) -> np.ndarray:
    """The tensor map of a matrix, for a box of rows and columns."""
    encoded = aligned(np.zeros(128, np.uint8))
    rows, columns = tensor.shape
    numbers = [columns, rows, tensor.strides[0], box[1], box[0], 1, 1, 0, swizzle, 0, 0]
    encode_tensor_map(encoded.ctypes.data, str(tensor.dtype), 2, ctypes.c_void_p(tensor.ctypes.data), *numbers)
    return encoded


def _swizzled(box: np.ndarray, swizzle: int) -> np.ndarray:
    """The rows of a box with their 16-byte chunks swizzled: in the 128-byte mode, chunk c of line l is at c ^ (l %
    8)."""
    chunks = np.ascontiguousarray(box).reshape(-1, 4)
    result = np.zeros_like(chunks)
    for i in range(len(chunks)):
        line = i // 8
        mask = {0: 0, 1: 1, 2: 3, 3: 7}[swizzle]
        result[i ^ (line & mask)] = chunks[i]
    return result


@pytest.mark.parametrize(("swizzle", "columns"), [(0, 16), (1, 8), (2, 16), (3, 32)])
@pytest.mark.parametrize("at", [(0, 0), (5, 12), (-3, 20), (100, 0)])
def test_a_box_is_loaded(kernels, completion, swizzle, columns, at):
    tensor = aligned(NUMBERS)
    results = np.full(32 + 16 * columns, -7, np.int32)
    encoded = _map(tensor, (16, columns), swizzle)
    kernels["load_box"](encoded, at[1], at[0], 64 * columns, results, dynamic_bytes=64 * columns)
    padded = np.pad(tensor, ((200, 200), (0, 64)))
    box = padded[200 + at[0] : 216 + at[0], at[1] : at[1] + columns]
    expected = _swizzled(box, swizzle).ravel()
    np.testing.assert_array_equal(results[32:], expected)
    np.testing.assert_array_equal(results[:32], expected[:32] if completion == "earliest" else [-1] * 32)


def test_a_graph_keeps_the_tensor_map_of_a_launch():
    """As a GPU's driver does: host code makes maps on its stack."""
    driver = emulated_driver()
    path = emulated_library(SOURCE, [EmulatedLaunch("load_box", TAGS)], soon_ready=True)
    library, stream, tensor = load_ffi().load_module(str(path)), driver.new_stream(), aligned(NUMBERS)
    library["record_by"](launch_recorder())
    results, encoded = np.full(32 + 256, -7, np.int32), _map(tensor, (16, 16), 0)
    arguments = [ctypes.c_void_p(encoded.ctypes.data), 0, 0, 1024, ctypes.c_void_p(results.ctypes.data)]
    driver.begin_capture(stream)
    with load_ffi().use_raw_stream(load_ffi().device("cuda:0"), stream):
        library["load_box"](*arguments, 1, 1, 32, 1024)
    graph = driver.end_capture(stream)
    assert (results == -7).all()
    encoded[:] = 0
    for _ in range(2):
        tensor += 1
        driver.launch(graph, stream)
        np.testing.assert_array_equal(results[32:], tensor[:16, :16].ravel())


def test_a_wrong_count_of_bytes_never_completes(kernels):
    tensor = aligned(np.zeros((16, 16), np.int32))
    with pytest.raises(RuntimeError, match=r"deadlock: .* 32 at an mbarrier"):
        kernels["load_box"](_map(tensor, (8, 8), 0), 0, 0, 260, np.zeros(100, np.int32), dynamic_bytes=512)


@pytest.mark.parametrize("early", [0, 1])
def test_a_box_is_stored_and_a_reuse_before_the_wait_shows(kernels, completion, early):
    tensor = aligned(np.full((16, 16), -5, np.int32))
    kernels["store_box"](_map(tensor, (8, 8), 0), 10, 4, early, dynamic_bytes=256)
    expected = np.full((16, 16), -5, np.int32)
    expected[4:12, 10:] = np.arange(64).reshape(8, 8)[:, :6]
    expected[4, 10] = -1 if early and completion == "latest" else 0
    np.testing.assert_array_equal(tensor, expected)


def test_a_thread_that_leaves_its_stores_behind_is_an_error(kernels):
    tensor = aligned(np.zeros((16, 16), np.int32))
    with pytest.raises(RuntimeError, match="a thread ends whose bulk stores still read shared memory"):
        kernels["store_and_leave"](_map(tensor, (8, 8), 0), 0, 0, dynamic_bytes=256)


def test_plain_bytes_are_loaded(kernels):
    values, results = aligned(np.arange(64, dtype=np.int32)), np.zeros(64, np.int32)
    kernels["load_bytes"](values, results)
    np.testing.assert_array_equal(results, values)


@pytest.mark.parametrize(
    ("numbers", "kind", "problem"),
    [
        ([64, 40, 250, 8, 8, 1, 1, 0, 0, 0, 0], MoecError, r"strides \(250,\) are no multiples of 16"),
        ([64, 40, 256, 8, 512, 1, 1, 0, 0, 0, 0], MoecError, r"box \(8, 512\) is not between 1 and 256"),
        ([64, 40, 256, 64, 8, 1, 1, 0, 3, 0, 0], MoecError, "256 bytes, more than swizzle 3 allows"),
        ([64, 40, 256, 8, 8, 2, 1, 0, 0, 0, 0], UnsupportedError, r"element strides \(2, 1\): not emulated"),
    ],
)
def test_maps_that_the_driver_refuses(numbers, kind, problem):
    with pytest.raises(kind, match=problem):
        encode_tensor_map(aligned(np.zeros(128, np.uint8)).ctypes.data, "int32", 2, ctypes.c_void_p(1024), *numbers)
