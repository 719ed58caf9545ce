"""Values of the integer constants that a design declares, as far as they can be computed without a compiler."""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Iterable, Iterator, Mapping

from moec.simulators.hls.cpp import Source

from .text import code, split_list

_DECLARED = re.compile(r"\b(?:static\s+)?const(?:expr)?\s+(?:int|long|bool|unsigned)\s+(\w+\s*=[^;]+);")
_QUALIFIED = re.compile(r"(?:\w+(?:<[\w:\s,]*>)?\s*::\s*)+(\w+)")
_CHOICE = re.compile(r"\(?\s*([^?()]+)\?([^:()]+):([^()]+?)\s*\)?")
_OPERATORS: Mapping[type, Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.LShift: operator.lshift,
    ast.RShift: operator.rshift,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}


class DeclaredConstants:
    """The integer constants of a design, by the last part of their qualified names. Templates may be instantiated with
    several structs of constants, so a name may be declared several times: the first values of all names belong
    together, then the second ones, and so on."""

    def __init__(self, sources: Iterable[Source]) -> None:
        self._texts: dict[str, list[str]] = {}
        for source in sources:
            for name, text in _declared_in(code(source.text)):
                texts = self._texts.setdefault(name, [])
                if texts != [text]:
                    texts.append(text)

    def within(self, body: str) -> DeclaredConstants:
        """The constants inside a function with this ``body``: its own, and those of the design."""
        inner = DeclaredConstants([])
        inner._texts = {**self._texts, **{name: [text] for name, text in _declared_in(body)}}
        return inner

    def value(self, expression: str) -> int | None:
        """The value of an expression; None where it is unknown, or has several values."""
        values = self.values(expression)
        return values.pop() if len(values) == 1 else None

    def values(self, expression: str) -> set[int]:
        """All values of an expression; empty where one of them is unknown."""
        count = max(map(len, self._texts.values()), default=1)
        values = {self._value(expression, frozenset(), turn) for turn in range(count)}
        return {value for value in values if value is not None} if None not in values else set()

    def _value(self, expression: str, inside: frozenset[str], turn: int) -> int | None:
        text = _QUALIFIED.sub(r"\1", expression).strip()
        if choice := _CHOICE.fullmatch(text):
            condition = self._value(choice[1], inside, turn)
            return None if condition is None else self._value(choice[2] if condition else choice[3], inside, turn)
        text = re.sub(r"\bfalse\b", "0", re.sub(r"\btrue\b", "1", text)).replace("/", "//")
        try:
            return self._computed(ast.parse(text, mode="eval").body, inside, turn)
        except (SyntaxError, ZeroDivisionError, ValueError):
            return None

    def _computed(self, node: ast.AST, inside: frozenset[str], turn: int) -> int | None:
        if isinstance(node, ast.Constant) and isinstance(node.value, int):
            return node.value
        if isinstance(node, ast.Name) and node.id in self._texts and node.id not in inside:
            texts = self._texts[node.id]
            return self._value(texts[min(turn, len(texts) - 1)], inside | {node.id}, turn)
        if isinstance(node, ast.BinOp):
            parts = (node.left, node.op, node.right)
        elif isinstance(node, ast.Compare) and len(node.ops) == 1:
            parts = (node.left, node.ops[0], node.comparators[0])
        else:
            return None
        left, right = (self._computed(part, inside, turn) for part in (parts[0], parts[2]))
        if left is None or right is None or type(parts[1]) not in _OPERATORS:
            return None
        return int(_OPERATORS[type(parts[1])](left, right))


def _declared_in(text: str) -> Iterator[tuple[str, str]]:
    for declaration in _DECLARED.finditer(text):
        for item in split_list(declaration[1]):
            name, _, text = item.partition("=")
            if _QUALIFIED.sub(r"\1", text).strip() != name.strip():  # skip forwarding, as in ``n = Struct::n``
                yield name.strip(), text.strip()
