"""Integer tensors of a graph as arrays of expressions over its symbolic sizes.

Exporters compute target shapes with chains such as Shape, Gather, Unsqueeze, Concat. On arrays of Python objects
(integers and sympy expressions) numpy itself does this arithmetic, so each operator here is about one line.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import sympy
from sympy.printing.precedence import PRECEDENCE
from sympy.printing.str import StrPrinter

from moec.common.errors import MoecError
from moec.common.names import node_name
from moec.ir.facts import MOST_SIZES
from moec.ir.sizes import expression as expression
from moec.ir.sizes import shape_of as shape_of
from moec.ir.sizes import size as size
from moec.passes.graph.edits import constant

Dims = list[Any]
"""One sympy expression for each dimension."""
ELEMENTS = 64
"""Longer integer tensors are data, not shapes."""
LONGEST = MOST_SIZES[4]
"""The largest size for which integers of 4 bytes are checked for overflow."""

_ATOM = PRECEDENCE["Atom"]


class _GuardPrinter(StrPrinter):
    """Prints whole numbers in the grammar of :mod:`moec.common.guards`. Methods have the names that sympy looks for."""

    def _print_floor(self, quotient: sympy.Expr) -> str:
        above, below = sympy.fraction(sympy.together(quotient.args[0]))
        return f"({self.parenthesize(above, _ATOM, strict=True)}//{self.parenthesize(below, _ATOM, strict=True)})"

    def _print_Mod(self, rest: sympy.Expr) -> str:  # noqa: N802
        above, below = rest.args
        return f"({self.parenthesize(above, _ATOM, strict=True)} % {self.parenthesize(below, _ATOM, strict=True)})"

    def _print_Pow(self, power: sympy.Pow, rational: bool = False) -> str:  # noqa: N802
        base, times = power.args
        if not isinstance(times, sympy.Integer) or times < 1:
            return str(super()._print_Pow(power, rational))
        return "*".join([self.parenthesize(base, _ATOM, strict=True)] * int(times))

    def _print_Min(self, least: sympy.Expr) -> str:  # noqa: N802
        return f"min({', '.join(map(self._print, least.args))})"

    def _print_Max(self, most: sympy.Expr) -> str:  # noqa: N802
        return f"max({', '.join(map(self._print, most.args))})"


def text_of(size: sympy.Expr) -> str:
    """A size as :func:`moec.common.guards.parse_size` and dimensions of ONNX IR read it."""
    return str(_GuardPrinter().doprint(size))


def to_shape(dims: Dims) -> ir.Shape:
    return ir.Shape([int(dim) if isinstance(dim, int | sympy.Integer) else text_of(dim) for dim in dims])


class Names:
    """New names for sizes that depend on data, such as how many elements are not zero."""

    def __init__(self, graph: ir.Graph) -> None:
        values = [*graph.inputs, *(value for node in graph for value in node.outputs)]
        self._taken = {str(dim) for value in values if value.shape is not None for dim in value.shape}
        self._count = 0
        self.made: list[sympy.Symbol] = []

    def new(self) -> sympy.Symbol:
        while f"count_{self._count}" in self._taken:
            self._count += 1
        self.made.append(size(f"count_{self._count}"))
        self._count += 1
        return self.made[-1]


def is_named(value: ir.Value) -> bool:
    """Whether every dimension is a number or has a name that is not just made up by ONNX's inference."""
    if value.shape is None:
        return False
    return all(map(is_named_size, value.shape))


def is_named_size(dim: int | ir.SymbolicDim) -> bool:
    """Whether a dimension is a number or has a name that is not just made up by ONNX's inference."""
    return isinstance(dim, int) or (dim.value is not None and "unk__" not in dim.value)


class SymbolicValues:
    """Evaluates integer and boolean values on demand and remembers them. Valid until the graph changes."""

    def __init__(self) -> None:
        self._known: dict[ir.Value, np.ndarray | None] = {}
        self._wrapping: set[ir.Value] = set()  # integers of 4 bytes that may wrap around, and what is made of them

    def of(self, value: ir.Value | None) -> np.ndarray | None:
        """An object array of integers, booleans and sympy expressions; None when it is not known."""
        if value is None:
            return None
        if value not in self._known:
            self._known[value] = None  # no way round: graphs have no cycles, this is for safety
            self._known[value] = self._evaluate(value)
        return self._known[value]

    def may_wrap(self, value: ir.Value) -> bool:
        """Whether a value is computed from integers of 4 bytes that may overflow."""
        self.of(value)
        return value in self._wrapping

    def _evaluate(self, value: ir.Value) -> np.ndarray | None:
        data = constant(value, ELEMENTS)
        if data is not None:
            return data.astype(object) if data.dtype.kind in "iub" else None
        node = value.producer()
        if node is None or node.domain != "" or value.index() != 0:
            return None
        if node.op_type in _OF_SHAPES:
            result = _OF_SHAPES[node.op_type](node)
        elif node.op_type in _OPERATORS:
            inputs = [self.of(value) for value in node.inputs]
            if any(operand is None for operand, value in zip(inputs, node.inputs, strict=True) if value is not None):
                return None
            result = _OPERATORS[node.op_type](node, *inputs)
        else:
            return None
        if result is not None and (
            not self._wrapping.isdisjoint(node.inputs) or (value.dtype == ir.DataType.INT32 and _may_wrap(result))
        ):
            self._wrapping.add(value)
            if node.op_type in COMPARING:
                return None
        return None if result is None or result.size > ELEMENTS or _overflows(result, value.dtype) else result


