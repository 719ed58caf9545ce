"""Keep the work of a fused kernel for one element within a budget.

Fusion substitutes every operator into its reader. An operand that is read in two places, such as x by the two slices
that a rotary embedding swaps, is thereby computed twice; in a chain of such operators the work doubles with each of
them. An operator gets a kernel of its own, which reads stored results, where an element would otherwise take more than
:data:`FUSED_LOADS` loads, or nest more than :data:`FUSED_REPEATS` operators that repeat their own operand.

::

    a = call_tir(slice_left, (x,))
    b = call_tir(slice_right, (x,))
    c = call_tir(concat, (b, a))         # of which an element takes more loads than the budget has
    d = call_tir(relu, (c,))
        ->
    a = call_tir(slice_left, (x,))
    b = call_tir(slice_right, (x,))
    c = call_tir(concat_apart, (b, a))   # never fused
    d = call_tir(relu, (c,))
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Collection
from typing import Any

import tvm
import tvm_ffi
from tvm import relax, s_tir, tirx

from moec.common.budgets import FUSED_LOADS, FUSED_REPEATS, Budget
from moec.targets.tvm.kernels.te_kernels import OPAQUE
from moec.targets.tvm.phases.provenance import bindings_of, fused_groups

REPEATING = ("tirx.tanh",)
"""Functions that TVM replaces by formulas that repeat the operand."""


@dataclasses.dataclass(frozen=True)
class Fused:
    """A module before and after fusion, and the variables of its ``main`` whose kernels may not be fused, each with the
    budget that it would exceed."""

    before: tvm.IRModule
    after: tvm.IRModule
    apart: dict[str, Budget]


@dataclasses.dataclass(frozen=True)
class ElementWork:
    """The work for an element of a value where the operators that make it are fused."""

    loads: int = 1
    repeats: int = 0

    def exceeded(self) -> Budget | None:
        """The budget that the work exceeds; None if it is within all."""
        if not FUSED_LOADS.allows(self.loads):
            return FUSED_LOADS
        return None if FUSED_REPEATS.allows(self.repeats) else FUSED_REPEATS


STORED = ElementWork()
"""An element of a value that a kernel has stored."""


def fused_within(module: tvm.IRModule, fuse: Callable[[tvm.IRModule], tvm.IRModule]) -> Fused:
    """Fuse the module by ``fuse``, within the budgets."""
    apart: dict[str, Budget] = {}
    while True:
        fused = fuse(module)
        beyond = _beyond(module, fused)
        if not beyond:
            return Fused(module, fused, apart)
        apart |= beyond
        module = _kept_apart(module, beyond)


def _beyond(module: tvm.IRModule, fused: tvm.IRModule) -> dict[str, Budget]:
    """The variables of ``main`` whose elements take more than a budget has."""
    bindings = {binding.var: binding for binding in bindings_of(module["main"])}
    kernels: dict[str, _KernelWork] = {}
    excess: dict[str, Budget] = {}
    for group in fused_groups(module, fused):
        work_of: dict[relax.Var, ElementWork] = {}
        for variable in group:
            value = bindings[variable].value
            symbol = _kernel_of(value)
            if symbol is None:
                continue
            if symbol.name_hint not in kernels:
                kernels[symbol.name_hint] = _KernelWork(module[symbol])
            work = kernels[symbol.name_hint].work([work_of.get(argument, STORED) for argument in value.args[1]])
            exceeded = work.exceeded()
            work_of[variable] = STORED if exceeded else work
            if exceeded:
                excess[variable.name] = exceeded
    return excess


class _KernelWork:
    """The work for an element of a kernel's result, by the work for its arguments."""

    def __init__(self, kernel: tirx.PrimFunc) -> None:
        self._arguments = list(kernel.params)
        self._blocks: list[tuple[bool, bool, Counter[Any], list[Any]]] = []
        tvm_ffi.structural_walk(kernel.body, [(s_tir.SBlock, lambda block: self._add(block))])

    def _add(self, block: s_tir.SBlock) -> None:
        if not block.writes:
            return
        loaded: Counter[Any] = Counter()
        called: list[Any] = []
        walked = [
            (tvm.ir.TensorLoad, lambda load: loaded.update([load.source])),
            (tvm.ir.Call, lambda call: called.append(getattr(call.op, "name", None))),
        ]
        tvm_ffi.structural_walk(block.body, walked)
        is_stored = any(variable.iter_type != tirx.IterVar.DataPar for variable in block.iter_vars)
        repeats = any(count > 1 for count in loaded.values()) or any(name in REPEATING for name in called)
        self._blocks.append((is_stored, repeats, loaded, [region.source for region in block.writes]))

    def work(self, arguments: list[ElementWork]) -> ElementWork:
        """``arguments``: the work for an element of each."""
        works: dict[Any, ElementWork] = dict(zip(self._arguments, arguments, strict=False))
        loads, nested = 1, 0
        for is_stored, repeats, loaded, written in self._blocks:
            read = {buffer: works.get(buffer, STORED) for buffer in loaded}
            own = ElementWork(
                max(1, sum(read[buffer].loads * count for buffer, count in loaded.items())),
                max((stored_work.repeats for stored_work in read.values()), default=0) + repeats,
            )
            loads, nested = max(loads, own.loads), max(nested, own.repeats)
            works |= dict.fromkeys(written, STORED if is_stored else own)
        return ElementWork(loads, nested)


def _kernel_of(value: relax.Expr) -> tvm.ir.GlobalVar | None:
    is_call = isinstance(value, relax.Call) and value.op == tvm.ir.Op.get("relax.call_tir")
    return value.args[0] if is_call else None


def _kept_apart(module: tvm.IRModule, apart: Collection[str]) -> tvm.IRModule:
    """The module, in which these variables of ``main`` are made by kernels that are never fused."""
    builder, main = relax.BlockBuilder(module), module["main"]

    def of(binding: relax.Binding) -> relax.Binding:
        if binding.var.name not in apart:
            return binding
        value = binding.value
        symbol = builder.add_func(
            module[value.args[0]].with_attr("op_pattern", OPAQUE), f"{value.args[0].name_hint}_apart"
        )
        called = relax.Call(value.op, [symbol, *value.args[1:]], value.attrs, value.ty_args, ret_ty=value.ty)
        return relax.VarBinding(binding.var, called)

    blocks = [type(block)([of(binding) for binding in block.bindings]) for block in main.body.blocks]
    body = relax.SeqExpr(blocks, main.body.body)
    changed = builder.get()
    changed["main"] = relax.Function(main.params, body, main.ret_ty, main.is_pure, main.attrs)
    return changed
