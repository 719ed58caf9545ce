"""Printed expressions of TIR: plain literals, operators with the fewest parentheses, slices for vectors."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
import tvm
from tvm import tirx

from moec.targets.tvm.text.names import VariableNames

_ATOM, _NEGATED = 12, 11
_BINARY: dict[type, tuple[str, int]] = {
    tirx.Or: ("or", 1),
    tirx.And: ("and", 2),
    tirx.EQ: ("==", 4),
    tirx.NE: ("!=", 4),
    tirx.LT: ("<", 4),
    tirx.LE: ("<=", 4),
    tirx.GT: (">", 4),
    tirx.GE: (">=", 4),
    tvm.ir.prim.BitwiseOr: ("|", 5),
    tvm.ir.prim.BitwiseXor: ("^", 6),
    tvm.ir.prim.BitwiseAnd: ("&", 7),
    tvm.ir.prim.LShift: ("<<", 8),
    tvm.ir.prim.RShift: (">>", 8),
    tirx.Add: ("+", 9),
    tirx.Sub: ("-", 9),
    tirx.Mul: ("*", 10),
    tirx.FloorDiv: ("//", 10),
    tirx.FloorMod: ("%", 10),
}
"""Operator and precedence in Python."""
_COMPARISONS = ("==", "!=", "<", "<=", ">", ">=")
_FUNCTIONS: dict[type, str] = {tirx.Min: "min", tirx.Max: "max", tirx.Mod: "truncmod"}
_INTRINSICS = ("tirx.call_llvm_intrin", "tirx.call_llvm_pure_intrin")
_TYPE_FIRST, _TYPE_LAST = 1, 2
"""Places of the result's type among the arguments of a call in TVMScript."""


