"""Guards and sizes as expressions in C over the array ``s`` of a program's named sizes."""

from __future__ import annotations

import ast
from collections.abc import Mapping

_OPERATORS: dict[type, str] = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*"}
_DIVISIONS: dict[type, str] = {ast.FloorDiv: "floor_div_of", ast.Mod: "floor_mod_of"}
_COMPARISONS: dict[type, str] = {ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">=", ast.Eq: "==", ast.NotEq: "!="}


def size_in_c(text: str, places: Mapping[str, int]) -> str:
    """A size that :func:`moec.common.guards.parse_size` has parsed. ``places``: those of names in ``s``."""
    return _number(ast.parse(text, mode="eval").body, places)


def guard_in_c(text: str, places: Mapping[str, int]) -> str:
    """A guard that :func:`moec.common.guards.parse_guard` has parsed."""
    return _condition(ast.parse(text, mode="eval").body, places)


def _condition(node: ast.expr, places: Mapping[str, int]) -> str:
    if isinstance(node, ast.BoolOp):
        joint = " && " if isinstance(node.op, ast.And) else " || "
        return joint.join(f"({_condition(value, places)})" for value in node.values)
    assert isinstance(node, ast.Compare)
    numbers = [_number(operand, places) for operand in (node.left, *node.comparators)]
    tests = [_COMPARISONS[type(comparison)] for comparison in node.ops]
    return " && ".join(f"{left} {test} {right}" for left, test, right in zip(numbers, tests, numbers[1:], strict=False))


def _number(node: ast.expr, places: Mapping[str, int]) -> str:
    if isinstance(node, ast.Name):
        return f"s[{places[node.id]}]"
    if isinstance(node, ast.Constant):
        return f"INT64_C({node.value})"
    if isinstance(node, ast.UnaryOp):
        return f"(-{_number(node.operand, places)})"
    if isinstance(node, ast.BinOp):
        left, right = _number(node.left, places), _number(node.right, places)
        if type(node.op) in _DIVISIONS:
            return f"{_DIVISIONS[type(node.op)]}({left}, {right}, by_zero)"
        return f"({left} {_OPERATORS[type(node.op)]} {right})"
    assert isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    first, *others = (_number(argument, places) for argument in node.args)
    for other in others:
        first = f"{node.func.id}({first}, {other})"
    return first


def c_string(text: str) -> str:
    """A literal of C; characters beyond ASCII are UTF-8."""
    plain = (chr(byte) if 32 <= byte < 127 and byte not in b'"\\?' else f"\\{byte:03o}" for byte in text.encode())
    return f'"{"".join(plain)}"'
