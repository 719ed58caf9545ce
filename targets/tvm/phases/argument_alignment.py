"""Let kernels take tensors at any address that is a multiple of 16 bytes.

TVM assumes that the data of every argument begins at a multiple of 64 bytes and refuses other addresses. Memory from
malloc, such as a large numpy array, begins at a multiple of 16: such an input would have to be copied, and a model's
cache of keys and values is megabytes. Instructions for unaligned addresses are as fast as aligned ones where the
address happens to be aligned. The oldest vector instructions (SSE) require operands in memory to be aligned to 16
bytes.
"""

from __future__ import annotations

import tvm
import tvm_ffi
from tvm import tirx

from moec.runtime.tensors import ALIGNMENT


@tirx.transform.prim_func_pass(opt_level=0, name="LowerArgumentAlignment")
class LowerArgumentAlignment:
    def transform_function(
        self, function: tirx.PrimFunc, _module: tvm.IRModule, _context: tvm.transform.PassContext
    ) -> tirx.PrimFunc:
        types = [parameter.ty for parameter in function.params]

        def lowered(buffer: tirx.BufferType) -> tirx.BufferType:
            return _lowered(buffer) if any(buffer.same_as(kind) for kind in types) else buffer

        return tvm_ffi.structural_map(function, [(tirx.BufferType, lowered)])


def _lowered(buffer: tirx.BufferType) -> tirx.BufferType:
    return tirx.decl_buffer(
        buffer.shape,
        buffer.dtype,
        strides=buffer.strides,
        elem_offset=buffer.elem_offset,
        scope=buffer.storage_scope,
        data_alignment=min(buffer.data_alignment, ALIGNMENT),
        offset_factor=buffer.offset_factor,
        layout=buffer.layout,
    ).ty
