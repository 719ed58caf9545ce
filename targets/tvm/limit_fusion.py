"""Keep what a fused kernel computes for one element within a budget.

Fusion writes every operator into the one that reads it. What is read in two places, such as x by the two slices that a
rotation swaps, is thereby written, and computed, twice; in a chain of such operators that doubles with each of them.
Where an element would take more than :data:`FUSED_LOADS` loads, the operator gets a kernel of its own, which reads what
the kernels before it have stored.

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

from moec.common.budgets import FUSED_LOADS, Budget
from moec.targets.tvm.provenance import bindings_of, fused_groups
from moec.targets.tvm.te_kernels import OPAQUE


@dataclasses.dataclass(frozen=True)
class Fused:
    """A module on both sides of fusion, and the variables of its ``main`` whose kernels may not be fused."""

    before: tvm.IRModule
    after: tvm.IRModule
    apart: list[str]


def fused_within(module: tvm.IRModule, fuse: Callable[[tvm.IRModule], tvm.IRModule]) -> Fused:
    """Fuse the module by ``fuse``, within the budget."""
    apart: list[str] = []
    while True:
        fused = fuse(module)
        beyond = _beyond(module, fused, FUSED_LOADS)
        if not beyond:
            return Fused(module, fused, apart)
        apart += beyond
        module = _kept_apart(module, beyond)


def _beyond(module: tvm.IRModule, fused: tvm.IRModule, budget: Budget) -> dict[str, None]:
    """The variables of ``main`` whose elements take more loads than the budget has."""
    bindings = {binding.var: binding for binding in bindings_of(module["main"])}
    kernels: dict[str, _Loads] = {}
    found: dict[str, None] = {}
    for group in fused_groups(module, fused):
        loads: dict[relax.Var, int] = {}
        for variable in group:
            value = bindings[variable].value
            symbol = _kernel_of(value)
            if symbol is None:
                continue
            if symbol.name_hint not in kernels:
                kernels[symbol.name_hint] = _Loads(module[symbol])
            needed = kernels[symbol.name_hint].of_results([loads.get(argument, 1) for argument in value.args[1]])
            loads[variable] = needed
            if not budget.allows(needed):
                loads[variable], found[variable.name] = 1, None
    return found


class _Loads:
    """The number of loads for an element of a kernel's result, by the numbers for its arguments."""

    def __init__(self, kernel: tirx.PrimFunc) -> None:
        self._arguments = list(kernel.params)
        self._blocks: list[tuple[bool, Counter[Any], list[Any]]] = []
        tvm_ffi.structural_walk(kernel.body, [(s_tir.SBlock, lambda block: self._add(block))])

    def _add(self, block: s_tir.SBlock) -> None:
        if not block.writes:
            return
        loaded: Counter[Any] = Counter()
        tvm_ffi.structural_walk(block.body, [(tvm.ir.TensorLoad, lambda load: loaded.update([load.source]))])
        is_stored = any(variable.iter_type != tirx.IterVar.DataPar for variable in block.iter_vars)
        self._blocks.append((is_stored, loaded, [region.source for region in block.writes]))

    def of_results(self, arguments: list[int]) -> int:
        """``arguments``: the loads of an element of each argument."""
        loads: dict[Any, int] = dict(zip(self._arguments, arguments, strict=False))
        most = 1
        for is_stored, loaded, written in self._blocks:
            needed = sum(loads.get(buffer, 1) * count for buffer, count in loaded.items())
            most = max(most, needed)
            loads |= dict.fromkeys(written, 1 if is_stored else max(1, needed))
        return most


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
