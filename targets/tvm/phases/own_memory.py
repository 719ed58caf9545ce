"""Give tensors memory of their own where planning would find none to share, or would search for too long.

TVM's planner lets tensors share memory if it proves that they have equally many bytes, and compares every pair of
dynamic sizes. So it gets only dynamic sizes that several tensors have, and of these the :data:`PLANNED_SIZES` most
frequent. Tensors of any other dynamic size are left to the runtime, which takes their memory from its pool and returns
it after their last use.

::

    alloc = builtin.alloc_tensor(R.shape([B, 5]), "float32")          # nothing else has B * 20 bytes
        ->
    storage = memory.alloc_storage(R.shape([B * 5 * 4]), "uint8")
    alloc = memory.alloc_tensor(storage, 0, R.shape([B, 5]), "float32")
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import tvm
import tvm_ffi
from tvm import relax, tirx

from moec.common.budgets import PLANNED_SIZES
from moec.common.dtypes import DTYPES
from moec.targets.tvm.phases.provenance import bindings_of
from moec.targets.tvm.phases.share_views import is_call_of
from moec.targets.tvm.sizes.c_expressions import in_c

_ALLOCATE = "relax.builtin.alloc_tensor"


@tvm.ir.transform.module_pass(opt_level=0, name="OwnMemory")
class OwnMemory:
    """Runs before memory is planned. ``unplanned``: gets the sizes of several tensors that the budget leaves out."""

    def __init__(self, unplanned: list[str]) -> None:
        self._unplanned = unplanned

    def transform_module(self, module: tvm.IRModule, _context: tvm.transform.PassContext) -> tvm.IRModule:
        main, sizes = module["main"], _ByteSizes()
        sizes_of = {binding.var: sizes.of(binding.value) for binding in bindings_of(main) if _allocates(binding)}
        counted = Counter(size for size in sizes_of.values() if size is not None)
        planned = {size for size, count in counted.most_common(PLANNED_SIZES.limit) if count > 1}
        own = {variable for variable, size in sizes_of.items() if size is not None and size not in planned}
        self._unplanned += [
            f"{in_c(size.key)} bytes" for size, count in counted.items() if count > 1 and size not in planned
        ]
        blocks = [
            type(block)([replaced for binding in block.bindings for replaced in _with_memory(binding, own)])
            for block in main.body.blocks
        ]
        body = relax.SeqExpr(blocks, main.body.body)
        module["main"] = relax.Function(main.params, body, main.ret_ty, main.is_pure, main.attrs)
        return module


class _ByteSizes:
    """Sizes of tensors in bytes, with one key for equal sizes; None for sizes known at compile time."""

    def __init__(self) -> None:
        self._analyzer = tvm.sym.Analyzer()
        self._simplified: dict[tvm_ffi.StructuralKey, tvm_ffi.StructuralKey] = {}

    def of(self, allocation: relax.Call) -> tvm_ffi.StructuralKey | None:
        size = _bytes(allocation)
        if isinstance(size, tirx.IntImm):
            return None
        key = tvm_ffi.StructuralKey(size)
        if key not in self._simplified:
            self._simplified[key] = tvm_ffi.StructuralKey(self._analyzer.simplify(size))
        return self._simplified[key]


def _allocates(binding: relax.Binding) -> bool:
    return isinstance(binding, relax.VarBinding) and is_call_of(binding.value, _ALLOCATE)


def _bytes(allocation: relax.Call) -> Any:
    shape, dtype, *_ = allocation.args
    size: Any = tirx.IntImm("int64", DTYPES[str(dtype.value)].itemsize)
    for dim in shape.values:
        size = size * dim
    return size


def _with_memory(binding: relax.Binding, own: set[tvm.ir.Var]) -> list[relax.Binding]:
    if binding.var not in own:
        return [binding]
    shape, dtype, device, scope = binding.value.args
    storage = relax.Var(f"{binding.var.name}_storage", relax.AnyType())
    taken = relax.op.memory.alloc_storage(relax.ShapeExpr([_bytes(binding.value)]), device, scope, "uint8")
    tensor = relax.op.memory.alloc_tensor(storage, 0, shape, dtype, device)
    return [relax.VarBinding(storage, taken), relax.VarBinding(binding.var, tensor)]