class Expressions:
    """Text of expressions.

    ``name_value``: a function that defines a variable before the statement that contains the expression."""

    def __init__(self, names: VariableNames, name_value: Callable[[tvm.ir.Var, tvm.ir.Expr], None]) -> None:
        self._names, self._name_value = names, name_value
        self._conditional = 0

    def text(self, value: Any) -> str:
        return self._printed(value)[0]

    def in_place(self, value: Any) -> str:
        """The text of a value that is computed at its place alone, so that no variable is defined before it."""
        self._conditional += 1
        text = self.text(value)
        self._conditional -= 1
        return text

    def access(self, buffer: tvm.ir.Var, indices: Sequence[Any]) -> str:
        """An element or a slice of a buffer."""
        return f"{self._names(buffer)}[{', '.join(map(self._index, indices)) or '()'}]"

    def tupled(self, values: Sequence[Any]) -> str:
        texts = [self.text(value) for value in values]
        return f"({texts[0]},)" if len(texts) == 1 else f"({', '.join(texts)})"

    def _printed(self, value: Any) -> tuple[str, int]:
        """The text of a value, and the precedence of its outermost operator."""
        kind = type(value)
        if kind is tvm.ir.Var:
            return self._names(value), _ATOM
        if kind in (tirx.IntImm, tirx.FloatImm):
            return _literal(value)
        if kind in _BINARY:
            return self._binary(value, *_BINARY[kind])
        if kind is tirx.Div:
            whole = str(value.ty.dtype).startswith(("int", "uint"))
            return self._called("truncdiv", [value.a, value.b]) if whole else self._binary(value, "/", 10)
        if kind in _FUNCTIONS:
            return self._called(_FUNCTIONS[kind], [value.a, value.b])
        if kind is tvm.ir.TensorLoad:
            return self.access(value.source, value.indices), _ATOM
        method = self._METHODS.get(kind)
        return method(self, value) if method is not None else (_other(value), _ATOM)

    def _binary(self, value: Any, operator: str, precedence: int) -> tuple[str, int]:
        skips = type(value) in (tirx.And, tirx.Or)
        left = self._operand(value.a, precedence + (operator in _COMPARISONS))
        self._conditional += skips
        right = self._operand(value.b, precedence + (not skips))
        self._conditional -= skips
        return f"{left} {operator} {right}", precedence

    def _operand(self, value: Any, least: int) -> str:
        text, precedence = self._printed(value)
        return text if precedence >= least else f"({text})"

    def _called(self, function: str, arguments: Sequence[Any]) -> tuple[str, int]:
        return f"T.{function}({', '.join(map(self.text, arguments))})", _ATOM

    def _cast(self, value: Any) -> tuple[str, int]:
        kind = str(value.ty.dtype)
        if kind == "int64" and str(value.value.ty.dtype) == "int32":
            return self._printed(value.value)
        return f"T.cast({self.text(value.value)}, {quoted(kind)})", _ATOM

    def _not(self, value: Any) -> tuple[str, int]:
        return f"not {self._operand(value.a, 3)}", 3

    def _inverted(self, value: Any) -> tuple[str, int]:
        return f"~{self._operand(value.a, _NEGATED)}", _NEGATED

    def _select(self, value: Any) -> tuple[str, int]:
        return self._called("Select", [value.condition, value.true_value, value.false_value])

    def _string(self, value: Any) -> tuple[str, int]:
        return quoted(value.value), _ATOM

    def _ramp(self, value: Any) -> tuple[str, int]:
        return self._called("Ramp", [value.base, value.stride, value.lanes])

    def _broadcast(self, value: Any) -> tuple[str, int]:
        return self._called("Broadcast", [value.value, value.lanes])

    def _shuffle(self, value: Any) -> tuple[str, int]:
        vectors = ", ".join(map(self.text, value.vectors))
        return f"T.Shuffle([{vectors}], {_lanes([int(index) for index in value.indices])})", _ATOM

    def _let(self, value: Any) -> tuple[str, int]:
        if not self._conditional:
            self._name_value(value.var, value.value)
            return self._printed(value.body)
        where = self.text(value.value)
        return f"T.Let({self.text(value.body)}, where={{{self._names(value.var)}: {where}}})", _ATOM

    def _call(self, call: tvm.ir.Call) -> tuple[str, int]:
        arguments = self._arguments(call)
        if not isinstance(call.op, tvm.ir.Op):
            return f"{getattr(call.op, 'name_hint', call.op)}({', '.join(arguments)})", _ATOM
        place = call.op.get_attr("TScriptDtypePrintLocation")
        kind = quoted(str(getattr(call.ty, "dtype", "")) or "void")
        if place == _TYPE_FIRST:
            arguments.insert(0, kind)
        elif place == _TYPE_LAST:
            arguments.append(kind)
        name = call.op.get_attr("TScriptPrinterName") or call.op.name.partition(".")[2]
        return f"T.{name}({', '.join(arguments)})", _ATOM

    def _arguments(self, call: tvm.ir.Call) -> list[str]:
        """The arguments' texts. Those of ``if_then_else`` after the first are evaluated on a condition."""
        conditional = getattr(call.op, "name", "") == "prim.if_then_else"
        intrinsic = getattr(call.op, "name", "") in _INTRINSICS
        texts = [quoted(_intrinsic_name(value)) if intrinsic else self.text(value) for value in call.args[:1]]
        self._conditional += conditional
        texts += [self.text(value) for value in call.args[1:]]
        self._conditional -= conditional
        return texts

    def _index(self, index: Any) -> str:
        """An index of a buffer; that of a vector is a slice."""
        if not isinstance(index, tirx.Ramp) or not is_number(index.stride, 1):
            return self.text(index)
        begin, lanes = self.text(index.base), self.text(index.lanes)
        if isinstance(index.base, tirx.IntImm) and isinstance(index.lanes, tirx.IntImm):
            return f"{begin}:{int(index.base) + int(index.lanes)}"
        return f"{begin}:{lanes}" if is_number(index.base, 0) else f"{begin}:{begin} + {lanes}"

    _METHODS: ClassVar[dict[type, Callable[[Any, Any], tuple[str, int]]]] = {
        tirx.Cast: _cast,
        tirx.Not: _not,
        tvm.ir.prim.BitwiseNot: _inverted,
        tirx.Select: _select,
        tvm.ir.StringImm: _string,
        tirx.Ramp: _ramp,
        tirx.Broadcast: _broadcast,
        tirx.Shuffle: _shuffle,
        tirx.Let: _let,
        tvm.ir.Call: _call,
    }


@functools.cache
def _names_of_intrinsics() -> Callable[[int], str]:
    return tvm.get_global_func("target.llvm_get_intrinsic_name")


def _intrinsic_name(number: tirx.IntImm) -> str:
    return _names_of_intrinsics()(int(number))


def quoted(text: str) -> str:
    """The text as a string literal between double quotes."""
    return json.dumps(text, ensure_ascii=False)


def is_number(value: Any, number: int) -> bool:
    """Whether an expression is this integer."""
    return isinstance(value, tirx.IntImm) and value.value == number


def _literal(value: tirx.IntImm | tirx.FloatImm) -> tuple[str, int]:
    number, kind = value.value, str(value.ty.dtype)
    if kind == "bool":
        return str(bool(number)), _ATOM
    if isinstance(value, tirx.FloatImm):
        shortest = number if kind == "float64" else np.float32(number)
        text = str(shortest) if math.isfinite(number) else f'float("{number}")'
    else:
        text = str(number)
    return text, _ATOM


def _lanes(indices: list[int]) -> str:
    """The numbers of lanes, as a range where they are in steps."""
    step = indices[1] - indices[0] if len(indices) > 2 else 0
    if step > 0 and indices == list(range(indices[0], indices[-1] + 1, step)):
        end = indices[-1] + step
        return f"range({indices[0]}, {end}, {step})" if step > 1 else f"range({indices[0]}, {end})"
    return str(indices)


def _other(value: Any) -> str:
    """TVM's own text of what has no printer here, in one line."""
    text = value.script() if hasattr(value, "script") else str(value)
    return " ".join(line.strip() for line in text.splitlines() if not line.startswith("#"))
