"""The loops and buffers of a kernel in TIR: what each loop repeats, reads, writes and computes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable
from typing import Any

import tvm
import tvm_ffi
from tvm import DataType, tirx
from tvm.tirx.stmt import ForKind, ScopeIdDefStmt

from moec.common.kernel_structure import KernelBuffer, LoopKind, LoopLevel
from moec.targets.tvm.sizes.c_expressions import in_c
from moec.targets.tvm.text.statement_lines import number_of

_PARAMETER = "parameter"
_KINDS: dict[ForKind, LoopKind] = {
    ForKind.SERIAL: "serial",
    ForKind.PARALLEL: "parallel",
    ForKind.VECTORIZED: "vectorized",
    ForKind.UNROLLED: "unrolled",
    ForKind.THREAD_BINDING: "gpu thread",
}
_THREADS = "thread_extent"
"""The key of attributes that bind threads."""
_OPERATIONS = (tirx.Add, tirx.Sub, tirx.Mul, tirx.Div, tirx.FloorDiv, tirx.FloorMod, tirx.Mod, tirx.Min, tirx.Max)
_ADDRESS = "tirx.address_of"
_FREE = (_ADDRESS, "tirx.reinterpret", "prim.if_then_else", "tirx.likely")
"""Calls that compute nothing themselves."""
_FLOATS = ("float", "bfloat")


@dataclasses.dataclass(frozen=True)
class _Counts:
    """Bytes and operations: whole numbers, or expressions of sizes."""

    read: Any = 0
    written: Any = 0
    operations: Any = 0

    def __add__(self, other: _Counts) -> _Counts:
        return self._with(other, lambda left, right: left + right)

    def or_else(self, other: _Counts) -> _Counts:
        return self._with(other, _greater)

    def times(self, extent: Any) -> _Counts:
        return self._with(_Counts(extent, extent, extent), lambda count, times: count * times)

    def _with(self, other: _Counts, join: Callable[[Any, Any], Any]) -> _Counts:
        joined = {name: join(mine, getattr(other, name)) for name, mine in vars(self).items()}
        return _Counts(**joined)


def _greater(left: Any, right: Any) -> Any:
    if isinstance(left, int) and isinstance(right, int):
        return max(left, right)
    left, right = (tirx.const(value, "int64") if isinstance(value, int) else value for value in (left, right))
    return left if tvm_ffi.structural_equal(left, right) else tirx.max(left, right)


class LoopNest:
    """The loops of a function that has no blocks, in the order of its text, and its buffers. The ``line`` of a loop is
    the number of its statement."""

    def __init__(self, function: tirx.PrimFunc) -> None:
        self.loops: list[LoopLevel] = []
        self.buffers: list[KernelBuffer] = []
        self._scopes: dict[Any, str] = {}
        for parameter in function.params:
            if isinstance(parameter.ty, tirx.BufferType):
                self._add_buffer(parameter, _PARAMETER)
        self._count(function.body, -1)

    def _count(self, statement: Any, inside: int) -> _Counts:
        """The counts of a statement, whose loops are appended."""
        if isinstance(statement, tirx.SeqStmt):
            return self._sequence(list(statement.seq), inside)
        if isinstance(statement, tirx.For):
            loop = (statement.loop_var.name, _KINDS[ForKind(statement.kind)], statement.extent)
            return self._looped(statement, *loop, inside, lambda own: self._count(statement.body, own))
        if isinstance(statement, tirx.IfThenElse):
            counts = self._values([statement.condition])
            then = self._count(statement.then_case, inside)
            other = _Counts() if statement.else_case is None else self._count(statement.else_case, inside)
            return counts + then.or_else(other)
        if isinstance(statement, tirx.While):
            return self._looped(statement, "", "serial", "", inside, lambda own: self._count(statement.body, own))
        if isinstance(statement, tirx.AttrStmt):
            if statement.attr_key != _THREADS:
                return self._count(statement.body, inside)
            loop = (statement.node.var.name, "gpu thread", statement.value)
            return self._looped(statement, *loop, inside, lambda own: self._count(statement.body, own))
        if isinstance(statement, tirx.AllocBuffer):
            self._add_buffer(statement.buffer, statement.buffer.ty.storage_scope or "global")
        elif isinstance(statement, tirx.DeclBuffer):
            self._declare(statement)
        elif isinstance(statement, tirx.BufferStore):
            return self._stored(statement)
        return self._values([getattr(statement, "value", None)])

    def _sequence(self, parts: list[Any], inside: int) -> _Counts:
        """The counts of statements in order. The numbers of threads are ranges around all that follows."""
        counts = _Counts()
        for place, part in enumerate(parts):
            if isinstance(part, ScopeIdDefStmt):
                definition = getattr(part, "def")
                names = ", ".join(variable.name for variable in definition.def_ids)
                sizes = list(definition.extents or [])
                extent = math.prod(sizes[1:], start=sizes[0]) if sizes else ""
                rest = parts[place + 1 :]
                return counts + self._looped(
                    part, names, "gpu thread", extent, inside, lambda own, rest=rest: self._sequence(rest, own)
                )
            counts += self._count(part, inside)
        return counts

    def _looped(
        self, statement: Any, variable: str, kind: LoopKind, extent: Any, inside: int, body: Callable[[int], _Counts]
    ) -> _Counts:
        """Append a loop. One whose number of iterations is unknown has the counts of one iteration."""
        own = len(self.loops)
        self.loops.append(LoopLevel(inside, variable, kind, 0, "", "", "", ""))
        counts = body(own)
        if isinstance(extent, tirx.IntImm):
            extent = int(extent)
        if not isinstance(extent, str):
            counts = counts.times(extent)
        self.loops[own] = LoopLevel(
            inside,
            variable,
            kind,
            number_of(statement),
            extent if isinstance(extent, str) else _in_c(extent),
            *map(_in_c, (counts.read, counts.written, counts.operations)),
        )
        return counts

    def _stored(self, store: tirx.BufferStore) -> _Counts:
        size = _bytes_of(store.value.ty.dtype) if self._is_parameter(store.buffer) else 0
        value = self._value(store.value, str(store.value.ty.dtype))
        return value + self._values(store.indices) + _Counts(written=size)

    def _values(self, values: Iterable[Any]) -> _Counts:
        return sum((self._value(value) for value in values if isinstance(value, tvm.ir.Expr)), _Counts())

    def _value(self, value: tvm.ir.Expr, stored: str = "") -> _Counts:
        """The counts of a value: the elements that it loads, and the operations that make floats, or numbers of the
        type that is ``stored``. An intrinsic is an operation for each number that it returns."""
        read, operations = 0, 0
        indices: list[Any] = []

        def add_load(load: tvm.ir.TensorLoad) -> tvm_ffi.WalkResult:
            nonlocal read
            read += _bytes_of(load.ty.dtype) if self._is_parameter(load.source) else 0
            indices.extend(load.indices)
            return tvm_ffi.WalkResult.SKIP

        def add_operation(operation: Any) -> None:
            nonlocal operations
            kind = str(getattr(operation.ty, "dtype", ""))
            if kind.startswith(_FLOATS) or (stored and kind == stored):
                operations += DataType(kind).lanes

        def add_call(call: tvm.ir.Call) -> tvm_ffi.WalkResult | None:
            name = getattr(call.op, "name", "")
            if name not in _FREE:
                add_operation(call)
            return tvm_ffi.WalkResult.SKIP if name == _ADDRESS else None

        callbacks = [(tvm.ir.TensorLoad, add_load), (_OPERATIONS, add_operation), (tvm.ir.Call, add_call)]
        tvm_ffi.structural_walk(value, callbacks, order="pre")
        return _Counts(read, 0, operations) + self._values(indices)

    def _declare(self, statement: tirx.DeclBuffer) -> None:
        """Note a buffer that is part of another. Parts of shared memory are listed, since the whole has no shape."""
        source = statement.data.args[0] if isinstance(statement.data, tvm.ir.Call) else statement.data
        scope = self._scopes.get(source, statement.buffer.ty.storage_scope or "global")
        if scope.startswith("shared"):
            self._add_buffer(statement.buffer, scope)
        self._scopes[statement.buffer] = scope

    def _is_parameter(self, buffer: Any) -> bool:
        return self._scopes.get(buffer) == _PARAMETER

    def _add_buffer(self, buffer: Any, scope: str) -> None:
        self._scopes[buffer] = scope
        size = math.prod(list(buffer.ty.shape), start=_bytes_of(buffer.dtype))
        shape = tuple(map(in_c, buffer.ty.shape))
        self.buffers.append(KernelBuffer(buffer.name, scope, shape, str(buffer.dtype), _in_c(size)))


def _in_c(value: Any) -> str:
    return str(value) if isinstance(value, int) else in_c(value)


def _bytes_of(dtype: Any) -> int:
    kind = DataType(str(dtype))
    return -(-kind.bits * kind.lanes // 8)
