"""Products of a warp on tensor cores that multiply numbers of 4 and 8 bits together with the scales of their groups
(``mma`` with ``.block_scale``, only on sm_120a).

An instruction multiplies 16 rows with 8 columns over 32 inputs of 8 bits, or 64 of 4 bits, and adds float32 sums. Its
operands are those of ``mma.sync.m16n8k32`` in 8 bits, with twice as many numbers of 4 bits. A register of scales holds
four, of which a byte selector takes the first one (PTX ISA, "Block Scaling for mma.sync"): of the four lanes with a
row's sums, a pair has the scales of rows r and r + 8; of the four lanes with a column's numbers, each has those of a
column. So each lane loads the scales of two row steps and four column steps, all useful:

- scales of row ``8 * (lane % 2) + lane // 4`` of row step ``2 * p + lane // 2 % 2``;
- scales of column ``lane // 4`` of column step ``4 * p + lane % 4``.

With rows in mxfp8 numbers of the matrix become e4m3 in registers. Such an instruction is twice as fast on a GeForce RTX
5090 as one with numbers of 6 bits (main-horse.github.io, "Things I learned digging into 5090 perf"); nothing is known
there of e4m3 with e2m1. A word has eight numbers: the lower halves of its bytes, then the upper ones, become two
registers of four, which is the order in which rows are stored. The bits of e2m1, sign apart, are those of an e4m3 that
is 64 times smaller. So are the sums, until the end.
"""

from __future__ import annotations

from typing import Any

from tvm.script import tirx as T

from moec.targets.cuda.kernels.mma_tile import MMA_COLUMNS, MMA_ROWS
from moec.targets.gpu.kernels.instructions import set_and_or

E2M1_IN_E4M3 = 64.0
"""The number by which sums have to be multiplied where numbers of the matrix became e4m3."""
ROW_STEPS, COLUMN_STEPS = 2, 4
"""Steps of rows and of columns whose scales are in one register of a warp's lanes."""
_INSTRUCTIONS = {
    "mxfp8": "m16n8k32.row.col.kind::mxf8f6f4.block_scale.scale_vec::1X.f32.e4m3.e4m3.f32.ue8m0",
    "mxfp4": "m16n8k64.row.col.kind::mxf4nvf4.block_scale.scale_vec::2X.f32.e2m1.e2m1.f32.ue8m0",
    "nvfp4": "m16n8k64.row.col.kind::mxf4nvf4.block_scale.scale_vec::4X.f32.e2m1.e2m1.f32.ue4m3",
}
_MULTIPLY = """__forceinline__ __device__ void multiply_{name}(float* sums, unsigned* rows, unsigned* columns,
    unsigned row_scales, unsigned row_lanes, unsigned column_scales, unsigned column_lane, unsigned byte) {{
  asm volatile("mma.sync.aligned.{opcode} "
               "{{%0, %1, %2, %3}}, {{%4, %5, %6, %7}}, {{%8, %9}}, {{%0, %1, %2, %3}}, "
               "{{%10}}, {{%14, %11}}, {{%12}}, {{%14, %13}};"
               : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
               : "r"(rows[0]), "r"(rows[1]), "r"(rows[2]), "r"(rows[3]), "r"(columns[0]), "r"(columns[1]),
                 "r"(row_scales), "h"((unsigned short)row_lanes), "r"(column_scales),
                 "h"((unsigned short)column_lane), "h"((unsigned short)byte));
}}
"""


def multiply(
    arithmetic: str, sums: Any, i: Any, j: Any, left: Any, right: Any, scales: tuple[Any, Any], byte: Any
) -> Any:
    """Add to ``sums[i, j]`` the products of a step of 16 rows and one of 8 columns. ``scales``: registers of rows and
    of columns with four scales each; ``byte``: the first one of them that counts."""
    return T.evaluate(
        T.cuda.func_call(
            f"multiply_{arithmetic}",
            T.address_of(sums[i, j, 0]),
            T.address_of(left[i, 0]),
            T.address_of(right[j, 0]),
            scales[0],
            T.cast(i % ROW_STEPS, "uint32"),
            scales[1],
            T.cast(j % COLUMN_STEPS, "uint32"),
            T.cast(byte, "uint32"),
            source_code=_MULTIPLY.format(name=arithmetic, opcode=_INSTRUCTIONS[arithmetic]),
        )
    )


def row_of_scales(lane: Any, pair: Any, steps: int) -> Any:
    """The row, of those of a warp, whose scales a lane has for the ``pair``-th two of ``steps`` row steps."""
    step = T.min(pair * ROW_STEPS + lane // 2 % 2, steps - 1)
    return step * MMA_ROWS + lane % 2 * 8 + lane // 4


def column_of_scales(lane: Any, four: Any) -> Any:
    """The column, of those of a warp, whose scales a lane has for the ``four``-th four column steps."""
    return (four * COLUMN_STEPS + lane % 4) * MMA_COLUMNS + lane // 4


@T.inline
def set_e4m3(lower, upper, word):
    """Set two registers to the numbers in the lower and in the upper halves of the bytes of a word, as e4m3."""
    numbers, signs = T.meta_var((T.uint32(0x1C1C1C1C), T.uint32(0x80808080)))
    set_and_or(lower, word << T.uint32(2), numbers, (word << T.uint32(4)) & signs)
    set_and_or(upper, word >> T.uint32(2), numbers, word & signs)
