"""Functions, loops and HLS pragmas of a C++ file, as tree-sitter parses it.

No compiler is involved: the simulation rewrites the delivered text, and templates have no instances in it.
"""

from __future__ import annotations

import bisect
import dataclasses
import functools
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from moec.common.errors import MoecError

if TYPE_CHECKING:
    from tree_sitter import Node, Parser

_PRAGMA = re.compile(r"\s*HLS\s+(\w+)(.*)", re.DOTALL | re.IGNORECASE)
_OPTION = re.compile(r"(\w+)(?:\s*=\s*([^\s=]+))?|\S+")
_NO_OPTIONS = re.compile(r"//.*|/\*.*?\*/|\\\n", re.DOTALL)
_KINDS = {
    "compound_statement": "block",
    "for_statement": "for",
    "for_range_loop": "for",
    "while_statement": "while",
    "do_statement": "do",
    "if_statement": "if",
    "switch_statement": "switch",
}
"""Kinds of statements by type of node; all others are plain."""
_TRANSPARENT = {"case_statement", "else_clause", "preproc_if", "preproc_ifdef", "preproc_else", "preproc_elif"}
"""Nodes whose statements count as those of the node around them."""
_NAMES = {"identifier", "field_identifier", "destructor_name", "operator_name"}


@dataclasses.dataclass(frozen=True)
class Pragma:
    """``#pragma HLS DIRECTIVE option name=value ...``. Options that are only named have the value ''."""

    directive: str
    options: Mapping[str, str]
    unreadable: tuple[str, ...]
    """Words that are not options."""
    start: int
    end: int

    @property
    def words(self) -> str:
        return " ".join(
            [self.directive, *(f"{name}={value}" if value else name for name, value in self.options.items())]
        )


@dataclasses.dataclass(frozen=True)
class Statement:
    """A statement from its label to its end. The children of a loop are its body, those of a block its statements."""

    node: Node
    """The statement without its label."""
    kind: str
    """``block``, a keyword (``for``, ``while``, ``do``, ``if``, ``switch``), or ``plain``."""
    start: int
    end: int
    label: str = ""
    header: str = ""
    """The text in the parentheses after the keyword."""
    children: tuple[Statement, ...] = ()
    pragmas: tuple[Pragma, ...] = ()
    """The pragmas directly in a block, not in blocks inside."""

    @property
    def is_loop(self) -> bool:
        return self.kind in ("for", "while", "do")

    @property
    def body(self) -> Statement:
        return self.children[0]

    def walk(self) -> Iterator[Statement]:
        yield self
        for child in self.children:
            yield from child.walk()

    def loops(self, around: tuple[Statement, ...] = ()) -> Iterator[tuple[Statement, tuple[Statement, ...]]]:
        """All loops in the statement, each with the loops around it from the outside in."""
        if self.is_loop:
            yield self, around
            around = (*around, self)
        for child in self.children:
            yield from child.loops(around)

    def has(self, *directives: str) -> bool:
        """Whether a loop has one of these pragmas without the option ``off``."""
        return any(pragma.directive in directives and "off" not in pragma.options for pragma in self.body.pragmas)

    def pragmas_named(self, directive: str) -> list[Pragma]:
        return [pragma for pragma in self.pragmas if pragma.directive == directive]


@dataclasses.dataclass(frozen=True)
class CppParameter:
    """A parameter of a function; ``type``: the text before its name."""

    type: str
    name: str
    is_array: bool
    is_pointer: bool


@dataclasses.dataclass(frozen=True)
class Function:
    """A function with a body. ``start``: the position of its name."""

    name: str
    parameters: tuple[CppParameter, ...]
    start: int
    body: Statement


