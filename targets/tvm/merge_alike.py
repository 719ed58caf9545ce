"""Make one kernel of many that differ in messages or integers only: which message, sizes, offsets and indices become
arguments.

A loop that a model's export has unrolled leaves a slice, a product and a sum for each of its steps, all of which are
the same code for other sizes. Code is generated kernel by kernel, so :data:`FEWEST` of them or more become one, which
takes the integers that differ as arguments. Fewer stay as they are, for known sizes make faster code, and so do
divisors: dividing by a constant is much quicker than dividing by an argument.

::

    a = call_tir(slice1, (x,))      # slice1: y[i] = x[i + 1] for i < 7
    b = call_tir(slice2, (x,))      # slice2: y[i] = x[i + 2] for i < 6
    ...
        ->
    a = call_tir(slice1, (x, 7, 1)) # slice1: y[i] = x[i + n1] for i < n0
    b = call_tir(slice1, (x, 6, 2))
    ...

What a kernel checks of sizes names its node, so that equal kernels of two layers would differ. Two of these or more
become one, which takes the number of its caller's message::

    a = call_tir(gather1, (x,))     # gather1: assert T > 0, "node 'a' ..."
    b = call_tir(gather2, (y,))     # gather2: assert T > 0, "node 'b' ..."
        ->
    a = call_tir(gather1, (x, 0))   # gather1: assert T > 0 or message != 0, "node 'a' ..."
    b = call_tir(gather1, (y, 1))   #          assert T > 0 or message != 1, "node 'b' ..."
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tvm
import tvm_ffi
from tvm import relax, tirx

from moec.targets.tvm.provenance import bindings_of
from moec.targets.tvm.share_views import is_call_of
from moec.targets.tvm.te_kernels import checking, without_checks

_KERNEL = "relax.call_tir"
FEWEST = 8
"""Kernels that differ in integers only become one where there are at least so many."""
_DIVISIONS = (tirx.Div, tirx.Mod, tirx.FloorDiv, tirx.FloorMod)


@dataclasses.dataclass(frozen=True)
class MergedKernels:
    module: tvm.IRModule
    instead: dict[str, str]
    """The symbol of a new kernel by the symbols of those that it stands for."""


def merge_alike(module: tvm.IRModule) -> MergedKernels:
    """Merge kernels that ``main`` calls and that have no schedule yet. Runs when kernels are fused."""
    checking_alike = _merged_by_messages(module)
    merged = _merged_by_integers(checking_alike.module)
    instead = {old: merged.instead.get(new, new) for old, new in checking_alike.instead.items()}
    return MergedKernels(merged.module, merged.instead | instead)


def _merged_by_messages(module: tvm.IRModule) -> MergedKernels:
    groups: dict[tvm_ffi.StructuralKey, list[tuple[tvm.ir.GlobalVar, int]]] = {}
    for symbol, inputs in _unscheduled(module).items():
        body, assertions = without_checks(module[symbol])
        if assertions:
            silent = [tirx.AssertStmt(assertion.condition, assertion.error_kind, []) for assertion in assertions]
            key = tvm_ffi.StructuralKey(checking(body, silent).without_attr("global_symbol"))
            groups.setdefault(key, []).append((symbol, inputs))
    builder, called = relax.BlockBuilder(module), dict[str, _Call]()
    for kernels in groups.values():
        if len(kernels) > 1:
            function = _with_messages([module[symbol] for symbol, _inputs in kernels], kernels[0][1])
            merged = builder.add_func(function, kernels[0][0].name_hint)
            called |= {symbol.name_hint: _Call(merged, [number]) for number, (symbol, _) in enumerate(kernels)}
    return _replaced(module, builder, called)


def _with_messages(kernels: Sequence[tirx.PrimFunc], inputs: int) -> tirx.PrimFunc:
    """The first of the kernels, which takes whose messages it has behind its inputs."""
    message = tirx.Var("message", "int64")
    body, assertions = without_checks(kernels[0])
    others = [without_checks(kernel)[1] for kernel in kernels]
    checks = [
        tirx.AssertStmt(tirx.any(first.condition, message != number), first.error_kind, alike[position].message_parts)
        for position, first in enumerate(assertions)
        for number, alike in enumerate(others)
    ]
    parameters = [*body.params[:inputs], message, *body.params[inputs:]]
    return checking(tirx.PrimFunc(parameters, body.body, body.ret_type, body.attrs), checks)


def _merged_by_integers(module: tvm.IRModule) -> MergedKernels:
    groups: dict[tvm_ffi.StructuralKey, list[_MergeCandidate]] = {}
    for symbol, inputs in _unscheduled(module).items():
        kernel = _MergeCandidate.of(symbol, module[symbol], inputs)
        groups.setdefault(tvm_ffi.StructuralKey(kernel.skeleton), []).append(kernel)
    builder, called = relax.BlockBuilder(module), dict[str, _Call]()
    for kernels in groups.values():
        if len(kernels) >= FEWEST and any(kernel.integers != kernels[0].integers for kernel in kernels):
            function, integers_of = _general(kernels)
            symbol = builder.add_func(function, kernels[0].symbol.name_hint)
            called |= {name: _Call(symbol, integers) for name, integers in integers_of.items()}
    return _replaced(module, builder, called)


def _replaced(module: tvm.IRModule, builder: relax.BlockBuilder, called: Mapping[str, _Call]) -> MergedKernels:
    """The module with kernels of the builder in the place of those in ``called``."""
    if not called:
        return MergedKernels(module, {})
    merged = builder.get()
    merged["main"] = _calling(module["main"], called)
    for name in called:
        del merged[name]
    return MergedKernels(merged, {name: call.kernel.name_hint for name, call in called.items()})


@dataclasses.dataclass(frozen=True)
class _Call:
    kernel: tvm.ir.GlobalVar
    integers: list[int]
    """The arguments after its inputs."""


@dataclasses.dataclass(frozen=True)
class _MergeCandidate:
    symbol: tvm.ir.GlobalVar
    function: tirx.PrimFunc
    inputs: int
    """The number of parameters in front of the results."""
    skeleton: tirx.PrimFunc
    """The function with 0 for all integers that may become arguments."""
    integers: list[int]
    """These integers in the order in which they are met."""

    @classmethod
    def of(cls, symbol: tvm.ir.GlobalVar, function: tirx.PrimFunc, inputs: int) -> _MergeCandidate:
        integers: list[int] = []
        zero = tirx.IntImm("int64", 0)

        def take(integer: tirx.IntImm) -> tirx.Expr:
            integers.append(int(integer))
            return zero

        skeleton = _with_integers(function.without_attr("global_symbol"), take)
        return cls(symbol, function, inputs, skeleton, integers)


def _unscheduled(module: tvm.IRModule) -> dict[tvm.ir.GlobalVar, int]:
    """The kernels that have no schedule, in the order in which ``main`` first calls them, and how many inputs they get.
    None that is called in another way than by call_tir."""
    positions: dict[tvm.ir.GlobalVar, int] = {}
    for binding in bindings_of(module["main"]):
        value: Any = getattr(binding, "value", None)
        if is_call_of(value, _KERNEL) and not module[value.args[0]].attrs.get("tirx.is_scheduled"):
            positions.setdefault(value.args[0], len(value.args[1].fields))
    return positions


def _with_integers(function: tirx.PrimFunc, of: Callable[[tirx.IntImm], tirx.Expr]) -> tirx.PrimFunc:
    """The function with ``of`` each integer that may become an argument in its place, in a fixed order."""

    def integer(literal: tirx.IntImm, _mutator: Any) -> tirx.Expr:
        return of(literal) if str(literal.ty) == "int64" else literal

    def division(quotient: Any, mutator: Any) -> tirx.Expr:
        return type(quotient)(mutator.mutate(quotient.a), quotient.b)

    return tvm_ffi.structural_mutate(function, [(tirx.IntImm, integer), (_DIVISIONS, division)])


def _general(kernels: Sequence[_MergeCandidate]) -> tuple[tirx.PrimFunc, dict[str, list[int]]]:
    """The function that computes what each of ``kernels`` does where it is given the integers of its symbol."""
    taken: dict[tuple[int, ...], tuple[tirx.Var, tuple[int, ...]]] = {}
    """The arguments and what each kernel gets for them, by how far that is from what the first one gets."""

    def term(column: tuple[int, ...]) -> tirx.Expr | None:
        """An integer by the arguments; None where it is the same in all kernels. Integers that keep their distance,
        such as a size and the last index, come from one argument."""
        distances = tuple(value - column[0] for value in column)
        if not any(distances):
            return None
        variable, first = taken.setdefault(distances, (tirx.Var(f"n{len(taken)}", "int64"), column))
        offset = column[0] - first[0]
        return variable + offset if offset else variable

    terms = iter([term(column) for column in zip(*(kernel.integers for kernel in kernels), strict=True)])

    def of(literal: tirx.IntImm) -> tirx.Expr:
        instead = next(terms)
        return literal if instead is None else instead

    first = kernels[0]
    function = _with_integers(first.function, of)
    before, after = function.params[: first.inputs], function.params[first.inputs :]
    variables = [variable for variable, _given in taken.values()]
    general = tirx.PrimFunc([*before, *variables, *after], function.body, function.ret_type, function.attrs)
    rows = zip(*(column for _variable, column in taken.values()), strict=True)
    return general, {kernel.symbol.name_hint: list(row) for kernel, row in zip(kernels, rows, strict=True)}


def _calling(main: relax.Function, called: Mapping[str, _Call]) -> relax.Function:
    """``main``, which calls these kernels with integers behind their inputs."""

    def changed(binding: relax.Binding) -> relax.Binding:
        value: Any = getattr(binding, "value", None)
        call = called.get(value.args[0].name_hint) if is_call_of(value, _KERNEL) else None
        if call is None:
            return binding
        inputs = relax.Tuple([*value.args[1].fields, *(tirx.IntImm("int64", integer) for integer in call.integers)])
        arguments = [call.kernel, inputs, *value.args[2:]]
        return relax.VarBinding(
            binding.var, relax.Call(value.op, arguments, value.attrs, value.ty_args, ret_ty=value.ty)
        )

    blocks = [type(block)([changed(binding) for binding in block.bindings]) for block in main.body.blocks]
    body = relax.SeqExpr(blocks, main.body.body)
    return relax.Function(main.params, body, main.ret_ty, main.is_pure, main.attrs)
