"""Numbers of a kernel's statements, kept as the lines of their spans from TIR to generated code.

TVM's code generator writes the line of a statement's span into LLVM's debug locations. Its phases copy the spans of
stores, bindings and calls, but make most loops and branches anew, without one. Such a loop is found again by the name
of its variable, among those that enclosed its first statement when the statements were numbered.

Number 1 is the function itself: the code that unpacks and checks its arguments.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from typing import Any

import tvm
from tvm import s_tir, tirx

FUNCTION = 1
"""The number of the function."""
_STATEMENTS = "moec.statements"
"""Attribute with the numbered statements of a function, as JSON: the parents' numbers, and the kinds."""
_SOURCE = "tir"
_PARTS: dict[type, tuple[str, ...]] = {
    tirx.For: ("body",),
    tirx.While: ("body",),
    tirx.AttrStmt: ("body",),
    tirx.IfThenElse: ("then_case", "else_case"),
    s_tir.SBlockRealize: ("block",),
    s_tir.SBlock: ("init", "body"),
}
"""The fields that hold statements, by the class of a statement; sequences of statements come in addition."""


@dataclasses.dataclass(frozen=True)
class StatementTable:
    """The numbered statements of a function: ``parents[n]`` and ``kinds[n]`` of the statement with number n. Numbers 0
    and 1 stand for no statement, and for the function."""

    parents: list[int]
    kinds: list[str]

    def around(self, number: int, kind: str) -> int:
        """The innermost statement of a kind that encloses statement ``number``; this one itself if there is none."""
        outer = self.parents[number]
        while outer > FUNCTION and self.kinds[outer] != kind:
            outer = self.parents[outer]
        return outer if outer > FUNCTION else number


def numbered(function: tirx.PrimFunc) -> tirx.PrimFunc:
    """The function with numbered statements, sequences excepted: from 2 on, each before those inside it."""
    parents, kinds = [0, 0], ["", "function"]

    def number(statement: tirx.Stmt, parent: int) -> tirx.Stmt:
        if isinstance(statement, tirx.SeqStmt):
            return _made_like(statement, seq=[number(part, parent) for part in statement.seq])
        own = len(parents)
        parents.append(parent)
        kinds.append(_kind(statement))
        inside = {name: number(part, own) for name, part in _parts(statement)}
        return _made_like(statement, **inside, span=_span(own))

    body = number(function.body, FUNCTION)
    return function.with_body(body).with_attr(_STATEMENTS, json.dumps([parents, kinds]))


def statements_of(function: tirx.PrimFunc) -> StatementTable | None:
    """The statements of a function that was numbered; None for another."""
    text = function.attrs.get(_STATEMENTS) if function.attrs else None
    return None if text is None else StatementTable(*json.loads(text))


def forgotten(function: tirx.PrimFunc) -> tirx.PrimFunc:
    """The function without the table of its statements, which keep their numbers."""
    return function.without_attr(_STATEMENTS)


def number_of(statement: tirx.Stmt) -> int:
    """The number of a statement; 0 if it has none."""
    span = statement.span
    return 0 if span is None else int(span.line)


def with_found_numbers(function: tirx.PrimFunc, statements: StatementTable) -> tirx.PrimFunc:
    """The function with the numbers of loops and branches that phases made anew."""
    body, _ = _found(function.body, statements)
    return function.with_body(body)


@tirx.transform.prim_func_pass(opt_level=0, name="FindLines")
class FindLines:
    """Number the statements that phases made anew: loops and branches as before, others like the statement that
    follows, which they prepare. It changes numbered functions only."""

    def transform_function(
        self, function: tirx.PrimFunc, _module: tvm.IRModule, _context: tvm.transform.PassContext
    ) -> tirx.PrimFunc:
        statements = statements_of(function)
        if statements is None:
            return function
        return function.with_body(_spread(with_found_numbers(function, statements).body, FUNCTION))


@tirx.transform.prim_func_pass(opt_level=0, name="FinishLines")
class FinishLines:
    """Give statements of the calling convention the number of what encloses them, in the end the function's. Then
    forget the table of statements."""

    def transform_function(
        self, function: tirx.PrimFunc, _module: tvm.IRModule, _context: tvm.transform.PassContext
    ) -> tirx.PrimFunc:
        if statements_of(function) is None:
            return function
        finished = forgotten(function.with_body(_inherited(function.body, FUNCTION)))
        return _made_like(finished, span=_span(FUNCTION))


