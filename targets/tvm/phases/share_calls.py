"""Call a kernel once where it is called several times on the same arguments.

Equal nodes of the graph are one node already, but different nodes may be lowered to equal calls: for example, each of
several products of the same rows with different weights rounds these rows to 8 bits. The pass skips kernels that TVM
may fuse with their readers, results that a kernel changes in place, and results of the model.

::

    a = reshape(x, [T, 64])
    q = call_tir(quantize_rows, (a,))
    y = call_tir(product, (q, first))
    b = reshape(x, [T, 64])
    r = call_tir(quantize_rows, (b,))
    z = call_tir(product, (r, second))
        ->
    a = reshape(x, [T, 64])
    q = call_tir(quantize_rows, (a,))
    y = call_tir(product, (q, first))
    z = call_tir(product, (q, second))
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import tvm
import tvm_ffi
from tvm import relax

from moec.targets.tvm.kernels.te_kernels import OPAQUE
from moec.targets.tvm.phases.share_views import is_call_of, renamed, variables

_KERNEL, _IN_PLACE, _VIEW = "relax.call_tir", "relax.call_tir_inplace", "relax.reshape"


@tvm.ir.transform.module_pass(opt_level=0, name="ShareCalls")
class ShareCalls:
    """Runs before kernels are fused."""

    def transform_module(self, module: tvm.IRModule, _context: tvm.transform.PassContext) -> tvm.IRModule:
        function = module["main"]
        blocks = _Sharing(module, function.body.blocks).blocks()
        body = relax.SeqExpr(blocks, function.body.body)
        module["main"] = relax.Function(function.params, body, function.ret_ty, function.is_pure, function.attrs)
        return module


class _Sharing:
    def __init__(self, module: tvm.IRModule, blocks: Iterable[relax.BindingBlock]) -> None:
        self._module, self._blocks = module, list(blocks)
        self._changed = _written_to(binding for block in self._blocks for binding in block.bindings)
        self._instead: dict[tvm.ir.Var, tvm.ir.Var] = {}

    def blocks(self) -> list[relax.BindingBlock]:
        return [self._shared(block) for block in self._blocks]

    def _shared(self, block: relax.BindingBlock) -> relax.BindingBlock:
        first_of: dict[tvm_ffi.StructuralKey, tvm.ir.Var] = {}
        kept: list[relax.Binding] = []
        for binding in block.bindings:
            if not isinstance(binding, relax.VarBinding):
                kept.append(binding)
                continue
            value = renamed(binding.value, self._instead)
            if self._may_be_shared(binding.var, value):
                first = first_of.setdefault(tvm_ffi.StructuralKey(value), binding.var)
                if not first.same_as(binding.var):
                    self._instead[binding.var] = first
                    continue
            kept.append(relax.VarBinding(binding.var, value))
        return type(block)(kept)

    def _may_be_shared(self, variable: tvm.ir.Var, value: relax.Expr) -> bool:
        if not isinstance(variable, relax.DataflowVar) or variable in self._changed:
            return False
        if isinstance(value, relax.TupleGetItem) or is_call_of(value, _VIEW):
            return True
        return is_call_of(value, _KERNEL) and self._module[value.args[0]].attrs.get("op_pattern") == OPAQUE


def _written_to(bindings: Iterable[relax.Binding]) -> set[tvm.ir.Var]:
    """The variables whose memory others than their own kernel may write to: a kernel that changes them in place, or,
    for results, the caller."""
    listed = list(bindings)
    changed: set[tvm.ir.Var] = set()
    for binding in reversed(listed):
        value: Any = getattr(binding, "value", None)
        is_view = isinstance(value, relax.TupleGetItem) or is_call_of(value, _VIEW)
        if is_call_of(value, _IN_PLACE) or isinstance(value, relax.Tuple) or (is_view and binding.var in changed):
            changed.update(variables(value))
    return changed
