"""Make every shape, every size, every tensor in planned memory and every view of one once in a run.

The instructions of a run make all of these anew wherever they are needed, although sizes never change in a run and
layers take turns in the same memory. For one token that took longer than all kernels that one thread runs. What is used
again lives until its last use, in memory that is there so long anyway. Tuples that nobody reads, which would keep
memory to the end, are left out.

::

    shape = call_packed("vm.builtin.make_shape", shape_heap, 2, 1, 3, 0, 64)
    a = vm.alloc_tensor(storage, 0, shape, "float32")
    norm(x, a)
    product(a, b)
    vm.kill_object(a)
    shape1 = call_packed("vm.builtin.make_shape", shape_heap, 2, 1, 3, 0, 64)
    c = vm.alloc_tensor(storage, 0, shape1, "float32")
    norm(b, c)
        ->
    shape = call_packed("vm.builtin.make_shape", shape_heap, 2, 1, 3, 0, 64)
    a = vm.alloc_tensor(storage, 0, shape, "float32")
    norm(x, a)
    product(a, b)
    norm(b, a)
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import tvm
import tvm_ffi
from tvm import relax

_KILL, _STORAGE, _TENSOR = "relax.vm.kill_object", "relax.vm.alloc_storage", "relax.vm.alloc_tensor"
_VIEWS = ("vm.builtin.make_shape", "vm.builtin.make_prim_value", "vm.builtin.reshape")
_Read = tuple[relax.VarBinding, Collection[tvm.ir.Var]]
"""A binding and the variables that it reads."""


@tvm.ir.transform.module_pass(opt_level=0, name="ShareViews")
class ShareViews:
    """Runs on what has neither branches nor loops, as moec's programs do, behind VMShapeLower."""

    def transform_module(self, module: tvm.IRModule, _context: tvm.transform.PassContext) -> tvm.IRModule:
        function = module["main"]
        bindings = [binding for block in function.body.blocks for binding in block.bindings]
        once, killed = _made_once(bindings, function.body.body)
        block = relax.BindingBlock(_with_kills(once, killed))
        body = relax.SeqExpr([block], function.body.body)
        module["main"] = relax.Function(function.params, body, function.ret_ty, function.is_pure, function.attrs)
        return module


def _made_once(bindings: Sequence[relax.VarBinding], result: relax.Expr) -> tuple[list[_Read], set[tvm.ir.Var]]:
    """The bindings without those that make something again, and without kills; and the variables that were killed."""
    first_of: dict[tvm_ffi.StructuralKey, tvm.ir.Var] = {}
    instead: dict[tvm.ir.Var, tvm.ir.Var] = {}
    killed: set[tvm.ir.Var] = set()
    kept: list[_Read] = []
    inside = [variables(binding.value) for binding in bindings]
    read = {result}
    for binding, variables_of in zip(bindings, inside, strict=True):
        if not isinstance(binding.value, relax.Tuple):
            read.update(variables_of)
    for binding, variables_of in zip(bindings, inside, strict=True):
        if isinstance(binding.value, relax.Tuple) and binding.var not in read:
            continue
        value = binding.value
        if not instead.keys().isdisjoint(variables_of):
            value = _replaced(value, instead)
            variables_of = dict.fromkeys(instead.get(variable, variable) for variable in variables_of).keys()
        if is_call_of(value, _KILL):
            killed.add(value.args[0])
            continue
        if is_call_of(value, _TENSOR, *_VIEWS):
            first = first_of.setdefault(tvm_ffi.StructuralKey(value), binding.var)
            if not first.same_as(binding.var):
                instead[binding.var] = first
                continue
        kept.append((relax.VarBinding(binding.var, value), variables_of))
    return kept, killed


def _with_kills(bindings: Sequence[_Read], killed: set[tvm.ir.Var]) -> list[relax.VarBinding]:
    """Each of the variables is killed behind its last use, if memory is taken after that."""
    backwards: list[relax.VarBinding] = []
    alive, takes_memory = set(killed), False
    for binding, variables_of in reversed(bindings):
        last_used = [variable for variable in variables_of if variable in alive]
        alive.difference_update(last_used)
        if takes_memory:
            backwards += map(_kill, last_used)
        takes_memory = takes_memory or is_call_of(binding.value, _STORAGE)
        backwards.append(binding)
    return backwards[::-1]


def _kill(variable: tvm.ir.Var) -> relax.VarBinding:
    nothing = relax.TupleType([])
    return relax.VarBinding(relax.Var("_", nothing), relax.Call(tvm.ir.Op.get(_KILL), [variable]))


def is_call_of(value: Any, *names: str) -> bool:
    """Whether it calls one of these operators, or functions of the runtime."""
    if not isinstance(value, tvm.ir.Call):
        return False
    called = value.op
    return (called.name if isinstance(called, tvm.ir.Op) else getattr(called, "global_symbol", None)) in names


def variables(value: relax.Expr) -> Collection[tvm.ir.Var]:
    """All that are in an expression, each once, those of sizes included."""
    variables: list[tvm.ir.Var] = []
    tvm_ffi.structural_walk(value, [(tvm.ir.Var, variables.append)])
    return dict.fromkeys(variables).keys()


def renamed(value: relax.Expr, instead: dict[tvm.ir.Var, tvm.ir.Var]) -> relax.Expr:
    """The expression with other variables in the place of some; the expression itself where it has none of these."""
    return _replaced(value, instead) if any(variable in instead for variable in variables(value)) else value


def _replaced(value: relax.Expr, instead: dict[tvm.ir.Var, tvm.ir.Var]) -> relax.Expr:
    return tvm_ffi.structural_map(value, [(tvm.ir.Var, lambda variable: instead.get(variable, variable))])
