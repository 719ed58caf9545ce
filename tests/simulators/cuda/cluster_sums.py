"""A kernel of two-block clusters that share their loads by multicast, the pattern of products that share a matrix.

``y[block, :]`` is the sum of the rows of all tiles of w. Each block copies half of every tile to both (multicast); both
give a stage back to both.
"""

from __future__ import annotations

import ctypes

import numpy as np

from moec.simulators.cuda.tensor_map import encode_tensor_map

from .barrier_functions import BARRIER_FUNCTIONS
from .emulated import Kernel, aligned

ROWS, COLUMNS = 16, 32
TILES, STAGES = 5, 2
_HALF = ROWS // 2 * COLUMNS
DYNAMIC_BYTES = STAGES * ROWS * COLUMNS * 4 + STAGES * 16

SOURCE = (
    BARRIER_FUNCTIONS
    + f"""
__forceinline__ __device__ unsigned rank_in_cluster() {{
  unsigned rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}}
__forceinline__ __device__ void arrive_in(unsigned rank, void* barrier) {{
  unsigned mapped;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(mapped) : "r"(shared_address(barrier)), "r"(rank));
  asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" : : "r"(mapped) : "memory");
}}
__forceinline__ __device__ void copy_to(short mask, void* to, const void* map, int column, int row, void* barrier) {{
  asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster"
               " [%0], [%1, {{%2, %3}}], [%4], %5;"
               : : "r"(shared_address(to)), "l"(map), "r"(column), "r"(row), "r"(shared_address(barrier)), "h"(mask)
               : "memory");
}}
__forceinline__ __device__ void arrive_at_cluster() {{
  asm volatile("barrier.cluster.arrive.release;" : : : "memory");
}}
__forceinline__ __device__ void wait_for_cluster() {{
  asm volatile("barrier.cluster.wait.acquire;" : : : "memory");
}}
extern "C" __global__ void __cluster_dims__(2, 1, 1) __launch_bounds__(64) product(
    const __grid_constant__ CUtensorMap w, float* y) {{
  extern __shared__ __align__(1024) unsigned char pool_ptr[];
  float* tiles = (float*)pool_ptr;
  uint64_t* full = (uint64_t*)(tiles + {STAGES * ROWS * COLUMNS});
  uint64_t* empty = full + {STAGES};
  unsigned rank = rank_in_cluster();
  if (threadIdx.x == 0)
    for (int i = 0; i < {STAGES}; ++i) {{ init(&full[i], 1); init(&empty[i], 2); }}
  publish_barriers();
  arrive_at_cluster();
  wait_for_cluster();
  int stage = 0, phase = 0;
  if (threadIdx.x == 0) {{
    for (int tile = 0; tile < {TILES}; ++tile) {{
      wait(&empty[stage], phase ^ 1);
      arrive_with_bytes(&full[stage], {2 * _HALF * 4});
      copy_to(3, tiles + stage * {2 * _HALF} + rank * {_HALF}, &w, 0, tile * {ROWS} + rank * {ROWS // 2},
                  &full[stage]);
      if (++stage == {STAGES}) {{ stage = 0; phase ^= 1; }}
    }}
  }} else if (threadIdx.x >= 32) {{
    float sum = 0;
    for (int tile = 0; tile < {TILES}; ++tile) {{
      wait(&full[stage], phase);
      for (int row = 0; row < {ROWS}; ++row) sum += tiles[stage * {2 * _HALF} + row * {COLUMNS} + threadIdx.x % 32];
      __syncwarp();
      if (threadIdx.x % 32 < 2) arrive_in(threadIdx.x % 32, &empty[stage]);
      if (++stage == {STAGES}) {{ stage = 0; phase ^= 1; }}
    }}
    y[blockIdx.x * {COLUMNS} + threadIdx.x % 32] = sum;
  }}
  __syncwarp();
  arrive_at_cluster();
  wait_for_cluster();
}}
"""
)


class ClusterSums:
    """Inputs for the kernel and their expected results."""

    def __init__(self) -> None:
        self.w = aligned(np.random.default_rng(0).integers(-9, 9, (TILES * ROWS, COLUMNS)).astype(np.float32))
        self.map = aligned(np.zeros(128, np.uint8))
        numbers = (COLUMNS, TILES * ROWS, COLUMNS * 4, COLUMNS, ROWS // 2, 1, 1, 0, 0, 2, 0)
        encode_tensor_map(self.map.ctypes.data, "float32", 2, ctypes.c_void_p(self.w.ctypes.data), *numbers)

    def wrong(self, kernel: Kernel) -> bool:
        """Whether results differ. Raises RuntimeError as the kernel does."""
        y = np.full((4, COLUMNS), np.nan, np.float32)
        kernel(self.map, y, grid=4, block=64, dynamic_bytes=DYNAMIC_BYTES)
        return not np.array_equal(y, np.tile(self.w.sum(0), (4, 1)))
