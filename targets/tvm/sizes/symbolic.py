"""Integers known at compile time as expressions over the graph's symbolic sizes.

Exported graphs compute shapes with ordinary operators (Shape, Gather, Concat, Where, ...). Lowering follows those
chains on :class:`StaticValue` values instead of emitting code for them, so that dynamic sizes keep their meaning. A
symbolic size may be 0, so the analyzer knows sizes only as non-negative.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import tvm
import tvm_ffi
from tvm import tirx

from moec.common.budgets import SIZE_OPERATORS

MAXIMUM_SIZE = 1 << 40
FAR = 1 << 41
"""Magnitude to which integers read at run time are clamped: positions further from a tensor's ends make no difference,
and sums with sizes do not overflow."""
MAXIMUM_KNOWN_ELEMENTS = 256


@dataclasses.dataclass(frozen=True)
class StaticValue:
    """An integer or bool tensor whose elements are Python numbers or int64 expressions (``elements`` has dtype
    object)."""

    elements: np.ndarray
    dtype: str

    @staticmethod
    def of(elements: Any, dtype: str = "int64") -> StaticValue:
        """A static value from nested sequences or an array of numbers and expressions."""
        return StaticValue(_object_array(elements), dtype)

    @property
    def numbers(self) -> np.ndarray | None:
        """The elements as an ordinary array if none is symbolic."""
        if all(isinstance(element, (int, bool)) for element in self.elements.flat):
            return self.elements.astype(self.dtype)
        return None


def _object_array(elements: Any) -> np.ndarray:
    """The elements as an array of Python numbers and expressions.

    A numpy scalar has a type that TVM would mistake for another; numpy's functions return one in place of an array
    without axes."""
    if isinstance(elements, np.ndarray) and elements.dtype == object:
        return np.frompyfunc(_plain, 1, 1)(elements) if elements.ndim else _object_array(elements[()])
    if isinstance(elements, np.ndarray | np.generic):
        array = np.empty(elements.shape, object)
        array[...] = elements.tolist()
        return array
    if not isinstance(elements, (list, tuple)):
        array = np.empty((), object)
        array[()] = _plain(elements)
        return array
    array = np.empty(len(elements), object)
    for position, element in enumerate(elements):
        array[position] = _plain(element)
    return array


def _plain(element: Any) -> Any:
    return element.item() if isinstance(element, np.generic) else element


class Sizes:
    """Arithmetic on sizes: Python ints stay ints, everything else is an int64 expression kept in simplest form."""

    def __init__(self) -> None:
        self._analyzer = tvm.sym.Analyzer()
        self._names: dict[str, int] = {}
        self._sizes: set[tirx.Var] = set()
        self._one_less = self.variable("one_less")
        self._name: Callable[[tirx.Expr], tirx.Var] | None = None
        self._named: dict[tvm_ffi.StructuralKey, tirx.Var] = {}

    def variable(self, name: str) -> tirx.Var:
        """A new symbolic size of 0 or more."""
        variable = tirx.Var(self._unique(name), "int64")
        self._analyzer.bind(variable, tvm.ir.Range(_int64(0), _int64(MAXIMUM_SIZE)))
        self._sizes.add(variable)
        return variable

    def integer(self, name: str) -> tirx.Var:
        """A new symbolic integer, which may be negative, such as a position or an element of a target shape."""
        variable = tirx.Var(self._unique(name), "int64")
        self._analyzer.bind(variable, tvm.ir.Range(_int64(-FAR), _int64(2 * FAR + 1)))
        return variable

    def _unique(self, name: str) -> str:
        clean = "".join(letter if letter.isalnum() else "_" for letter in name) or "size"
        count = self._names[clean] = self._names.get(clean, 0) + 1
        return clean if count == 1 else f"{clean}_{count}"

    def simplify(self, size: Any) -> Any:
        """An int if the size is a number, else a simplified expression."""
        if isinstance(size, (int, bool)):
            return size
        if isinstance(size, (np.integer, np.bool_)):
            return size.item()
        return self._within_budget(self._simplified(size))

    def _simplified(self, size: tirx.Expr) -> Any:
        simplified = self._analyzer.simplify(size)
        return int(simplified) if isinstance(simplified, tirx.IntImm) else simplified

    @contextlib.contextmanager
    def naming(self, name: Callable[[tirx.Expr], tirx.Var]) -> Iterator[None]:
        """Context in which a size beyond the budget :data:`SIZE_OPERATORS` becomes a variable made by ``name``.

        The program computes the variable; equal sizes share one."""
        self._name = name
        try:
            yield
        finally:
            self._name = None

    def _within_budget(self, size: Any) -> Any:
        if self._name is None or isinstance(size, (int, tirx.Var)) or str(size.ty.dtype) != "int64":
            return size
        if SIZE_OPERATORS.allows(operators_in(size)):
            return size
        key = tvm_ffi.StructuralKey(size)
        if key not in self._named:
            self._named[key] = self._name(size)
        return self._named[key]

    def named_like(self, size: tirx.Expr) -> tirx.Var:
        """A new variable in place of ``size``: a size if that is known to be 0 or more, else an integer."""
        return self.variable("size") if self._proves(size >= 0) else self.integer("size")

    def expression(self, size: Any) -> tirx.Expr:
        return _int64(size) if isinstance(size, (int, bool)) else size

    def equal(self, left: Any, right: Any) -> bool | None:
        """Whether two sizes are equal for all values of the variables (True), for none (False), or for some (None)."""
        if isinstance(left, int) and isinstance(right, int):
            return left == right
        difference = self._simplified(self.expression(left) - self.expression(right))
        if isinstance(difference, int):
            return difference == 0
        if self._proves(difference > 0) or self._proves(difference < 0):
            return False
        return True if self._is_zero_by_cases(difference) else None

    def _is_zero_by_cases(self, difference: tirx.Expr) -> bool:
        """Whether a difference over one size is 0 both where the size is and where it is not: ``min(T, 1)`` is decided
        by that."""
        variables = tirx.analysis.undefined_vars(difference)
        if len(variables) != 1 or variables[0] not in self._sizes:
            return False
        cases = (_int64(0), self._one_less + 1)
        return all(
            self._simplified(tvm_ffi.structural_map(difference, (tirx.Var, lambda _, c=case: c))) == 0 for case in cases
        )

    def same(self, left: Any, right: Any) -> Any:
        """The condition that two sizes are equal; a bool where that is known."""
        answer = self.equal(left, right)
        return tirx.EQ(self.expression(left), self.expression(right)) if answer is None else answer

    def less(self, left: Any, right: Any) -> bool | None:
        """Whether ``left < right`` for all values of the variables, for none, or for some (None)."""
        if isinstance(left, int) and isinstance(right, int):
            return left < right
        difference = self.expression(self._simplified(self.expression(left) - self.expression(right)))
        if self._proves(difference < 0):
            return True
        return False if self._proves(difference >= 0) else None

    def decide(self, condition: Any) -> bool | None:
        """Whether the condition holds for all values of the variables (True), for none (False), or for some (None)."""
        if isinstance(condition, bool):
            return condition
        if self._proves(condition):
            return True
        return False if self._proves(tirx.Not(condition)) else None

    def _proves(self, condition: Any) -> bool:
        return condition if isinstance(condition, bool) else bool(self._analyzer.can_prove(condition))

    def product(self, sizes: Iterable[Any]) -> Any:
        result: Any = 1
        for size in sizes:
            result = size * result
        return self.simplify(result)

    def quotient(self, numerator: Sequence[Any], denominator: Sequence[Any]) -> Any:
        """``product(numerator) / product(denominator)``, rounded down; of 0 / 0 what it is for other sizes.

        Factors that occur on both sides cancel first, so ``[B, T, 64] / [B, T, 4]`` is 16 even where B is 0; that is
        what makes the -1 of a Reshape independent of a size being 0.
        """
        (above, symbols_above), (below, symbols_below) = self.cancelled(numerator, denominator)
        divisor = self.product([below, *symbols_below])
        dividend = self.product([above, *symbols_above])
        if isinstance(divisor, int):
            return dividend if divisor == 1 else self.simplify(_floordiv(dividend, divisor)) if divisor else 0
        return self.simplify(_floordiv(dividend, tirx.max(divisor, _int64(1))))

    def cancelled(
        self, left: Sequence[Any], right: Sequence[Any]
    ) -> tuple[tuple[int, list[Any]], tuple[int, list[Any]]]:
        """Both products without their common factors, each as a number and a list of symbolic factors."""
        left_numbers, left_symbols = self._factors(left)
        right_numbers, right_symbols = self._factors(right)
        remaining = []
        for symbol in left_symbols:
            match = next((i for i, other in enumerate(right_symbols) if self.equal(symbol, other)), None)
            if match is None:
                remaining.append(symbol)
            else:
                right_symbols.pop(match)
        left_number, right_number = math.prod(left_numbers), math.prod(right_numbers)
        common = math.gcd(left_number, right_number) or 1
        return (left_number // common, remaining), (right_number // common, right_symbols)

    def _factors(self, sizes: Sequence[Any]) -> tuple[list[int], list[Any]]:
        numbers: list[int] = []
        symbols: list[Any] = []
        pending = list(sizes)
        while pending:
            size = pending.pop()
            if isinstance(size, (int, tirx.IntImm)):
                numbers.append(int(size))
            elif isinstance(size, tirx.Mul):
                pending += [size.a, size.b]
            else:
                symbols.append(size)
        return numbers, symbols

    def at_least(self, size: Any, low: Any) -> Any:
        """``max(size, low)``."""
        below = self.less(size, low)
        return low if below else size if below is False else self.simplify(_maximum(size, low))

    def at_most(self, size: Any, high: Any) -> Any:
        """``min(size, high)``."""
        above = self.less(high, size)
        return high if above else size if above is False else self.simplify(_minimum(size, high))

    def clamp(self, size: Any, low: Any, high: Any) -> Any:
        """``min(max(size, low), high)``."""
        return self.at_most(self.at_least(size, low), high)


def operators_in(size: tirx.Expr) -> int:
    """Number of operators in an expression."""
    count = 0

    def add(part: tvm.ir.Expr) -> None:
        nonlocal count
        count += not isinstance(part, (tirx.Var, tirx.IntImm))

    tvm_ffi.structural_walk(size, [(tvm.ir.Expr, lambda part: add(part))])
    return count


def _int64(number: int) -> tirx.IntImm:
    return tirx.IntImm("int64", int(number))


def _as_expression(size: Any) -> tirx.Expr:
    return _int64(size) if isinstance(size, (int, bool)) else size


def _maximum(left: Any, right: Any) -> tirx.Expr:
    return tirx.max(_as_expression(left), _as_expression(right))


def _minimum(left: Any, right: Any) -> tirx.Expr:
    return tirx.min(_as_expression(left), _as_expression(right))


def _floordiv(left: Any, right: Any) -> Any:
    if isinstance(left, int) and isinstance(right, int):
        return left // right
    return tirx.floordiv(_as_expression(left), _as_expression(right))


def _floormod(left: Any, right: Any) -> tirx.Expr:
    return tirx.floormod(_as_expression(left), _as_expression(right))


def _truncated_division(left: Any, right: Any) -> Any:
    if isinstance(left, int) and isinstance(right, int):
        return int(left / right) if abs(left) < 2**52 else (abs(left) // abs(right)) * (1 if left * right >= 0 else -1)
    return tirx.truncdiv(_as_expression(left), _as_expression(right))


def _either(left: Any, right: Any, numbers: Callable[[int, int], int], symbols: Callable[[Any, Any], Any]) -> Any:
    if isinstance(left, int) and isinstance(right, int):
        return numbers(left, right)
    return symbols(left, right)


def combined(sizes: Sizes, name: str, dtype: str, left: Any, right: Any) -> Any:
    """The result of one of ``INTEGER_OPERATORS`` for elements of ``dtype``; numbers wrap around at its bits.

    None where the program has to compute it: division by an operand that may be negative, a remainder by one that may
    be 0, and sizes combined with numbers that may overflow."""
    if left is None or right is None:
        return None
    if name == "Div" and not isinstance(right, int) and sizes.less(left, 0) is False and sizes.less(right, 0) is False:
        return sizes.quotient([left], [right])  # ONNX defines no result for 0, so the formula for other sizes holds
    if name in ("Div", "Mod") and not sizes.less(0, right):
        return None
    numbers = [side for side in (left, right) if isinstance(side, int)]
    if len(numbers) == 2:
        bits = 8 * np.dtype(dtype).itemsize
        lowest = 0 if dtype.startswith("u") else -(1 << bits - 1)
        return (INTEGER_OPERATORS[name](left, right) - lowest) % (1 << bits) + lowest
    if any(abs(number) > FAR for number in numbers):
        return None
    return sizes.simplify(INTEGER_OPERATORS[name](left, right))


INTEGER_OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    "Add": lambda left, right: left + right,
    "Sub": lambda left, right: left - right,
    "Mul": lambda left, right: left * right,
    "Div": _truncated_division,
    "Mod": lambda left, right: _either(left, right, int.__mod__, _floormod),
    "Max": lambda left, right: _either(left, right, max, _maximum),
    "Min": lambda left, right: _either(left, right, min, _minimum),
}
"""ONNX integer operators that are followed at compile time; :func:`combined` says by what they divide."""
