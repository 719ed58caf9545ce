"""Printed statements of TIR, as TVMScript without the types of literals."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar

import tvm
import tvm_ffi
from tvm import tirx
from tvm.tirx.buffer import is_buffer_var
from tvm.tirx.stmt import ForKind, ScopeIdDefStmt

from moec.common.short_lines import wrapped
from moec.targets.tvm.text.expressions import Expressions, is_number, quoted
from moec.targets.tvm.text.names import VariableNames
from moec.targets.tvm.text.steps import name_of_step

_INDENT = "    "
_SCOPES = (
    *("cluster_id", "cta_id", "cta_id_in_cluster", "warpgroup_id", "warp_id"),
    *("warp_id_in_wg", "lane_id", "thread_id", "thread_id_in_wg", "cta_id_in_pair"),
)
"""TVMScript's functions for the numbers of threads and of their groups, in TVM's order."""
_LOOPS = {
    ForKind.SERIAL: "T.serial",
    ForKind.PARALLEL: "T.parallel",
    ForKind.VECTORIZED: "T.vectorized",
    ForKind.UNROLLED: "T.unroll",
    ForKind.THREAD_BINDING: "T.thread_binding",
}
_THREADS = {"blockIdx.x": "block", "threadIdx.x": "thread"}
"""Names for numbers of blocks and threads, which schedules call after the axes that they join."""
_ALLOCATIONS = {"global": "T.alloc_buffer", "": "T.alloc_buffer", "local": "T.alloc_local", "shared": "T.alloc_shared"}


@dataclasses.dataclass(frozen=True)
class Line:
    """A printed line, and the statement that it is part of (None in the signature)."""

    text: str
    statement: Any = None


class Statements:
    """The lines of a function's body, in the order of the statements."""

    def __init__(self, names: VariableNames) -> None:
        self.lines: list[Line] = []
        self._names = names
        self._expressions = Expressions(names, self._bind)
        self._depth = 0
        self._statement: Any = None
        self._bound: set[tvm.ir.Var] = set()

    def signature(self, function: tirx.PrimFunc) -> str:
        """The line with the function's name and parameters; the sizes that their shapes define are type parameters."""
        sizes: dict[tvm.ir.Var, None] = {}
        for parameter in function.params:
            if is_buffer_var(parameter):
                for size in parameter.ty.shape:
                    tvm_ffi.structural_walk(size, [(tvm.ir.Var, lambda variable: sizes.setdefault(variable))])
        own = ", ".join(self._names(size) for size in sizes if size not in set(function.params))
        parameters = ", ".join(f"{self._names(part)}: {self._parameter_type(part)}" for part in function.params)
        name = (function.attrs or {}).get("global_symbol", "kernel")
        return f"def {name}{own and f'[{own}]'}({parameters}):"

    def _parameter_type(self, parameter: tvm.ir.Var) -> str:
        if is_buffer_var(parameter):
            return f"T.Buffer({self.shape_and_type(parameter)})"
        return f"T.{parameter.ty.dtype}" if isinstance(parameter.ty, tvm.ir.PrimType) else "T.handle"

    def header(self, text: str) -> None:
        """Print a line of the function's signature, or one outside of its statements."""
        self._emit(text)

    @contextlib.contextmanager
    def body(self) -> Iterator[None]:
        """Context of a block: indented, with names of its own."""
        begin = len(self.lines)
        self._depth += 1
        with self._names.scope():
            yield
        if len(self.lines) == begin:
            self._emit("pass")
        self._depth -= 1

    def print(self, statement: Any) -> None:
        """Print a statement and those in it."""
        if isinstance(statement, tirx.SeqStmt):
            for part in statement.seq:
                self.print(part)
            return
        outer, self._statement, self._bound = self._statement, statement, set()
        self._METHODS.get(type(statement), Statements._other)(self, statement)
        self._statement = outer

    def _emit(self, text: str) -> None:
        line = _INDENT * self._depth + text
        self.lines += [Line(part, self._statement) for part in wrapped(line, parenthesized=True)]

    def _text(self, value: Any) -> str:
        return self._expressions.text(value)

    def _block(self, head: str, *statements: Any) -> None:
        self._emit(head)
        with self.body():
            for statement in statements:
                self.print(statement)

    def _bind(self, variable: tvm.ir.Var, value: Any) -> None:
        if variable in self._bound:
            return
        text = self._text(value)
        self._bound.add(variable)
        self._emit(f"{self._names(variable)}: T.let = {text}")

    def _binding(self, statement: tirx.Bind) -> None:
        self._bind(statement.var, statement.value)

    def _store(self, statement: tirx.BufferStore) -> None:
        value = self._text(statement.value)
        self._emit(f"{self._expressions.access(statement.buffer, statement.indices)} = {value}")

    def _evaluate(self, statement: tirx.Evaluate) -> None:
        name = name_of_step(statement)
        if name is not None:
            self._emit(f"# {name}")
            return
        self._emit(self._text(statement.value))

    def _loop(self, loop: tirx.For) -> None:
        kind = ForKind(loop.kind)
        bounds = self._bounds(loop)
        options = ""
        if loop.thread_binding is not None:
            options += f", thread={quoted(loop.thread_binding.thread_tag)}"
        if loop.annotations:
            options += f", annotations={self.value(loop.annotations)}"
        plain = kind == ForKind.SERIAL and not options and (loop.step is None or is_number(loop.step, 1))
        if loop.step is not None and not is_number(loop.step, 1):
            options += f", step={self._text(loop.step)}"
        function = "range" if plain else _LOOPS[kind]
        with self._names.scope():
            self._block(f"for {self._names(loop.loop_var)} in {function}({bounds}{options}):", loop.body)

    def _bounds(self, loop: tirx.For) -> str:
        """The end of a loop that begins at 0; otherwise its beginning and its end."""
        if is_number(loop.min, 0):
            return self._text(loop.extent)
        end = tvm.sym.Analyzer().simplify(loop.min + loop.extent)
        return f"{self._text(loop.min)}, {self._text(end)}"

    def _condition(self, statement: tirx.IfThenElse) -> None:
        """Print a condition; one that is alone in the other's ``else`` becomes its ``elif``."""
        self._block(f"if {self._text(statement.condition)}:", statement.then_case)
        otherwise = statement.else_case
        while isinstance(otherwise, tirx.IfThenElse):
            self._statement = otherwise
            self._block(f"elif {self._expressions.in_place(otherwise.condition)}:", otherwise.then_case)
            otherwise = otherwise.else_case
        if otherwise is not None:
            self._block("else:", otherwise)

    def _while(self, statement: tirx.While) -> None:
        self._block(f"while {self._expressions.in_place(statement.condition)}:", statement.body)

    def _allocation(self, statement: tirx.AllocBuffer) -> None:
        buffer = statement.buffer
        scope = buffer.ty.storage_scope
        options = f", annotations={self.value(statement.annotations)}" if statement.annotations else ""
        options = options if scope in _ALLOCATIONS else f", scope={quoted(scope)}{options}"
        function = _ALLOCATIONS.get(scope, "T.alloc_buffer")
        self._emit(f"{self._names(buffer)} = {function}({self.shape_and_type(buffer)}{options})")

    def _declaration(self, statement: tirx.DeclBuffer) -> None:
        buffer, data = statement.buffer, self._text(statement.data)
        self._emit(f"{self._names(buffer)} = T.decl_buffer({self.shape_and_type(buffer)}, data={data})")

    def _attribute(self, statement: tirx.AttrStmt) -> None:
        key, value = statement.attr_key, self.value(statement.value)
        if key == "tirx.device_entry":
            self._emit("T.device_entry()")
        elif key == "thread_extent":
            thread = statement.node
            name = self._names(thread.var, _THREADS.get(thread.thread_tag, ""))
            self._emit(f"{name} = T.launch_thread({quoted(thread.thread_tag)}, {value})")
        else:
            self._emit(f"T.attr({self.value(statement.node)}, {quoted(key)}, {value})")
        self.print(statement.body)

    def value(self, value: Any) -> str:
        """The text of an attribute's value."""
        if isinstance(value, str):
            return quoted(value)
        if isinstance(value, Mapping):
            return ", ".join(f"{quoted(str(key))}: {self.value(part)}" for key, part in value.items()).join("{}")
        if isinstance(value, (list, tuple, tvm_ffi.Array)):
            return ", ".join(map(self.value, value)).join("[]")
        return self._text(value) if isinstance(value, tvm.ir.Expr) else str(value)

    def shape_and_type(self, buffer: tvm.ir.Var) -> str:
        """The arguments that describe a buffer."""
        return f"{self._expressions.tupled(buffer.ty.shape)}, {quoted(str(buffer.dtype))}"

    def _scope_ids(self, statement: ScopeIdDefStmt) -> None:
        definition = getattr(statement, "def")
        names = ", ".join(map(self._names, definition.def_ids))
        extents = "" if definition.extents is None else ", ".join(map(self._text, definition.extents)).join("[]")
        self._emit(f"{names} = T.{_SCOPES[definition.scope]}({extents})")

    def _assertion(self, statement: tirx.AssertStmt) -> None:
        message = "".join(part.value for part in statement.message_parts)
        self._emit(f"assert {self._text(statement.condition)}, {quoted(message)}")

    def _other(self, statement: Any) -> None:
        """TVM's own text of what has no printer here."""
        for line in statement.script().splitlines():
            if not line.startswith("#"):
                self._emit(line)

    _METHODS: ClassVar[dict[type, Callable[[Any, Any], None]]] = {
        tirx.Bind: _binding,
        tirx.BufferStore: _store,
        tirx.Evaluate: _evaluate,
        tirx.For: _loop,
        tirx.IfThenElse: _condition,
        tirx.While: _while,
        tirx.AllocBuffer: _allocation,
        tirx.DeclBuffer: _declaration,
        tirx.AttrStmt: _attribute,
        tirx.AssertStmt: _assertion,
        ScopeIdDefStmt: _scope_ids,
    }
