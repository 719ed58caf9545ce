"""Keep buffers of fixed size on the stack.

TVM takes buffers of 1024 bytes and more from a pool of the thread, in every iteration of a parallel loop. An iteration
that reads weights from memory evicts the pool's records from the caches, so the next request costs several latencies of
memory, during which nothing is prefetched: a sixth of the time of products with one row.
"""

from __future__ import annotations

import math

import tvm
import tvm_ffi
from tvm import DataType, tirx

MOST_BYTES = 1 << 15
"""Most bytes of a buffer on the stack; threads have stacks of at least 512 KiB, and kernels few buffers."""

_KEPT = "disable_lower_builtin"
"""TVM's annotation of allocations that it leaves to LLVM, which puts them on the stack."""


@tirx.transform.prim_func_pass(opt_level=0, name="StackBuffers")
class StackBuffers:
    def transform_function(
        self, function: tirx.PrimFunc, _module: tvm.IRModule, _context: tvm.transform.PassContext
    ) -> tirx.PrimFunc:
        return function.with_body(tvm_ffi.structural_map(function.body, [(tirx.AllocBuffer, _on_stack)]))


def _on_stack(allocation: tirx.AllocBuffer) -> tirx.AllocBuffer:
    buffer = allocation.buffer
    sizes = [int(size) for size in buffer.shape if isinstance(size, tirx.IntImm)]
    size = math.prod(sizes) * DataType(buffer.dtype).itemsize
    if len(sizes) < len(buffer.shape) or not 0 < size <= MOST_BYTES:
        return allocation
    return tirx.AllocBuffer(buffer, {**dict(allocation.annotations), _KEPT: tirx.IntImm("bool", 1)})
