"""Shrink the buffers of generic kernels to what is read and written of them.

A schedule leaves a buffer as large as the tensor it was. Kernels that come finished allocate what they use: there is
nothing to gain, and finding that out took a third of all phases on register tiles.
"""

from __future__ import annotations

import tvm
from tvm import s_tir

from moec.targets.tvm.schedule import GENERIC


@tvm.ir.transform.module_pass(opt_level=0, name="CompactGenericBuffers")
class CompactGenericBuffers:
    def transform_module(self, module: tvm.IRModule, _context: tvm.transform.PassContext) -> tvm.IRModule:
        generic = {symbol: one for symbol, one in module.functions.items() if one.attrs and one.attrs.get(GENERIC)}
        if generic:
            module = tvm.IRModule(module.functions, attrs=module.attrs)
            module.update(s_tir.transform.CompactBufferAllocation()(tvm.IRModule(generic)))
        return module
