"""Let tensors of equally many bytes take turns in one memory where the number is known only at run time.

The memory of a tensor is free behind the last binding that reads it, itself or a view of it, and the next tensor of
this size takes it. A result of ``main`` keeps memory of its own. Sizes are simplified once and found by a hash, so the
time is linear in the number of tensors. TVM's planner does the same afterwards for tensors of known sizes; for every
pair of dynamic sizes it would look for a proof.

::

    a = builtin.alloc_tensor(R.shape([B, 5]), "float32")
    norm(x, a)
    product(a, y)
    b = builtin.alloc_tensor(R.shape([5, B]), "float32")
        ->
    a_storage = memory.alloc_storage(R.shape([B * 5 * 4]), "uint8")
    a = memory.alloc_tensor(a_storage, 0, R.shape([B, 5]), "float32")
    norm(x, a)
    product(a, y)
    b = memory.alloc_tensor(a_storage, 0, R.shape([5, B]), "float32")
"""

from __future__ import annotations

import collections
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import tvm
import tvm_ffi
from tvm import relax, tirx

from moec.common.dtypes import DTYPES
from moec.targets.tvm.phases.provenance import bindings_of
from moec.targets.tvm.phases.share_views import is_call_of, variables

_ALLOCATE = "relax.builtin.alloc_tensor"


@tvm.ir.transform.module_pass(opt_level=0, name="ShareMemory")
class ShareMemory:
    """Runs before TVM's planner, on a ``main`` that has neither branches nor loops, as moec's programs do."""

    def transform_module(self, module: tvm.IRModule, _context: tvm.transform.PassContext) -> tvm.IRModule:
        main, sizes = module["main"], _ByteSizes()
        bindings = list(bindings_of(main))
        sizes_of = {binding.var: sizes.of(binding.value) for binding in bindings if _allocates(binding)}
        dynamic = {variable: size for variable, size in sizes_of.items() if size is not None}
        last_uses = _last_uses(bindings, main.body.body, dynamic)
        shared = iter(_with_memory(bindings, dynamic, last_uses))
        blocks = [type(block)([part for _ in block.bindings for part in next(shared)]) for block in main.body.blocks]
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


def _last_uses(
    bindings: Sequence[relax.Binding], result: relax.Expr, allocated: Iterable[tvm.ir.Var]
) -> dict[tvm.ir.Var, int]:
    """The position of the last binding that reads each of the allocated tensors; results of ``main`` are read behind
    all bindings.

    Whatever is made of a tensor may be a view of it, so a reader of the one is a reader of the other. Tensors stay in
    the order in which they are read: sets of variables are in the order of their addresses, which differ from run to
    run."""
    made_of: dict[tvm.ir.Var, dict[tvm.ir.Var, None]] = {variable: {variable: None} for variable in allocated}
    last_uses: dict[tvm.ir.Var, int] = {}
    for position, binding in enumerate(bindings):
        read = dict.fromkeys(tensor for operand in _operands(binding.value) for tensor in made_of.get(operand, ()))
        last_uses |= dict.fromkeys(read, position)
        if read:
            made_of.setdefault(binding.var, {}).update(read)
    returned = dict.fromkeys(tensor for operand in _operands(result) for tensor in made_of.get(operand, ()))
    return last_uses | dict.fromkeys(returned, len(bindings))


def _operands(value: relax.Expr) -> Iterator[tvm.ir.Var]:
    """The variables in an expression, those of sizes left out where that is quick."""
    match value:
        case relax.Var():
            yield value
        case relax.Tuple():
            yield from (variable for field in value.fields for variable in _operands(field))
        case tvm.ir.Call():
            yield from (variable for argument in value.args for variable in _operands(argument))
        case _:
            yield from variables(value)


def _with_memory(
    bindings: Sequence[relax.Binding],
    sizes: Mapping[tvm.ir.Var, tvm_ffi.StructuralKey],
    last_uses: Mapping[tvm.ir.Var, int],
) -> Iterator[list[relax.Binding]]:
    """In place of each binding itself, or the allocation of a tensor in memory that is free or new."""
    ending: dict[int, list[tvm.ir.Var]] = collections.defaultdict(list)
    for variable, position in last_uses.items():
        ending[position].append(variable)
    free: dict[tvm_ffi.StructuralKey, list[relax.Var]] = collections.defaultdict(list)
    storages: dict[tvm.ir.Var, relax.Var] = {}
    for position, binding in enumerate(bindings):
        if binding.var not in sizes:
            yield [binding]
        else:
            available = free[sizes[binding.var]]
            taken = [] if available else [_new_memory(binding)]
            storages[binding.var] = available.pop() if available else taken[0].var
            yield [*taken, _tensor_in(storages[binding.var], binding)]
        for variable in ending[position]:
            free[sizes[variable]].append(storages[variable])


def _new_memory(binding: relax.VarBinding) -> relax.VarBinding:
    _shape, _dtype, device, scope = binding.value.args
    size = relax.ShapeExpr([_bytes(binding.value)])
    storage = relax.Var(f"{binding.var.name}_storage", relax.AnyType())
    return relax.VarBinding(storage, relax.op.memory.alloc_storage(size, device, scope, "uint8"))


def _tensor_in(storage: relax.Var, binding: relax.VarBinding) -> relax.VarBinding:
    shape, dtype, device, _scope = binding.value.args
    return relax.VarBinding(binding.var, relax.op.memory.alloc_tensor(storage, 0, shape, dtype, device))
