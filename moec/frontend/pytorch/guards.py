"""Guards of a program that torch.export made, as conditions on the sizes of its inputs.

Tracing follows one path through a module. torch.export keeps the conditions of that path next to the graph: guards and
ranges of symbols in the shape environment (``torch.fx.experimental.symbolic_shapes``), and assertions on computed
values. The conversion to ONNX drops all of them.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from moec.common.errors import UnsupportedError
from moec.frontend.onnx.conditions import Conditions

if TYPE_CHECKING:
    import torch

_INFIX = {
    "Add": " + ",
    "Mul": "*",
    "FloorDiv": "//",
    "CleanDiv": "//",
    "Mod": " % ",
    "PythonMod": " % ",
    "Equality": " == ",
    "Unequality": " != ",
    "LessThan": " <= ",
    "StrictLessThan": " < ",
    "GreaterThan": " >= ",
    "StrictGreaterThan": " > ",
    "And": " and ",
    "Or": " or ",
}
_FUNCTIONS = {"Max": "max", "Min": "min"}
_LARGEST_POWER = 9


def known_inputs(program: torch.export.ExportedProgram) -> dict[str, Any]:
    """Map the names of a program's inputs to the tensors or numbers that it was traced with."""
    names = set(program.graph_signature.user_inputs)
    nodes = [node for node in program.graph.nodes if node.op == "placeholder" and node.name in names]
    return {node.name: node.meta.get("val") for node in nodes}


def conditions_of(
    program: torch.export.ExportedProgram, converted: torch.export.ExportedProgram, where: str
) -> Conditions:
    """Collect the conditions of ``program`` and of ``converted``, which the ONNX exporter made of it.

    Raises UnsupportedError, naming ``where``, for conditions on the values of inputs, and those that guards cannot
    express.
    """
    environment = _environment(converted)
    if environment is None:
        return Conditions()
    inputs = known_inputs(converted)
    sizes = {symbol for value in inputs.values() for dim in _dims(value) for symbol in dim.node.expr.free_symbols}
    values = {value.node.expr: name for name, value in inputs.items() if hasattr(value, "node")}
    said = [*_ranges([*environment.var_to_range.items(), *program.range_constraints.items()], environment)]
    said += [(condition, _text(_reduced(condition))) for condition in _conditions(environment)]
    for condition, text in said:
        if condition.free_symbols & values.keys() or (text is None and condition.free_symbols <= sizes):
            shown = text or str(condition)
            for symbol, name in values.items():
                shown = shown.replace(str(symbol), name)
            raise UnsupportedError(
                f"{where}: PyTorch exported it for {shown} only, a condition that the compiled model cannot check; "
                "remove the part of the module that decides so, or make the input it is about a constant"
            )
    guards = dict.fromkeys(text for condition, text in said if text is not None and condition.free_symbols <= sizes)
    unchecked = [*(f"{name} >= 0" for name in values.values()), *_assertions(program, environment)]
    return Conditions(tuple(guards), tuple(_fixed(inputs)), tuple(dict.fromkeys(unchecked)))


def drop_certain_guards(program: torch.export.ExportedProgram) -> None:
    """Drop guards that always hold: that the least of several sizes is no more than one of them. The conversion to ONNX
    runs guards as Python, and Python's ``min`` would fix the least size."""
    program._guards_code = [code for code in program._guards_code if not _says_least(code)]


def _says_least(code: str) -> bool:
    test = ast.parse(code.strip(), mode="eval").body
    if not isinstance(test, ast.Compare) or not isinstance(test.left, ast.Call) or len(test.ops) > 1:
        return False
    least = isinstance(test.left.func, ast.Name) and test.left.func.id == "min" and isinstance(test.ops[0], ast.LtE)
    return least and ast.unparse(test.comparators[0]) in map(ast.unparse, test.left.args)


def _environment(program: torch.export.ExportedProgram) -> Any:
    from torch._guards import detect_fake_mode

    mode = detect_fake_mode([node.meta.get("val") for node in program.graph.nodes])
    return None if mode is None else mode.shape_env


def _dims(value: Any) -> list[torch.SymInt]:
    """List the sizes of an input that are dynamic, or were to be."""
    return [size for size in getattr(value, "shape", ()) if not isinstance(size, int)]


