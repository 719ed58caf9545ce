"""TMA: each block of a pair loads its own part, and both complete on the mbarrier of one of them (cta_group::2)."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest

from moec.simulators.cuda.tensor_map import encode_tensor_map
from moec.targets.cuda import nvcc

from .barrier_functions import BARRIER_FUNCTIONS
from .emulated import Kernel, aligned, load

COPY = "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
SOURCE = (
    BARRIER_FUNCTIONS
    + """
__forceinline__ __device__ void meet() {
  asm volatile("barrier.cluster.arrive.release;" : : : "memory");
  asm volatile("barrier.cluster.wait.acquire;" : : : "memory");
}
"""
)
KERNEL = """
extern "C" __global__ void __cluster_dims__(4, 1, 1) {name}(
    const __grid_constant__ CUtensorMap map, int bytes, int owner_of_3, int* results) {{
  extern __shared__ __align__(1024) unsigned char pool_ptr[];
  __shared__ alignas(64) uint64_t full[1];
  unsigned rank, mapped;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  if (threadIdx.x == 0) {{ init(full, 1); publish_barriers(); }}
  meet();
  if (threadIdx.x == 0) {{
    int owner = rank == 3 ? owner_of_3 : rank / 2 * 2;
    if (rank % 2 == 0) arrive_with_bytes(full, bytes);
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(mapped) : "r"(shared_address(full)), "r"(owner));
    asm volatile("{copy} [%0], [%1, {{%2, %3}}], [%4];"
                 : : "r"(shared_address(pool_ptr)), "l"(&map), "r"(0), "r"(rank * 8), "r"(mapped) : "memory");
  }}
  if (rank % 2 == 0) wait(full, 0);
  meet();
  for (int i = threadIdx.x; i < 8 * 32; i += 32) results[rank * 8 * 32 + i] = ((int*)pool_ptr)[i];
}}
"""
PAIRED, ALONE = f"{COPY}.cta_group::2", f"{COPY}.cta_group::1"
KERNELS = KERNEL.format(name="paired", copy=PAIRED) + KERNEL.format(name="alone", copy=ALONE)


@pytest.fixture(scope="module", params=["latest", pytest.param("earliest", marks=pytest.mark.nightly)])
def kernels(request) -> dict[str, Kernel]:
    return load(SOURCE + KERNELS, "paired", "alone", completion=request.param)


def copied(kernel: Kernel, *, bytes_: int = 2048, owner_of_3: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """The numbers that arrived in the four blocks, and those that are expected."""
    numbers, tensor_map = aligned(np.arange(32 * 32, dtype=np.int32)), aligned(np.zeros(128, np.uint8))
    box = (32, 32, 32 * 4, 32, 8, 1, 1, 0, 0, 0, 0)
    encode_tensor_map(tensor_map.ctypes.data, "int32", 2, ctypes.c_void_p(numbers.ctypes.data), *box)
    results = np.full(32 * 32, -1, np.int32)
    kernel(tensor_map, bytes_, owner_of_3, results, grid=4, block=32, dynamic_bytes=1024)
    return results, numbers


def test_both_blocks_complete_on_one_barrier(kernels):
    np.testing.assert_array_equal(*copied(kernels["paired"]))


@pytest.mark.parametrize(
    ("name", "options", "problem"),
    [
        ("alone", {}, "a tensor copy to one block of a cluster, with an mbarrier of another"),
        ("paired", {"owner_of_3": 1}, "a tensor copy to one block of a cluster, with an mbarrier of another"),
        ("paired", {"bytes_": 4096}, "deadlock: .* at an mbarrier"),
    ],
)
def test_what_cannot_complete(kernels, name, options, problem):
    with pytest.raises(RuntimeError, match=problem):
        copied(kernels[name], **options)


@pytest.mark.nightly
def test_nvcc_compiles_the_same_text():
    compiled = nvcc.compile_source("#include <cstdint>\n#include <cuda.h>\n" + SOURCE + KERNELS, "sm_100a")
    if compiled is None:
        pytest.skip("nvcc is not installed")
    assert PAIRED in compiled.ptx["paired"]
