"""A matrix product in the style of kernels for Hopper: one warp group copies, another multiplies.

``y[r, :] = x[rows[r], :] @ w^T``; rows of -1 are zeros. Rows of x are loaded by cp.async, and the copying threads
publish them to the tensor cores; w is loaded by TMA. There are three stages; a stage is released when the product after
its own has been issued.
"""

from __future__ import annotations

import ctypes

import numpy as np

from moec.simulators.cuda.tensor_map import encode_tensor_map

from .barrier_functions import BARRIER_FUNCTIONS
from .emulated import Kernel, aligned

ROWS = COLUMNS = DEPTH = 64
K_TILES, STAGES = 5, 3
SUMS = COLUMNS // 2
DYNAMIC_BYTES = STAGES * (ROWS + COLUMNS) * DEPTH * 2 + STAGES * 16

_OPERANDS = ", ".join(f"%{i}" for i in range(SUMS))
_SUMS = ", ".join(f'"+f"(sums_ptr[{i}])' for i in range(SUMS))

SOURCE = (
    BARRIER_FUNCTIONS
    + f"""
__forceinline__ __device__ void commit_copies() {{ asm volatile("cp.async.commit_group;" : : : "memory"); }}
__forceinline__ __device__ void wait_for_all_but_one_copy() {{ asm volatile("cp.async.wait_group 1;" : : : "memory"); }}
__forceinline__ __device__ void wait_for_copies() {{ asm volatile("cp.async.wait_group 0;" : : : "memory"); }}
__forceinline__ __device__ void publish() {{ asm volatile("fence.proxy.async.shared::cta;" : : : "memory"); }}
__forceinline__ __device__ void copy(void* to, const void* from, unsigned bytes) {{
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
               : : "r"(shared_address(to)), "l"(from), "r"(bytes) : "memory");
}}
__forceinline__ __device__ void copy_box(void* to, const void* map, int column, int row, void* barrier) {{
  asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes"
               " [%0], [%1, {{%2, %3}}], [%4];"
               : : "r"(shared_address(to)), "l"(map), "r"(column), "r"(row), "r"(shared_address(barrier)) : "memory");
}}
__forceinline__ __device__ uint64_t descriptor(const void* start) {{
  return (shared_address(start) >> 4) | (uint64_t)1 << 16 | (uint64_t)64 << 32 | (uint64_t)1 << 62;
}}
extern "C" __global__ void __launch_bounds__(256) product(
    half* x, int* rows, const __grid_constant__ CUtensorMap w, float* y) {{
  extern __shared__ __align__(1024) unsigned char pool_ptr[];
  half* x_tiles = (half*)pool_ptr;
  half* w_tiles = x_tiles + {STAGES * ROWS * DEPTH};
  uint64_t* full = (uint64_t*)(w_tiles + {STAGES * COLUMNS * DEPTH});
  uint64_t* empty = full + {STAGES};
  int thread = threadIdx.x % 128;
  if (threadIdx.x == 0)
    for (int i = 0; i < {STAGES}; ++i) {{ init(&full[i], 129); init(&empty[i], 1); }}
  publish_barriers();
  __syncthreads();
  int stage = 0, phase = 0;
  if (threadIdx.x < 128) {{
    for (int k_tile = 0; k_tile < {K_TILES}; ++k_tile) {{
      wait(&empty[stage], phase ^ 1);
      if (thread == 0) {{
        arrive_with_bytes(&full[stage], {COLUMNS * DEPTH * 2});
        copy_box(w_tiles + stage * {COLUMNS * DEPTH}, &w, k_tile * {DEPTH}, 0, &full[stage]);
      }}
      for (int i = 0; i < 4; ++i) {{
        int row = i * 16 + thread / 8, chunk = thread % 8, source = rows[row];
        copy(x_tiles + stage * {ROWS * DEPTH} + row * {DEPTH} + (chunk ^ (row % 8)) * 8,
             x + (source < 0 ? 0 : source) * {K_TILES * DEPTH} + k_tile * {DEPTH} + chunk * 8, source < 0 ? 0 : 16);
      }}
      commit_copies();
      if (k_tile > 0) {{
        wait_for_all_but_one_copy();
        publish();
        arrive(&full[(stage + {STAGES - 1}) % {STAGES}], 1);
      }}
      if (++stage == {STAGES}) {{ stage = 0; phase ^= 1; }}
    }}
    wait_for_copies();
    publish();
    arrive(&full[(stage + {STAGES - 1}) % {STAGES}], 1);
  }} else {{
    alignas(64) float sums_ptr[{SUMS}];
    for (int k_tile = 0; k_tile < {K_TILES}; ++k_tile) {{
      wait(&full[stage], phase);
      asm volatile("wgmma.fence.sync.aligned;" : : : "memory");
      for (int step = 0; step < 4; ++step) {{
        int adds = k_tile + step > 0;
        asm volatile("{{ .reg .pred p; setp.ne.b32 p, %{SUMS + 2}, 0; "
          "wgmma.mma_async.sync.aligned.m64n{COLUMNS}k16.f32.f16.f16 {{{_OPERANDS}}}, "
          "%{SUMS}, %{SUMS + 1}, p, 1, 1, 0, 0; }}"
          : {_SUMS}
          : "l"(descriptor(x_tiles + stage * {ROWS * DEPTH}) + step * 2),
            "l"(descriptor(w_tiles + stage * {COLUMNS * DEPTH}) + step * 2), "r"(adds));
      }}
      asm volatile("wgmma.commit_group.sync.aligned;");
      asm volatile("wgmma.wait_group.sync.aligned 1;" : : : "memory");
      if (k_tile > 0 && thread == 0) arrive(&empty[(stage + {STAGES - 1}) % {STAGES}], 1);
      if (++stage == {STAGES}) {{ stage = 0; phase ^= 1; }}
    }}
    asm volatile("wgmma.wait_group.sync.aligned 0;" : : : "memory");
    for (int i = 0; i < {SUMS}; ++i) {{
      int row = thread / 32 * 16 + thread % 32 / 4 + i / 2 % 2 * 8, column = i / 4 * 8 + thread % 4 * 2 + i % 2;
      y[row * {COLUMNS} + column] = sums_ptr[i];
    }}
  }}
}}
"""
)


class HopperProduct:
    """Inputs for the kernel and their expected results."""

    def __init__(self) -> None:
        random = np.random.default_rng(0)
        depth = K_TILES * DEPTH
        self.x = aligned(random.standard_normal((90, depth)).astype(np.float16))
        self.w = aligned((random.standard_normal((COLUMNS, depth)) / depth**0.5).astype(np.float16))
        self.rows = np.where(np.arange(ROWS) < 60, random.integers(0, 90, ROWS), -1).astype(np.int32)
        taken = np.where(self.rows[:, None] < 0, 0, self.x[self.rows].astype(np.float32))
        self.expected = taken @ self.w.astype(np.float32).T
        self.map = aligned(np.zeros(128, np.uint8))
        numbers = (depth, COLUMNS, depth * 2, DEPTH, COLUMNS, 1, 1, 0, 3, 2, 0)
        encode_tensor_map(self.map.ctypes.data, "float16", 2, ctypes.c_void_p(self.w.ctypes.data), *numbers)

    def wrong(self, kernel: Kernel) -> bool:
        """Whether results differ. Raises RuntimeError as the kernel does."""
        y = np.full((ROWS, COLUMNS), np.nan, np.float32)
        kernel(self.x, self.rows, self.map, y, block=256, dynamic_bytes=DYNAMIC_BYTES)
        return not np.allclose(y, self.expected, atol=5e-3)