def _ranges(ranges: list[tuple[Any, Any]], environment: Any) -> Iterator[tuple[Any, str]]:
    """Write the bounds of sizes or values as conditions: ``2 <= seq <= 16``."""
    from torch.utils._sympy.numbers import int_oo
    from torch.utils._sympy.value_ranges import ValueRanges, bound_sympy

    for expression, bounds in ranges:
        size = environment.replace(expression)
        if size.is_number:
            continue
        implied = ValueRanges(0, int_oo) if size.is_Symbol else bound_sympy(size, environment.var_to_range)
        least = f"{bounds.lower} <= " if bounds.lower > max(implied.lower, 0) else ""
        most = f" <= {bounds.upper}" if bounds.upper < implied.upper else ""
        if least or most:
            yield size, f"{least}{_text(size) or size}{most}"


def _conditions(environment: Any) -> Iterator[Any]:
    """Iterate over the guards that say more than ranges do."""
    import sympy
    from torch.utils._sympy.value_ranges import bound_sympy

    for guard in environment.guards:
        condition = environment.replace(guard.expr)
        bounds = bound_sympy(condition, environment.var_to_range)
        if not (bounds.is_singleton() and bounds.lower == sympy.true) and not _is_least(condition):
            yield condition


def _is_least(condition: Any) -> bool:
    """Whether a condition says that the least of several is no more than one of them."""
    import sympy

    if not isinstance(condition, sympy.LessThan):
        return False
    left, right = condition.args
    return type(left).__name__ == "Min" and right in left.args


def _reduced(condition: Any) -> Any:
    """Divide out common factors of both sides, for readability. The result may be stricter where a factor is zero."""
    import sympy

    if isinstance(condition, sympy.Ne):
        left, right = condition.args
        common = sympy.gcd(left, right)  # a size in it may be zero, and then both sides are equal
        return sympy.Ne(left / common, right / common, evaluate=False) if common.is_Integer and common else condition
    if not isinstance(condition, sympy.Eq):
        return condition
    left, right = condition.args
    if right == 0 and type(left).__name__ in ("Mod", "PythonMod"):
        dividend, divisor = left.args
        common = sympy.gcd(dividend, divisor)
        return sympy.Eq(type(left)(sympy.cancel(dividend / common), sympy.cancel(divisor / common)), 0)
    common = sympy.gcd(left, right)
    left, right = sympy.cancel(left / common), sympy.cancel(right / common)
    for whole, product in ((left, right), (right, left)):
        divisions = [atom for atom in product.atoms(sympy.Function) if type(atom).__name__ == "FloorDiv"]
        for division in divisions:
            if division.args[0] == whole and product == division * division.args[1]:
                return sympy.Eq(sympy.Mod(whole, division.args[1], evaluate=False), 0, evaluate=False)
    return sympy.Eq(left, right, evaluate=False)


def _text(expression: Any) -> str | None:
    """Write an expression in the syntax of :mod:`moec.common.guards`. Returns None where that cannot express it."""
    text = _nested(expression)
    return None if text is None else ast.unparse(ast.parse(text, mode="eval"))


def _nested(expression: Any) -> str | None:
    """Write an expression with every operation in parentheses. Returns None as :func:`_text`."""
    kind = type(expression).__name__
    if expression.is_Symbol or expression.is_Integer:
        return str(expression)
    if expression.is_Pow and expression.exp.is_Integer and 0 < expression.exp < _LARGEST_POWER:
        operands = [_nested(expression.base)] * int(expression.exp)
        kind = "Mul"
    else:
        operands = [_nested(argument) for argument in expression.args]
    if None in operands or kind not in {*_INFIX, *_FUNCTIONS}:
        return None
    if kind in _FUNCTIONS:
        return f"{_FUNCTIONS[kind]}({', '.join(map(str, operands))})"
    return f"({_INFIX[kind].join(map(str, operands))})"


def _fixed(inputs: dict[str, Any]) -> Iterator[str]:
    """Name the sizes that were to be dynamic and became numbers."""
    for name, value in inputs.items():
        for axis, size in enumerate(getattr(value, "shape", ())):
            if not isinstance(size, int) and size.node.expr.is_number:
                yield f"axis {axis} of {name!r} is {size.node.expr}"


def _assertions(program: torch.export.ExportedProgram, environment: Any) -> Iterator[str]:
    """Write the module's own assertions about numbers and tensors that it computes."""
    for symbol in program.range_constraints:
        for assertion in environment.deferred_runtime_asserts.get(symbol, ()):
            yield str(assertion.expr)
    for node in program.graph.nodes:
        if "_assert_async" in str(node.target):
            yield str(node.args[-1]) if isinstance(node.args[-1], str) else f"{node.args[0]} of {node.name}"
