"""A matrix product in the style of kernels for Ampere: a ring of k-tiles loaded by cp.async and multiplied by mma.

``y[places[r], :] = x[r, :] @ w^T`` for the rows whose place is not -1; places are unique. Four warps share 16 rows and
64 columns. Chunk c of 16 bytes of row r is at place ``c ^ (r % 8)``.
"""

from __future__ import annotations

import numpy as np

from ...targets.guarded import guarded
from .emulated import Kernel

ROWS, COLUMNS, DEPTH, K_TILES, STAGES = 16, 64, 64, 6, 4
DYNAMIC_BYTES = STAGES * (ROWS + COLUMNS) * DEPTH * 2
_UNTOUCHED = np.float32(-77)

SOURCE = f"""
__forceinline__ __device__ void commit_copies() {{ asm volatile("cp.async.commit_group;" : : : "memory"); }}
__forceinline__ __device__ void wait_for_tile() {{ asm volatile("cp.async.wait_group {STAGES - 2};" : : : "memory"); }}
__forceinline__ __device__ void wait_for_all() {{ asm volatile("cp.async.wait_group 0;" : : : "memory"); }}
__forceinline__ __device__ void copy(void* to, const void* from, unsigned bytes) {{
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;"
               : : "r"(__cvta_generic_to_shared(to)), "l"(from), "r"(bytes) : "memory");
}}
__forceinline__ __device__ void load_fragments(unsigned& a, unsigned& b, unsigned& c, unsigned& d, const void* row) {{
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {{%0, %1, %2, %3}}, [%4];"
               : "=r"(a), "=r"(b), "=r"(c), "=r"(d) : "r"(__cvta_generic_to_shared(row)) : "memory");
}}
__forceinline__ __device__ void multiply(float* d, unsigned a0, unsigned a1, unsigned a2, unsigned a3, unsigned* b) {{
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {{%0, %1, %2, %3}}, {{%4, %5, %6, %7}}, {{%8, %9}}, "
               "{{%0, %1, %2, %3}};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b[0]), "r"(b[1]));
}}
__forceinline__ __device__ void start_copies(half* x_tile, half* w_tile, half* x, half* w, int* places, int k_tile) {{
  int chunk = threadIdx.x % 8;
  for (int i = 0; i < {(ROWS + COLUMNS) // 16}; ++i) {{
    int row = i * 16 + threadIdx.x / 8, at = (chunk ^ (row % 8)) * 8, from = k_tile * {DEPTH} + chunk * 8;
    if (row < {ROWS}) {{
      copy(x_tile + row * {DEPTH} + at, x + row * {K_TILES * DEPTH} + from, places[row] < 0 ? 0 : 16);
    }} else {{
      copy(w_tile + (row - {ROWS}) * {DEPTH} + at, w + (row - {ROWS}) * {K_TILES * DEPTH} + from, 16);
    }}
  }}
}}
extern "C" __global__ void __launch_bounds__(128) product(half* x, half* w, int* places, float* y) {{
  extern __shared__ __align__(128) unsigned char pool_ptr[];
  half* x_tiles = (half*)pool_ptr;
  half* w_tiles = x_tiles + {STAGES * ROWS * DEPTH};
  int lane = threadIdx.x % 32, warp_column = threadIdx.x / 32 * 16;
  float sums_ptr[8];
  for (int i = 0; i < 8; ++i) sums_ptr[i] = 0.0f;
  for (int stage = 0; stage < {STAGES - 1}; ++stage) {{
    start_copies(x_tiles + stage * {ROWS * DEPTH}, w_tiles + stage * {COLUMNS * DEPTH}, x, w, places, stage);
    commit_copies();
  }}
  int reading = 0, writing = {STAGES - 1};
  for (int k_tile = 0; k_tile < {K_TILES}; ++k_tile) {{
    wait_for_tile();
    __syncthreads();
    if (k_tile < {K_TILES - STAGES + 1})
      start_copies(x_tiles + writing * {ROWS * DEPTH}, w_tiles + writing * {COLUMNS * DEPTH}, x, w, places,
                   k_tile + {STAGES - 1});
    commit_copies();  // of each k-tile
    for (int step = 0; step < 4; ++step) {{
      unsigned a[4], b[4];
      int a_chunk = (step * 2 + lane / 16) ^ (lane % 8), b_chunk = (step * 2 + lane / 8 % 2) ^ (lane % 8);
      load_fragments(a[0], a[1], a[2], a[3], x_tiles + reading * {ROWS * DEPTH} + lane % 16 * {DEPTH} + a_chunk * 8);
      load_fragments(b[0], b[1], b[2], b[3], w_tiles + reading * {COLUMNS * DEPTH}
                     + (warp_column + lane / 16 * 8 + lane % 8) * {DEPTH} + b_chunk * 8);
      multiply(sums_ptr, a[0], a[1], a[2], a[3], b);
      multiply(sums_ptr + 4, a[0], a[1], a[2], a[3], b + 2);
    }}
    reading = reading == {STAGES - 1} ? 0 : reading + 1;
    writing = writing == {STAGES - 1} ? 0 : writing + 1;
  }}
  wait_for_all();
  for (int i = 0; i < 8; ++i) {{
    int place = places[lane / 4 + i / 2 % 2 * 8];
    if (place >= 0) y[place * {COLUMNS} + warp_column + i / 4 * 8 + lane % 4 * 2 + i % 2] = sums_ptr[i];
  }}
}}
"""


class AmpereProduct:
    """Inputs for the kernel and their expected results."""

    def __init__(self) -> None:
        random = np.random.default_rng(0)
        used, depth = 13, K_TILES * DEPTH
        x = random.standard_normal((ROWS, depth)).astype(np.float16)
        w = (random.standard_normal((COLUMNS, depth)) / depth**0.5).astype(np.float16)
        places = np.full(ROWS, -1, np.int32)
        places[:used] = random.permutation(used)
        self._arrays = [guarded(array) for array in (x, w, places)]
        self._expected = np.zeros((used, COLUMNS), np.float32)
        self._expected[places[:used]] = x[:used].astype(np.float32) @ w.astype(np.float32).T

    def wrong(self, kernel: Kernel) -> bool:
        """Whether results differ, or other memory was written. Raises RuntimeError as the kernel does."""
        memory = np.full((len(self._expected) + 2, COLUMNS), _UNTOUCHED)
        memory[1:-1] = np.nan
        kernel(*self._arrays, memory[1:], block=128, dynamic_bytes=DYNAMIC_BYTES)
        overwritten = memory[[0, -1]] != _UNTOUCHED
        return bool(overwritten.any()) or not np.allclose(memory[1:-1], self._expected, atol=5e-3)