@dataclasses.dataclass(frozen=True)
class Source:
    """A C++ file. ``name``: of the file in messages. Positions count characters."""

    name: str
    text: str

    @functools.cached_property
    def root(self) -> Node:
        """The file's syntax tree. Raises MoecError for text that is no C++, and where the parser is not installed."""
        root = _parser().parse(self.text.encode("ascii", "replace")).root_node  # a byte for each character
        if root.has_error:
            wrong = next(node for node in nodes_in(root) if node.is_missing or node.is_error)
            missing, other = f"expected {wrong.type!r}", f"C++ that is not understood: {self.line_of(wrong)}"
            raise self.error(wrong.start_byte, missing if wrong.is_missing else other)
        return root

    @functools.cached_property
    def functions(self) -> tuple[Function, ...]:
        """All functions, including those in namespaces and classes, and without those inside of others."""
        return tuple(self._function(node) for node in _definitions(self.root))

    @functools.cached_property
    def pragmas(self) -> tuple[Pragma, ...]:
        """All HLS pragmas in their order."""
        return tuple(filter(None, map(self._pragma, nodes_in(self.root))))

    @functools.cached_property
    def _line_starts(self) -> list[int]:
        return [0, *(match.end() for match in re.finditer("\n", self.text))]

    def line(self, position: int) -> int:
        """The line of a position, counted from 1."""
        return bisect.bisect_right(self._line_starts, position)

    def text_of(self, node: Node) -> str:
        return self.text[node.start_byte : node.end_byte]

    def line_of(self, node: Node) -> str:
        """The line in which a node starts, without indentation."""
        return self.text.splitlines()[self.line(node.start_byte) - 1].strip()

    def error(self, position: int, message: str) -> MoecError:
        return MoecError(f"{self.name}:{self.line(position)}: {message}")

    def _pragma(self, node: Node) -> Pragma | None:
        if node.type != "preproc_call" or (argument := node.child_by_field_name("argument")) is None:
            return None
        match = _PRAGMA.fullmatch(self.text_of(argument)) if self.text_of(node.children[0]).endswith("pragma") else None
        if match is None:
            return None
        options, unreadable = {}, []
        for option in _OPTION.finditer(_NO_OPTIONS.sub(" ", match[2])):
            if option[1] is None:
                unreadable.append(option[0])
            else:
                options[option[1]] = option[2] or ""
        return Pragma(match[1].upper(), options, tuple(unreadable), node.start_byte, argument.end_byte)

    def _function(self, node: Node) -> Function:
        declarator = _function_declarator(node)
        assert declarator is not None
        name = _name(declarator.child_by_field_name("declarator"))
        listed = declarator.child_by_field_name("parameters")
        body = node.child_by_field_name("body")
        assert name is not None and listed is not None and body is not None
        parameters = (child for child in listed.named_children if child.type.endswith("parameter_declaration"))
        return Function(
            self.text_of(name),
            tuple(self._parameter(child) for child in parameters if self.text_of(child) != "void"),
            name.start_byte,
            self._statement(body),
        )

    def _parameter(self, node: Node) -> CppParameter:
        declarator = node.child_by_field_name("declarator")
        name = _name(declarator)
        if declarator is None or name is None:
            return CppParameter(self.text_of(node), "", False, False)
        kinds = {part.type for part in nodes_in(declarator)}
        before = self.text[node.start_byte : name.start_byte].strip()
        return CppParameter(before, self.text_of(name), "array_declarator" in kinds, "pointer_declarator" in kinds)

    def _statement(self, node: Node) -> Statement:
        start, label = node.start_byte, ""
        while node.type == "labeled_statement":
            label = self.text_of(node.named_children[0])
            node = node.named_children[-1]
        kind = _KINDS.get(node.type, "plain")
        inside = [] if kind == "plain" else list(_inside(node))
        children = tuple(self._statement(child) for child in inside if child.type != "preproc_call")
        pragmas = tuple(filter(None, map(self._pragma, inside)))
        return Statement(node, kind, start, node.end_byte, label, self._header(node), children, pragmas)

    def _header(self, node: Node) -> str:
        condition = node.child_by_field_name("condition")
        if node.type in ("for_statement", "for_range_loop"):
            first, last = (next(child for child in node.children if child.type == bracket) for bracket in "()")
            return self.text[first.end_byte : last.start_byte]
        return "" if condition is None or node.type not in _KINDS else self.text_of(condition)[1:-1]


def nodes_in(node: Node) -> Iterator[Node]:
    """A node and all nodes inside, in the order of the text."""
    pending = [node]
    while pending:
        node = pending.pop()
        yield node
        pending += reversed(node.children)


@functools.cache
def _parser() -> Parser:
    try:
        import tree_sitter
        import tree_sitter_cpp
    except ImportError as error:
        raise MoecError(
            f"simulating a project needs the package {error.name}, which reads its C++: pip install 'moec[hls]'"
        ) from None
    return tree_sitter.Parser(tree_sitter.Language(tree_sitter_cpp.language()))


def _definitions(node: Node) -> Iterator[Node]:
    for child in node.children:
        body = child.child_by_field_name("body") if child.type == "function_definition" else None
        if body is None:
            yield from _definitions(child)
        elif _function_declarator(child) is not None:
            yield child


def _function_declarator(node: Node) -> Node | None:
    """The part of a function's head that has its parameters; None where there is none."""
    inner = node.child_by_field_name("declarator")
    while inner is not None and inner.type != "function_declarator":
        inner = inner.child_by_field_name("declarator") or next(
            (child for child in inner.named_children if child.type.endswith("declarator")), None
        )
    return inner


def _name(node: Node | None) -> Node | None:
    """The name that a declarator declares, without its scope; None where it has none."""
    while node is not None and node.type in ("qualified_identifier", "template_function"):
        node = node.child_by_field_name("name")
    return None if node is None else next((part for part in nodes_in(node) if part.type in _NAMES), None)


def _inside(node: Node) -> Iterator[Node]:
    """The statements of a block, or those that a keyword controls, and the pragmas between them."""
    if node.type in _KINDS and node.type != "compound_statement":
        children = [node.child_by_field_name(field) for field in ("body", "consequence", "alternative")]
    else:
        conditions = [node.child_by_field_name(field) for field in ("value", "condition", "name")]
        children = [child for child in node.named_children if child not in conditions and child.type != "comment"]
    for child in filter(None, children):
        if child.type in _TRANSPARENT:
            yield from _inside(child)
        else:
            yield child
