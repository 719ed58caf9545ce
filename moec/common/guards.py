"""Guards: conditions on the named sizes of a model's inputs that its program relies on.

A guard is text, such as ``seq <= 16``, ``seq % 8 == 0`` or ``2*past < max(seq, 4)``: comparisons of integers, joined by
``and`` and ``or``, made of names, numbers, ``+ - * // %``, ``min`` and ``max``. It comes from untrusted files, so it is
parsed and evaluated here and never run as Python; without powers and loops its cost grows with its length. Dimensions
that are computed from others (``past + new``) have the same grammar.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import itertools
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Generic, TypeVar

Sizes = Mapping[str, int]
Shape = Sequence[int | str]
LONGEST = 4000
"""Characters of a guard. A longer one tells people nothing, and costs time in each call."""
_DEEPEST = 100
"""Levels of nested expressions, because the evaluation is recursive."""

_ARITHMETIC: dict[type, Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
_COMPARISONS: dict[type, Callable[[int, int], bool]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}
Functions = Mapping[str, Callable[[Any, Any], Any]]
_FUNCTIONS: Functions = {"min": min, "max": max}
_Result = TypeVar("_Result", int, bool)


@dataclasses.dataclass(frozen=True)
class Expression(Generic[_Result]):
    """A parsed expression. Called with a number for each of ``names``, it returns an int (a size) or a bool (a
    guard)."""

    text: str
    names: tuple[str, ...]
    _evaluate: Callable[[Sizes], _Result]

    def __call__(self, sizes: Sizes) -> _Result:
        """Evaluate. Raises ZeroDivisionError for a division by a size that is zero."""
        return self._evaluate(sizes)

    def __str__(self) -> str:
        return self.text


def parse_guard(text: str) -> Expression[bool]:
    """Parse a guard. Raises ValueError, with the reason, for other text."""
    tree = _parse(text)
    return Expression(text, _names(tree), _condition(tree))


def parse_size(text: str, functions: Functions = _FUNCTIONS) -> Expression[int]:
    """Parse a size. Raises ValueError, with the reason, for other text. ``functions``: ``min`` and ``max`` of two,
    where the expression is called with symbols in place of numbers."""
    tree = _parse(text)
    return Expression(text, _names(tree), _number(tree, functions))


def holds(guard: Expression[bool], sizes: Sizes) -> bool:
    """Whether sizes satisfy the guard; a division by zero does not."""
    try:
        return guard(sizes)
    except ZeroDivisionError:
        return False


def size_names(size: int | str) -> tuple[str, ...]:
    """List the names in a dimension: two in ``past + new``. Text that is no arithmetic is one name."""
    if isinstance(size, int):
        return ()
    try:
        return parse_size(size).names
    except ValueError:
        return (size,)


def computed_sizes(shapes: Iterable[Shape]) -> list[Expression[int]]:
    """List the dimensions that are arithmetic of named sizes."""
    texts = dict.fromkeys(size for shape in shapes for size in shape if isinstance(size, str))
    return [parse_size(text) for text in texts if size_names(text) not in ((), (text,))]


def bound_names(shapes: Sequence[Shape]) -> set[str]:
    """Collect the names whose sizes follow from those of the dimensions."""
    computed = computed_sizes(shapes)
    sizes = {size: 1 for shape in shapes for size in shape if isinstance(size, str)}
    for size in computed:
        sizes[size.text] = _at(size, dict.fromkeys(size.names, 1)) or 0
    for size in computed:
        solve(size, sizes)
    return sizes.keys() - {size.text for size in computed}


def solve(size: Expression[int], sizes: dict[Any, int]) -> bool:
    """Whether a computed size equals ``sizes[size.text]``, solving for one unknown name.

    If exactly one of its names is not in ``sizes`` yet, it is set to the solution. A size with several unknown names,
    or one that cannot be solved, is left for the program to check.
    """
    actual, unknown = sizes[size.text], [name for name in size.names if name not in sizes]
    if not unknown:
        return _at(size, sizes) in (actual, None)
    at = [_at(size, {**sizes, **dict.fromkeys(unknown, value)}) for value in (0, 1, 2, 1001)]
    start, slope = at[0] or 0, (at[1] or 0) - (at[0] or 0)
    if len(unknown) > 1 or not slope or at != [start + slope * value for value in (0, 1, 2, 1001)]:
        return True
    solution = (actual - start) // slope
    if solution < 0 or size({**sizes, unknown[0]: solution}) != actual:
        return False
    sizes[unknown[0]] = solution
    return True


def _at(size: Expression[int], sizes: Sizes) -> int | None:
    """Evaluate. Returns None for a division by zero."""
    try:
        return size(sizes)
    except ZeroDivisionError:
        return None


def _parse(text: str) -> ast.expr:
    if len(text) > LONGEST:
        raise ValueError(f"it has {len(text)} characters; at most {LONGEST} are read")
    try:
        tree = ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError("it is not an expression") from error
    level: list[ast.AST] = [tree]
    for _ in range(_DEEPEST):
        level = [child for node in level for child in ast.iter_child_nodes(node)]
    if level:
        raise ValueError(f"it is nested more than {_DEEPEST} levels deep")
    return tree


def _names(tree: ast.expr) -> tuple[str, ...]:
    called = {node.func for node in ast.walk(tree) if isinstance(node, ast.Call)}
    names = (node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and node not in called)
    return tuple(dict.fromkeys(names))


def _condition(node: ast.expr) -> Callable[[Sizes], bool]:
    if isinstance(node, ast.BoolOp):
        parts = [_condition(value) for value in node.values]
        joined = all if isinstance(node.op, ast.And) else any
        return lambda sizes: joined(part(sizes) for part in parts)
    if not isinstance(node, ast.Compare):
        raise ValueError(f"{ast.unparse(node)!r} is not a comparison")
    operands = [_number(operand, _FUNCTIONS) for operand in (node.left, *node.comparators)]
    tests = [_known(_COMPARISONS, type(comparison), node) for comparison in node.ops]

    def compare(sizes: Sizes) -> bool:
        values = [operand(sizes) for operand in operands]
        return all(test(*pair) for test, pair in zip(tests, itertools.pairwise(values), strict=True))

    return compare


def _number(node: ast.expr, functions: Functions) -> Callable[[Sizes], int]:
    if isinstance(node, ast.Name):
        return operator.itemgetter(node.id)
    if isinstance(node, ast.Constant) and type(node.value) is int:
        value = node.value
        return lambda _sizes: value
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        operand = _number(node.operand, functions)
        return lambda sizes: -operand(sizes)
    if isinstance(node, ast.BinOp):
        compute = _known(_ARITHMETIC, type(node.op), node)
        left, right = _number(node.left, functions), _number(node.right, functions)
        return lambda sizes: compute(left(sizes), right(sizes))
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and len(node.args) > 1 and not node.keywords:
        function = _known(functions, node.func.id, node)
        arguments = [_number(argument, functions) for argument in node.args]
        return lambda sizes: functools.reduce(function, [argument(sizes) for argument in arguments])
    raise ValueError(f"{ast.unparse(node)!r} is neither a size nor arithmetic")


def _known(table: Mapping[Any, Any], key: Any, node: ast.expr) -> Any:
    if key not in table:
        raise ValueError(f"{ast.unparse(node)!r} is not arithmetic or a comparison of integers")
    return table[key]
