"""Make one kernel of many that differ in messages or constants only: which message, sizes, offsets, indices and
factors become arguments.

A loop that a model's export has unrolled leaves a slice, a product and a sum for each of its steps, all of which are
the same code for other sizes. Branches that a model repeats differ in a factor, a bound or an epsilon. Code is
generated kernel by kernel, so :data:`FEWEST` of them or more become one, which takes the constants that differ as
arguments. Fewer stay as they are, because known sizes make faster code, and so do integer divisors: dividing by a
constant is much quicker than dividing by an argument.

::

    a = call_tir(slice1, (x,))      # slice1: y[i] = x[i + 1] for i < 7
    b = call_tir(slice2, (x,))      # slice2: y[i] = x[i + 2] for i < 6
    ...
        ->
    a = call_tir(slice1, (x, 7, 1)) # slice1: y[i] = x[i + n1] for i < n0
    b = call_tir(slice1, (x, 6, 2))
    ...

The results are the same bits. Floating-point constants stay where a compiler may compute something else with a known
value than with an argument: arguments of functions such as ``pow``, and the values in :data:`_SIMPLIFIED`.

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
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tvm
import tvm_ffi
from tvm import relax, tirx

from moec.targets.tvm.kernels.te_kernels import checking, without_checks
from moec.targets.tvm.phases.provenance import bindings_of
from moec.targets.tvm.phases.share_views import is_call_of

_KERNEL = "relax.call_tir"
FEWEST = 8
"""Kernels that differ in constants only become one where there are at least so many."""
_DIVISIONS = (tirx.Div, tirx.Mod, tirx.FloorDiv, tirx.FloorMod)
_IF = "prim.if_then_else"
_FLOATS = ("float32", "float64")
"""Types of floating-point constants that become arguments: TVM passes numbers as float64, which holds both exactly."""
_SIMPLIFIED = (0.0, 1.0, 2.0)
"""Magnitudes that compilers have rules for: ``x * 2`` becomes ``x + x``, which is no part of a fused multiply-add."""
Constant = tirx.IntImm | tirx.FloatImm


@dataclasses.dataclass(frozen=True)
class MergedKernels:
    module: tvm.IRModule
    instead: dict[str, str]
    """The symbol of a new kernel by the symbols of those that it stands for."""


def merge_alike(module: tvm.IRModule) -> MergedKernels:
    """Merge kernels that ``main`` calls and that have no schedule yet. Runs when kernels are fused."""
    checking_alike = _merged_by_messages(module)
    merged = _merged_by_constants(checking_alike.module)
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
    builder, called = relax.BlockBuilder(module), dict[str, _AlikeCall]()
    for kernels in groups.values():
        if len(kernels) > 1:
            function = _with_messages([module[symbol] for symbol, _inputs in kernels], kernels[0][1])
            merged = builder.add_func(function, kernels[0][0].name_hint)
            called |= {
                symbol.name_hint: _AlikeCall(merged, [tirx.IntImm("int64", number)])
                for number, (symbol, _) in enumerate(kernels)
            }
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


def _merged_by_constants(module: tvm.IRModule) -> MergedKernels:
    groups: dict[tvm_ffi.StructuralKey, list[_MergeCandidate]] = {}
    for symbol, inputs in _unscheduled(module).items():
        kernel = _MergeCandidate.of(symbol, module[symbol], inputs)
        groups.setdefault(tvm_ffi.StructuralKey(kernel.skeleton), []).append(kernel)
    builder, called = relax.BlockBuilder(module), dict[str, _AlikeCall]()
    for kernels in groups.values():
        if len(kernels) >= FEWEST and any(kernel.values != kernels[0].values for kernel in kernels):
            function, constants_of = _general(kernels)
            symbol = builder.add_func(function, kernels[0].symbol.name_hint)
            called |= {name: _AlikeCall(symbol, constants) for name, constants in constants_of.items()}
    return _replaced(module, builder, called)


def _replaced(module: tvm.IRModule, builder: relax.BlockBuilder, called: Mapping[str, _AlikeCall]) -> MergedKernels:
    """The module with kernels of the builder in the place of those in ``called``."""
    if not called:
        return MergedKernels(module, {})
    merged = builder.get()
    merged["main"] = _calling(module["main"], called)
    for name in called:
        del merged[name]
    return MergedKernels(merged, {name: call.kernel.name_hint for name, call in called.items()})


@dataclasses.dataclass(frozen=True)
class _AlikeCall:
    kernel: tvm.ir.GlobalVar
    constants: list[Constant]
    """The arguments after its inputs."""


@dataclasses.dataclass(frozen=True)
class _MergeCandidate:
    symbol: tvm.ir.GlobalVar
    function: tirx.PrimFunc
    inputs: int
    """The number of parameters in front of the results."""
    skeleton: tirx.PrimFunc
    """The function with 0 for all constants that may become arguments."""
    constants: list[Constant]
    """These constants in the order in which they are met."""
    values: list[int | float]
    """Their values."""

    @classmethod
    def of(cls, symbol: tvm.ir.GlobalVar, function: tirx.PrimFunc, inputs: int) -> _MergeCandidate:
        constants: list[Constant] = []

        def take(constant: Constant) -> tirx.Expr:
            constants.append(constant)
            return type(constant)(str(constant.ty), 0)

        skeleton = _with_constants(function.without_attr("global_symbol"), take)
        return cls(symbol, function, inputs, skeleton, constants, [constant.value for constant in constants])


def _unscheduled(module: tvm.IRModule) -> dict[tvm.ir.GlobalVar, int]:
    """The kernels that have no schedule, in the order in which ``main`` first calls them, and how many inputs they get.
    None that is called in another way than by call_tir."""
    positions: dict[tvm.ir.GlobalVar, int] = {}
    for binding in bindings_of(module["main"]):
        value: Any = getattr(binding, "value", None)
        if is_call_of(value, _KERNEL) and not module[value.args[0]].attrs.get("tirx.is_scheduled"):
            positions.setdefault(value.args[0], len(value.args[1].fields))
    return positions


def _with_constants(function: tirx.PrimFunc, of: Callable[[Constant], tirx.Expr]) -> tirx.PrimFunc:
    """The function with ``of`` each constant that may become an argument in its place, in a fixed order."""

    def integer(literal: tirx.IntImm, _mutator: Any) -> tirx.Expr:
        return of(literal) if str(literal.ty) == "int64" else literal

    arguments = _arguments_of_functions(function)

    def number(literal: tirx.FloatImm, _mutator: Any) -> tirx.Expr:
        if abs(literal.value) in _SIMPLIFIED or not math.isfinite(literal.value):
            return literal
        return literal if literal.__chandle__() in arguments or str(literal.ty) not in _FLOATS else of(literal)

    def division(quotient: Any, mutator: Any) -> tirx.Expr:
        divisor = quotient.b if _is_quicker_divisor(quotient.b) else mutator.mutate(quotient.b)
        return type(quotient)(mutator.mutate(quotient.a), divisor)

    rules = [(tirx.IntImm, integer), (tirx.FloatImm, number), (_DIVISIONS, division)]
    return tvm_ffi.structural_mutate(function, rules)


def _arguments_of_functions(function: tirx.PrimFunc) -> set[int]:
    """The addresses of floating-point constants that are arguments of functions such as ``pow``."""
    addresses: set[int] = set()

    def note(called: tvm.ir.Call) -> None:
        if getattr(called.op, "name", None) != _IF:
            addresses.update(argument.__chandle__() for argument in called.args if isinstance(argument, tirx.FloatImm))

    tvm_ffi.structural_walk(function.body, [(tvm.ir.Call, note)])
    return addresses


def _is_quicker_divisor(divisor: tirx.Expr) -> bool:
    """Whether dividing by a divisor is quicker where it is known: an integer, or a power of two, whose reciprocal is
    exact."""
    if isinstance(divisor, tirx.FloatImm):
        return abs(math.frexp(divisor.value)[0]) == 0.5
    return isinstance(divisor, tirx.IntImm)


def _general(kernels: Sequence[_MergeCandidate]) -> tuple[tirx.PrimFunc, dict[str, list[Constant]]]:
    """The function that computes what each of ``kernels`` does where it is given the constants of its symbol."""
    taken: dict[tuple[Any, ...], tuple[tirx.Var, tuple[Constant, ...]]] = {}
    """The arguments and what each kernel gets for them, by type, and by how far integers are from what the first one
    gets, or by the numbers themselves if they are floating-point."""

    def term(column: tuple[Constant, ...]) -> tirx.Expr | None:
        """A constant by the arguments; None where it is the same in all kernels. Integers that keep their distance,
        such as a size and the last index, come from one argument."""
        dtype, values = str(column[0].ty), tuple(integer.value for integer in column)
        if len(set(values)) == 1:
            return None
        key = tuple(value - values[0] for value in values) if dtype == "int64" else values
        variable, first = taken.setdefault((dtype, *key), (tirx.Var(f"n{len(taken)}", dtype), column))
        offset = values[0] - first[0].value
        return variable + offset if offset else variable

    terms = iter([term(column) for column in zip(*(kernel.constants for kernel in kernels), strict=True)])

    def of(literal: Constant) -> tirx.Expr:
        instead = next(terms)
        return literal if instead is None else instead

    first = kernels[0]
    function = _with_constants(first.function, of)
    before, after = function.params[: first.inputs], function.params[first.inputs :]
    variables = [variable for variable, _column in taken.values()]
    general = tirx.PrimFunc([*before, *variables, *after], function.body, function.ret_type, function.attrs)
    rows = zip(*(column for _variable, column in taken.values()), strict=True)
    return general, {kernel.symbol.name_hint: list(row) for kernel, row in zip(kernels, rows, strict=True)}


def _calling(main: relax.Function, called: Mapping[str, _AlikeCall]) -> relax.Function:
    """``main``, which calls these kernels with constants behind their inputs."""

    def changed(binding: relax.Binding) -> relax.Binding:
        value: Any = getattr(binding, "value", None)
        call = called.get(value.args[0].name_hint) if is_call_of(value, _KERNEL) else None
        if call is None:
            return binding
        inputs = relax.Tuple([*value.args[1].fields, *call.constants])
        arguments = [call.kernel, inputs, *value.args[2:]]
        return relax.VarBinding(
            binding.var, relax.Call(value.op, arguments, value.attrs, value.ty_args, ret_ty=value.ty)
        )

    blocks = [type(block)([changed(binding) for binding in block.bindings]) for block in main.body.blocks]
    body = relax.SeqExpr(blocks, main.body.body)
    return relax.Function(main.params, body, main.ret_ty, main.is_pure, main.attrs)
