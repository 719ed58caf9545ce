"""wgmma with a B whose rows are contiguous in shared memory, the layout of values in attention."""

from __future__ import annotations

import ml_dtypes
import numpy as np

from .emulated import load_one
from .test_warp_group import HELPERS

COLUMNS, DEPTH = 72, 32
SUMS = COLUMNS // 2
_OPERANDS = ", ".join(f"%{i}" for i in range(SUMS))
_OUTPUTS = ", ".join(f'"+f"(sums_ptr[{i}])' for i in range(SUMS))
# Tiles of 64 columns: LBO leads from one to the next, SBO from eight numbers of the depth to the next eight.
SOURCE = (
    HELPERS
    + f"""
extern "C" __global__ void multiply(unsigned short* a, unsigned short* b, float* results) {{
  __shared__ alignas(1024) unsigned short a_ptr[64 * 64];
  __shared__ alignas(1024) unsigned short b_ptr[2 * {DEPTH} * 64];
  stage(a_ptr, a, 64);
  stage(b_ptr, b, 2 * {DEPTH});
  asm volatile("fence.proxy.async.shared::cta;" : : : "memory");
  __syncthreads();
  float sums_ptr[{SUMS}];
  for (int i = 0; i < {SUMS}; ++i) sums_ptr[i] = 0;
  asm volatile("wgmma.fence.sync.aligned;" : : : "memory");
  for (int k = 0; k < {DEPTH // 16}; ++k)
    asm volatile("wgmma.mma_async.sync.aligned.m64n{COLUMNS}k16.f32.bf16.bf16 {{{_OPERANDS}}}, "
                 "%{SUMS}, %{SUMS + 1}, 1, 1, 1, 0, 1;" : {_OUTPUTS}
                 : "l"(descriptor(&a_ptr[k * 16], 1, 64, 1)),
                   "l"(descriptor(&b_ptr[k * 16 * 64], {DEPTH * 128 // 16}, 64, 1)));
  asm volatile("wgmma.commit_group.sync.aligned;");
  asm volatile("wgmma.wait_group.sync.aligned 0;" : : : "memory");
  for (int i = 0; i < {SUMS}; ++i) {{
    int row = threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4 + i / 2 % 2 * 8;
    results[row * {COLUMNS} + i / 4 * 8 + threadIdx.x % 4 * 2 + i % 2] = sums_ptr[i];
  }}
}}
"""
)


def test_columns_side_by_side():
    random = np.random.default_rng(0)
    a, b = (random.integers(-8, 8, shape).astype(ml_dtypes.bfloat16) for shape in ((64, 64), (DEPTH, 128)))
    tiles = np.ascontiguousarray(b.reshape(DEPTH, 2, 64).transpose(1, 0, 2))
    results = np.zeros((64, COLUMNS), np.float32)
    load_one(SOURCE, "multiply")(a.view(np.uint16), tiles.view(np.uint16), results, block=128)
    wide = a.astype(np.float32)[:, :DEPTH], b.astype(np.float32)[:, :COLUMNS]
    np.testing.assert_array_equal(results, wide[0] @ wide[1])