def _found(statement: tirx.Stmt, statements: StatementTable) -> tuple[tirx.Stmt, int]:
    """The statement with numbers of all loops and branches in it, and the first number."""
    own = number_of(statement)
    if isinstance(statement, tirx.SeqStmt):
        parts = [_found(part, statements) for part in statement.seq]
        first = next((number for _, number in parts if number), 0)
        return _with_sequence(statement, [part for part, _ in parts]), first
    inside = {name: _found(part, statements) for name, part in _parts(statement)}
    changed: dict[str, Any] = {
        name: part for name, (part, _) in inside.items() if not part.same_as(getattr(statement, name))
    }
    first = next((number for _, number in inside.values() if number), 0)
    if not own and first:
        own = statements.around(first, _kind(statement))
        changed["span"] = _span(own)
    return _made_like(statement, **changed) if changed else statement, own


def _spread(statement: tirx.Stmt, near: int) -> tirx.Stmt:
    """The statement with numbers everywhere: in a sequence the next one's, or else ``near``."""
    if not isinstance(statement, tirx.SeqStmt):
        return _inside(statement, number_of(statement) or near, _spread)
    numbers = [_first(part) for part in statement.seq]
    for place in reversed(range(len(numbers) - 1)):
        numbers[place] = numbers[place] or numbers[place + 1]
    parts = []
    for part, number in zip(statement.seq, numbers, strict=True):
        near = number or near
        parts.append(_spread(part, near))
    return _with_sequence(statement, parts)


def _first(statement: tirx.Stmt) -> int:
    """The number of a statement, or of the first numbered statement of a sequence."""
    if isinstance(statement, tirx.SeqStmt):
        return next(filter(None, map(_first, statement.seq)), 0)
    return number_of(statement)


def _inherited(statement: tirx.Stmt, near: int) -> tirx.Stmt:
    """The statement with numbers everywhere: those of what encloses them, in the end ``near``."""
    if isinstance(statement, tirx.SeqStmt):
        return _with_sequence(statement, [_inherited(part, near) for part in statement.seq])
    return _inside(statement, number_of(statement) or near, _inherited)


def _inside(statement: tirx.Stmt, own: int, change: Any) -> tirx.Stmt:
    """The statement with its number, and ``change(part, own)`` of each statement directly in it."""
    parts = ((name, part, change(part, own)) for name, part in _parts(statement))
    changed: dict[str, Any] = {name: new for name, part, new in parts if not new.same_as(part)}
    if number_of(statement) != own:
        changed["span"] = _span(own)
    return _made_like(statement, **changed) if changed else statement


def _with_sequence(statement: tirx.SeqStmt, parts: list[tirx.Stmt]) -> tirx.Stmt:
    changed = any(not new.same_as(old) for new, old in zip(parts, statement.seq, strict=True))
    return _made_like(statement, seq=parts) if changed else statement


def _kind(statement: tirx.Stmt) -> str:
    """The kind of a statement; loops have their variable's name in it."""
    name = type(statement).__name__
    return f"{name} {statement.loop_var.name}" if isinstance(statement, tirx.For) else name


def _parts(statement: tirx.Stmt) -> list[tuple[str, tirx.Stmt]]:
    """The statements directly in a statement that is not a sequence, with the names of their fields."""
    parts = ((name, getattr(statement, name)) for name in _PARTS.get(type(statement), ()))
    return [(name, part) for name, part in parts if part is not None]


@functools.lru_cache(4096)
def _span(number: int) -> tvm.ir.Span:
    return tvm.ir.Span(tvm.ir.SourceName(_SOURCE), number, number, 0, 0)


def _made_like(node: Any, **changed: Any) -> Any:
    """A copy of a node with some fields changed. Constructors would leave out fields that they do not take."""
    fields = {name: changed.get(name, getattr(node, name)) for name in _fields(type(node))}
    return tvm.ir.make_node(type(node).__tvm_ffi_type_info__.type_key, **fields)


@functools.cache
def _fields(kind: type) -> tuple[str, ...]:
    """The names of a node's fields, those of the classes that it extends first."""
    info, names = kind.__tvm_ffi_type_info__, list[str]()
    while info is not None:
        names = [field.name for field in info.fields] + names
        info = info.parent_type_info
    return tuple(names)