def _may_wrap(items: np.ndarray) -> bool:
    """Whether sizes up to :data:`LONGEST` make a number that 4 bytes do not hold."""
    sizes = [item for item in items.flat if isinstance(item, sympy.Basic)]
    longest = [item.subs(dict.fromkeys(item.free_symbols, LONGEST)) for item in sizes]
    return any(not (number.is_number and abs(number) <= np.iinfo(np.int32).max) for number in longest)


def _overflows(items: np.ndarray, dtype: ir.DataType | None) -> bool:
    """Whether a number, or one that a size is added to or multiplied by, is beyond the element type."""
    bounds = np.iinfo(np.int32 if dtype == ir.DataType.INT32 else np.int64)
    numbers = [item for item in items.flat if not isinstance(item, sympy.Basic)]
    factors = [number for item in items.flat if isinstance(item, sympy.Basic) for number in item.atoms(sympy.Integer)]
    return any(not bounds.min <= number <= bounds.max for number in numbers) or any(
        abs(number) > np.iinfo(np.int32).max for number in factors
    )


def _integer(node: ir.Node, name: str, default: int) -> int:
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.as_int()


def _array(items: Any) -> np.ndarray:
    return np.array(items, dtype=object)


def _shape(node: ir.Node) -> np.ndarray | None:
    source = node.inputs[0]
    if source is None or source.shape is None:
        return None
    rank = len(source.shape)
    start, end, _ = slice(_integer(node, "start", 0), _integer(node, "end", rank)).indices(rank)
    dims = [expression(dim) for dim in list(source.shape)[start:end]]
    return None if any(dim is None for dim in dims) else _array([_plain(dim) for dim in dims])


def _size(node: ir.Node) -> np.ndarray | None:
    dims = shape_of(node.inputs[0]) if node.inputs[0] is not None else None
    return None if dims is None else _array(_plain(sympy.prod(dims)))


def _plain(item: Any) -> Any:
    """Python's own integers and booleans where the value is known."""
    if isinstance(item, sympy.Integer):
        return int(item)
    if item in (sympy.true, sympy.false):
        return bool(item)
    return item


def _each(function: Callable[..., Any]) -> Callable[..., np.ndarray | None]:
    """Lift a function of expressions to arrays; an element it cannot decide makes the whole array unknown."""

    def lifted(node: ir.Node, *arrays: np.ndarray) -> np.ndarray | None:
        broadcast = np.broadcast_arrays(*arrays)
        flat = [function(*items) for items in zip(*(array.ravel() for array in broadcast), strict=True)]
        if any(item is None for item in flat):
            return None
        result = np.empty(len(flat), dtype=object)
        result[:] = [_plain(item) for item in flat]
        return result.reshape(broadcast[0].shape)

    return lifted


def _equal(left: Any, right: Any) -> bool | None:
    difference = sympy.sympify(left) - sympy.sympify(right)
    return difference.is_zero


def _less(left: Any, right: Any) -> bool | None:
    return (sympy.sympify(left) - sympy.sympify(right)).is_negative


def _where(condition: Any, left: Any, right: Any) -> Any:
    return (left if condition else right) if isinstance(condition, bool | np.bool_) else None


def _divide(left: Any, right: Any) -> Any:
    """ONNX divides integers towards zero, which is the floor for sizes."""
    left, right = sympy.sympify(left), sympy.sympify(right)
    if right.is_zero is not False or not left.is_nonnegative or not right.is_positive:
        return None
    quotient = sympy.cancel(left / right)
    if quotient.is_integer:
        return quotient
    return sympy.floor(left / right)


def _remainder(left: Any, right: Any) -> Any:
    left, right = sympy.sympify(left), sympy.sympify(right)
    return sympy.Mod(left, right) if left.is_nonnegative and right.is_positive else None


def _gather(node: ir.Node, data: np.ndarray, indices: np.ndarray) -> np.ndarray | None:
    axis = _integer(node, "axis", 0)
    if any(not isinstance(index, int) or not -data.shape[axis] <= index < data.shape[axis] for index in indices.flat):
        return None
    taken = np.take(data, indices.astype(np.int64), axis)
    return taken if isinstance(taken, np.ndarray) else _array(taken)


def _slice(node: ir.Node, data: np.ndarray, *bounds: np.ndarray | None) -> np.ndarray | None:
    if data.ndim != 1 or any(bound is not None and not isinstance(bound.ravel()[0], int) for bound in bounds):
        return None
    start, end, step = (
        int(bounds[index].ravel()[0]) if len(bounds) > index and bounds[index] is not None else default  # type: ignore[union-attr]
        for index, default in ((0, 0), (1, 0), (3, 1))
    )
    return data[start:end:step] if step > 0 else None


