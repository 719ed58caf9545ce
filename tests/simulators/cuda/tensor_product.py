"""A matrix product in the style of kernels for Blackwell: one thread multiplies, four warps of a block read the sums.

``y = x @ w^T`` for x [rows, depth] and w [columns, depth], which all threads copy to shared memory in K_TILES parts; of
a pair of blocks each copies half of the rows and of the columns. The kernel computes it twice, with the same columns of
tensor memory, so that the second time it waits for their readers.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from .barrier_functions import BARRIER_FUNCTIONS
from .emulated import Kernel
from .tensor_functions import PAIR_FUNCTIONS, TENSOR_FUNCTIONS, instruction_descriptor

TILE_BYTES = 128
K_TILES, TIMES = 2, 2
KINDS = {"f16": (0, 2), "bf16": (1, 2), "tf32": (2, 4), "e4m3": (0, 1)}
"""By type of the operands: its number in the instruction descriptor, and bytes."""
FUNCTIONS = {group: BARRIER_FUNCTIONS + text for group, text in ((1, TENSOR_FUNCTIONS), (2, PAIR_FUNCTIONS))}
"""By blocks of a group."""
_KERNEL = """
extern "C" __global__ void {cluster}__launch_bounds__(160) {name}(unsigned char* x, unsigned char* w, float* y) {{
  extern __shared__ __align__(1024) unsigned char pool_ptr[];
  unsigned char* x_tile = pool_ptr;
  unsigned char* w_tile = pool_ptr + {rows} * 128;
  uint64_t* full = (uint64_t*)(w_tile + {columns} * 128);
  uint64_t* multiplied = full + 1;
  uint64_t* summed = full + 2;
  uint64_t* read = full + 3;
  unsigned* place = (unsigned*)(full + 4);
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32, rank = rank_of_block();
  if (threadIdx.x == 0) {{
    init(full, 128 * {group});
    init(multiplied, 1);
    init(summed, 1);
    init(read, 128 * {group});
  }}
  publish_barriers();
  if (warp == 1) {{ allocate(place, {allocated}); relinquish(); }}
  __syncthreads();
  meet();
  unsigned sums = *place;
  if (warp == 4) {{
    if (lane == 0 && rank == 0) {{
      for (int tile = 0; tile < {times} * {k_tiles}; ++tile) {{
        if (tile == {k_tiles}) {{ wait(read, 0); fence_after(); }}
        wait(full, tile % 2);
        for (int step = 0; step < 4; ++step)
          multiply_{kind}(sums, operand(x_tile + step * 32), operand(w_tile + step * 32), {instruction}u, 0,
                          tile % {k_tiles} + step > 0);
        commit(multiplied);
        if (tile % {k_tiles} == {k_tiles} - 1) commit(summed);
      }}
    }}
    __syncwarp();
  }} else {{
    for (int time = 0; time < {times}; ++time) {{
      for (int tile = 0; tile < {k_tiles}; ++tile) {{
        if (time * {k_tiles} + tile > 0) wait(multiplied, (time * {k_tiles} + tile + 1) % 2);
        for (int i = threadIdx.x * 16; i < ({rows} + {columns}) * 128; i += 128 * 16) {{
          int row = i / 128, byte = tile * 128 + i % 128;
          const unsigned char* source = row < {rows} ? x + (rank * {rows} + row) * {k_tiles} * 128
                                                     : w + (rank * {columns} + row - {rows}) * {k_tiles} * 128;
          *(uint4*)&pool_ptr[i ^ (row % 8 * 16)] = *(const uint4*)&source[byte];
        }}
        publish();
        arrive_at_issuer(full);
      }}
      wait(summed, time % 2);
      fence_after();
      for (int column = 0; column < {sum_columns}; column += 8) {{
        unsigned loaded_ptr[8];
        load_columns(loaded_ptr[0], loaded_ptr[1], loaded_ptr[2], loaded_ptr[3], loaded_ptr[4], loaded_ptr[5],
                     loaded_ptr[6], loaded_ptr[7], sums + (warp * 32 << 16) + column);
        wait_for_loads();
        for (int i = 0; i < 8; ++i)
          y[((time * {group} + rank) * 128 + warp * 32 + lane) * {sum_columns} + column + i] =
              __uint_as_float(loaded_ptr[i]);
      }}
      fence_before();
      arrive_at_issuer(read);
    }}
  }}
  __syncthreads();
  meet();
  if (warp == 1) deallocate(sums, {allocated});
}}
"""


@dataclasses.dataclass(frozen=True)
class Shape:
    """Rows and columns of sums, and blocks that compute them together."""

    rows: int
    columns: int
    group: int = 1

    @property
    def sum_columns(self) -> int:
        """Columns of tensor memory."""
        return self.columns // 2 if self.group == 2 and self.rows == 128 else self.columns

    def of_lanes(self, y: np.ndarray) -> np.ndarray:
        """The sums [times, rows, columns] that lie in the lanes of blocks [times, blocks, 128, columns]."""
        if self.rows == 64:
            y = y.reshape(TIMES, 4, 2, 16, self.columns)[:, :, 0]
        elif self.sum_columns < self.columns:
            y = y.reshape(TIMES, 2, 2, 64, self.sum_columns).transpose(0, 1, 3, 2, 4)
        return y.reshape(TIMES, self.rows, self.columns)

    def __str__(self) -> str:
        return f"{self.rows}_{self.columns}"


def kernel_text(name: str, shape: Shape, operands: str = "bf16") -> str:
    """The kernel for operands of a type of :data:`KINDS`; without :data:`FUNCTIONS`."""
    return _KERNEL.format(
        name=name,
        kind={"bf16": "f16", "e4m3": "f8f6f4"}.get(operands, operands),
        rows=shape.rows // shape.group,
        columns=shape.columns // shape.group,
        sum_columns=shape.sum_columns,
        group=shape.group,
        cluster="__cluster_dims__(2, 1, 1) " if shape.group == 2 else "",
        instruction=instruction_descriptor(shape.rows, shape.columns, KINDS[operands][0]),
        allocated=max(32, 1 << (shape.sum_columns - 1).bit_length()),
        times=TIMES,
        k_tiles=K_TILES,
    )


def depth(operands: str) -> int:
    return K_TILES * TILE_BYTES // KINDS[operands][1]


def run(kernel: Kernel, shape: Shape, x: np.ndarray, w: np.ndarray, **schedule: Any) -> np.ndarray:
    """The sums [TIMES, rows, columns], in an order of threads. Raises RuntimeError as the kernel does."""
    y = np.zeros((TIMES, shape.group, 128, shape.sum_columns), np.float32)
    dynamic_bytes = (shape.rows + shape.columns) // shape.group * TILE_BYTES + 4 * 8 + 16
    arrays = x.view(np.uint8), w.view(np.uint8), y
    kernel(*arrays, grid=shape.group, block=160, dynamic_bytes=dynamic_bytes, schedule=schedule)
    return shape.of_lanes(y)
