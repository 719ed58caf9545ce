"""Provenance of kernels: the nodes of the ONNX graph that a kernel computes, also after fusion.

Fusion renames values and shares one kernel among equal groups, so names do not identify the nodes. But fusion keeps the
computation of each group: a replay of every fused function on its arguments meets the same kernels with the same
arguments as before fusion, and for these the node is known.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import onnx_ir as ir
import tvm
import tvm_ffi
from tvm import relax

Key = tuple[Any, ...]


def nodes_by_call(
    before: tvm.IRModule, after: tvm.IRModule, node_of_variable: Mapping[str, ir.Node]
) -> dict[relax.Var, list[ir.Node]]:
    """Nodes by the variable of ``after`` that a call of a kernel is bound to, in the order of execution.

    ``before`` and ``after``: the module on both sides of FuseOps. ``node_of_variable``: the node that made a variable
    of ``before``, by the variable's name.
    """
    return _Replay(before, after, node_of_variable).run()


def nodes_of_kernels(
    module: tvm.IRModule,
    by_call: Mapping[relax.Var, Sequence[ir.Node]],
    computed: Mapping[relax.Var, Sequence[relax.Var]] = {},
) -> dict[str, list[ir.Node]]:
    """Nodes by the symbol of a kernel that ``main`` calls. ``by_call``: by the variables of calls; ``computed``: by the
    variable of a call those of the calls that it stands for, where these are others."""
    nodes: dict[str, list[ir.Node]] = {}
    for binding in bindings_of(module["main"]):
        symbol = _kernel_symbol(binding.value) or _fused_symbol(binding.value)
        if symbol is not None:
            calls = computed.get(binding.var, [binding.var])
            nodes.setdefault(symbol, []).extend(node for call in calls for node in by_call.get(call, ()))
    return {symbol: list(dict.fromkeys(several)) for symbol, several in nodes.items() if several}


def fused_groups(before: tvm.IRModule, after: tvm.IRModule) -> list[list[relax.Var]]:
    """For each call of a fused function in ``after`` the variables of ``before`` that it computes, in their order."""
    replay = _Replay(before, after, {})
    replay.run()
    return replay.groups


def calls_by_kernel(module: tvm.IRModule) -> Counter[str]:
    """Number of calls of each kernel in ``main``, by the kernel's symbol."""
    symbols = (_kernel_symbol(binding.value) for binding in bindings_of(module["main"]))
    return Counter(symbol for symbol in symbols if symbol is not None)


class _Replay:
    def __init__(self, before: tvm.IRModule, after: tvm.IRModule, node_of_variable: Mapping[str, ir.Node]) -> None:
        self._after = after
        self._node_of_variable = node_of_variable
        self._originals: dict[Key, list[relax.Var]] = {}
        self._nodes: dict[relax.Var, list[ir.Node]] = {}
        self.groups: list[list[relax.Var]] = []
        for binding in bindings_of(before["main"]):
            self._originals.setdefault(_key(binding, {}), []).append(binding.var)

    def run(self) -> dict[relax.Var, list[ir.Node]]:
        self._replay(self._after["main"], {}, call=None)
        return self._nodes

    def _replay(self, function: relax.Function, values: dict[relax.Var, Any], call: relax.Var | None) -> Any:
        """Follow a function's bindings to the original of its result. ``values``: the original of each variable.

        ``call``: the variable that a call of the function is bound to; None for ``main``, where every call is one of a
        kernel.
        """
        for binding in bindings_of(function):
            callee = self._fused_callee(binding.value)
            if callee is not None:
                arguments = [_original(argument, values) for argument in binding.value.args]
                body = self._after[callee]
                values_of = dict(zip(body.params, arguments, strict=True))
                self.groups.append([])
                values[binding.var] = self._replay(body, values_of, binding.var)
                continue
            original = self._next_original(_key(binding, values))
            values[binding.var] = original
            if call is not None and original is not None:
                self.groups[-1].append(original)
            symbol = _kernel_symbol(binding.value)
            if symbol is not None and original is not None and original.name in self._node_of_variable:
                self._nodes.setdefault(binding.var if call is None else call, []).append(
                    self._node_of_variable[original.name]
                )
        return _original(function.body.body, values)

    def _next_original(self, key: Key) -> relax.Var | None:
        """Next unused original of a key. Bindings that differ in their results' shapes alone share a key, in order."""
        originals = self._originals.get(key, [None])
        return originals.pop(0) if len(originals) > 1 else originals[0]

    def _fused_callee(self, value: relax.Expr) -> tvm.ir.GlobalVar | None:
        is_call = isinstance(value, relax.Call) and isinstance(value.op, tvm.ir.GlobalVar)
        return value.op if is_call and isinstance(self._after[value.op], relax.Function) else None


def bindings_of(function: relax.Function) -> Iterator[relax.Binding]:
    for block in function.body.blocks:
        yield from block.bindings


def _kernel_symbol(value: relax.Expr) -> str | None:
    if isinstance(value, relax.Call) and value.args and isinstance(value.args[0], tvm.ir.GlobalVar):
        return value.args[0].name_hint
    return None


def _fused_symbol(value: relax.Expr) -> str | None:
    return value.op.name_hint if isinstance(value, relax.Call) and isinstance(value.op, tvm.ir.GlobalVar) else None


def _key(binding: relax.Binding, values: Mapping[relax.Var, Any]) -> Key:
    """Key of a binding: its operator and kernel, and the originals of its operands."""
    value = binding.value
    if isinstance(value, relax.TupleGetItem):
        return "item", _original(value.tuple_value, values), value.index
    if isinstance(value, relax.Call):
        return _original(value.op, values), _kernel_symbol(value), *(_original(part, values) for part in value.args)
    return "value", _original(value, values)


def _original(part: relax.Expr, values: Mapping[relax.Var, Any]) -> Any:
    if isinstance(part, relax.Var):
        return values.get(part, part)
    if isinstance(part, relax.Tuple):
        return tuple(_original(field, values) for field in part.fields)
    if isinstance(part, tvm.ir.GenericConst):  # whose text does not show its numbers
        return tvm_ffi.StructuralKey(part)
    if isinstance(part, tvm.ir.Op | tvm.ir.GlobalVar):  # the text of an expression is slow to make
        return part.name if isinstance(part, tvm.ir.Op) else part.name_hint
    return str(part)