def _reshape(node: ir.Node, data: np.ndarray, target: np.ndarray) -> np.ndarray | None:
    if any(not isinstance(size, int) or size == 0 for size in target.ravel()):
        return None
    return data.reshape([int(size) for size in target.ravel()])


def _squeeze(node: ir.Node, data: np.ndarray, axes: np.ndarray | None = None) -> np.ndarray:
    return data.squeeze(None if axes is None else tuple(int(axis) for axis in axes.ravel()))


def _unsqueeze(node: ir.Node, data: np.ndarray, axes: np.ndarray) -> np.ndarray:
    return np.expand_dims(data, tuple(int(axis) for axis in axes.ravel()))


def _cast(node: ir.Node, data: np.ndarray) -> np.ndarray | None:
    to = ir.DataType(node.attributes["to"].as_int())
    if to == ir.DataType.BOOL:
        return _each(lambda item: None if (zero := _equal(item, 0)) is None else not zero)(node, data)
    if to in (ir.DataType.INT64, ir.DataType.INT32):
        return _each(lambda item: int(item) if isinstance(item, bool) else item)(node, data)
    return None


def _constant_of_shape(node: ir.Node, shape: np.ndarray) -> np.ndarray | None:
    fill = node.attributes.get("value")
    fill_value = fill.as_tensor().numpy().ravel()[0] if fill is not None else np.float32(0)
    if np.asarray(fill_value).dtype.kind not in "iub" or any(not isinstance(size, int) for size in shape.ravel()):
        return None
    sizes = [int(size) for size in shape.ravel()]
    if np.prod(sizes, dtype=float) > ELEMENTS or any(size < 0 for size in sizes):
        return None
    return np.full(sizes, fill_value).astype(object)


def _expand(node: ir.Node, data: np.ndarray, shape: np.ndarray) -> np.ndarray | None:
    if any(not isinstance(size, int) for size in shape.ravel()):
        return None
    target = tuple(int(size) for size in shape.ravel())
    try:
        sizes = np.broadcast_shapes(data.shape, target)
    except ValueError as error:
        raise MoecError(
            f"node {node_name(node)!r} (Expand) expands sizes {list(data.shape)} to {list(target)}; expected sizes "
            "from 0 up, equal ones, or a 1"
        ) from error
    return np.broadcast_to(data, sizes) if np.prod(sizes, dtype=float) <= ELEMENTS else None


def _reduce(combine: Callable[[Any], Any]) -> Callable[..., np.ndarray | None]:
    def reduced(node: ir.Node, data: np.ndarray, axes: np.ndarray | None = None) -> np.ndarray | None:
        if data.ndim != 1 or (axes is None and _integer(node, "noop_with_empty_axes", 0)):
            return None
        total = _array(_plain(combine([sympy.sympify(item) for item in data])))
        return total.reshape(1) if _integer(node, "keepdims", 1) else total

    return reduced


def _range(node: ir.Node, start: np.ndarray, limit: np.ndarray, delta: np.ndarray) -> np.ndarray | None:
    bounds = [bound.ravel()[0] for bound in (start, limit, delta)]
    if any(not isinstance(bound, int) for bound in bounds) or bounds[2] == 0:
        return None
    numbers = range(*bounds)
    return None if numbers[ELEMENTS:] else _array(list(numbers))  # their len may be beyond Python's


COMPARING = frozenset({"Div", "Equal", "Greater", "Less", "Max", "Min", "Mod"})
"""Operators whose results are others where an operand wrapped around; as a size such a one is of no use either way."""
_OF_SHAPES: dict[str, Callable[[ir.Node], np.ndarray | None]] = {"Shape": _shape, "Size": _size}

_OPERATORS: dict[str, Callable[..., np.ndarray | None]] = {
    "Add": _each(lambda left, right: sympy.sympify(left) + right),
    "Cast": _cast,
    "Concat": lambda node, *parts: np.concatenate(parts, axis=_integer(node, "axis", 0)),
    "ConstantOfShape": _constant_of_shape,
    "Div": _each(_divide),
    "Equal": _each(_equal),
    "Expand": _expand,
    "Gather": _gather,
    "Greater": _each(lambda left, right: _less(right, left)),
    "Identity": lambda node, data: data,
    "Less": _each(_less),
    "Max": _each(lambda *items: sympy.Max(*items)),
    "Min": _each(lambda *items: sympy.Min(*items)),
    "Mod": _each(_remainder),
    "Mul": _each(lambda left, right: sympy.expand(sympy.sympify(left) * right)),
    "Neg": _each(lambda item: -sympy.sympify(item)),
    "Not": _each(lambda item: (not item) if isinstance(item, bool | np.bool_) else None),
    "Range": _range,
    "ReduceProd": _reduce(sympy.prod),
    "ReduceSum": _reduce(sum),
    "Reshape": _reshape,
    "Slice": _slice,
    "Squeeze": _squeeze,
    "Sub": _each(lambda left, right: sympy.sympify(left) - right),
    "Unsqueeze": _unsqueeze,
    "Where": _each(_where),
}
