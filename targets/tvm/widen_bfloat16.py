"""Widen bfloat16 to float32 by a shift, wherever it stands.

TVM's own phase for processors without bfloat16 (``BF16ComputeLegalize``) does so in what is stored, but leaves a cast
in the value of a variable as it is; the phase behind it, which stores bfloat16 as 16-bit integers, then makes a
conversion from an integer of it: 1.0 would become 16256.0.
"""

from __future__ import annotations

import tvm
import tvm_ffi
from tvm import tirx
from tvm.script import tirx as T


@tirx.transform.prim_func_pass(opt_level=0, name="WidenBFloat16")
class WidenBFloat16:
    def transform_function(
        self, function: tirx.PrimFunc, _module: tvm.IRModule, _context: tvm.transform.PassContext
    ) -> tirx.PrimFunc:
        return function.with_body(tvm_ffi.structural_map(function.body, [(tirx.Cast, _widened)]))


def _widened(cast: tirx.Cast) -> tirx.PrimExpr:
    source, target = str(cast.value.ty.dtype), str(cast.ty.dtype)
    element, _, lanes = source.partition("x")
    if element != "bfloat16" or target.partition("x")[0] != "float32":
        return cast
    suffix = f"x{lanes}" if lanes else ""
    bits = T.cast(T.reinterpret(f"uint16{suffix}", cast.value), f"uint32{suffix}")
    half = T.uint32(16)
    return T.reinterpret(target, bits << (T.broadcast(half, int(lanes)) if lanes else half))
