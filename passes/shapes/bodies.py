"""Output shapes of If, Loop and Scan, from shapes inside their bodies.

A state of a loop is assumed to keep the shape of its initial value. A step on this shape tells which axes of states
it changes; these get sizes of their own, and the step is taken again until it changes no other axis. The rest holds by
induction. An axis that was found to change once counts as changing, so that nested loops take at most as many steps as
their states have axes. Shapes declared inside bodies are not used: their names may mean other sizes outside.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import sympy

from moec.ir.graphs import carried_inputs, is_op, nested_graphs
from moec.passes.shapes.symbolic import Dims, Names, SymbolicValues, expression, is_named, is_named_size, to_shape

OPERATORS = ("If", "Loop", "Scan")
Annotate = Callable[[ir.Node, SymbolicValues, Names], bool]


class BodyShapes:
    """Shapes inside the bodies of nodes. ``annotate`` gives outputs of all other operators their shapes."""

    def __init__(self, names: Names, annotate: Annotate) -> None:
        self._names, self._annotate = names, annotate
        self._changing: dict[tuple[ir.Node, int], set[int]] = {}
        """Axes that steps change, by loop and place of the state."""
        self._unknown: set[tuple[ir.Node, int]] = set()
        """States whose number of axes steps change, or do not tell."""

    def outputs_of(self, node: ir.Node, values: SymbolicValues) -> list[Dims | None]:
        """The shapes of the node's outputs; None where the rank is not known. Values inside keep their shapes."""
        with _shapes_kept(node):
            return self._outputs(node, values)

    def declare_inputs(self, node: ir.Node) -> None:
        """Give inputs of a loop's body the types and shapes that they have in every step, where these are known."""
        body, values = node.attributes["body"].as_graph(), SymbolicValues()
        self.outputs_of(node, values)
        if _fits(node, body):
            self._declare(node, body, self._states(node))

    def _outputs(self, node: ir.Node, values: SymbolicValues) -> list[Dims | None]:
        shapes = self._of_if(node, values) if node.op_type == "If" else self._of_loop(node, values)
        return shapes if len(shapes) == len(node.outputs) else [None] * len(node.outputs)

    def _of_if(self, node: ir.Node, values: SymbolicValues) -> list[Dims | None]:
        condition = _known(values.of(node.inputs[0]))
        names = ("then_branch", "else_branch") if condition is None else (f"{'then' if condition else 'else'}_branch",)
        first, *others = (self._walk(node.attributes[name].as_graph(), node, SymbolicValues()) for name in names)
        return [self._either(*pair) for pair in zip(first, others[0], strict=False)] if others else first

    def _of_loop(self, node: ir.Node, values: SymbolicValues) -> list[Dims | None]:
        body, states = node.attributes["body"].as_graph(), len(carried_inputs(node))
        if not _fits(node, body):
            return []
        start, head = len(self._names.made), int(is_op(node, "Loop"))
        while True:
            before, inside = self._states(node), SymbolicValues()
            for value in body.inputs[1 + head :] if head else body.inputs:
                value.shape = None
            self._declare(node, body, before)
            after = self._walk(body, node, inside)[head:]
            if not self._widen(node, before, after[:states]):
                break
        of_step = set(self._names.made[start:])
        slices = [self._outside(dims, of_step) for dims in after[states:]]
        axes = list(node.attributes.get_ints("scan_output_axes", ()) or [0] * len(slices))
        length = _trips(node, body, values, inside) if head else _scanned_size(node)
        length = self._names.new() if slices and length is None else length
        stacked = (_stacked(*pair, length) for pair in zip(slices, axes, strict=False))
        return [*self._states(node), *stacked]

    def _walk(self, graph: ir.Graph, around: ir.Node, values: SymbolicValues) -> list[Dims | None]:
        """Infer all shapes of a body anew; return those of its outputs."""
        assert around.graph is not None
        graph.opset_imports.update(around.graph.opset_imports)
        for node in graph:
            for output in node.outputs:
                output.shape = None
            if is_op(node, *OPERATORS):
                set_shapes(node, self._outputs(node, values))
            else:
                self._annotate(node, values, self._names)
                set_shapes(node, [self._dims(output) for output in node.outputs])
        return [self._dims(value) for value in graph.outputs]

    def _states(self, node: ir.Node) -> list[Dims | None]:
        """The shapes of a loop's states before any step, with new names for sizes that steps change."""
        return [self._state(node, place, value) for place, value in enumerate(carried_inputs(node))]

    def _state(self, node: ir.Node, place: int, value: ir.Value | None) -> Dims | None:
        dims = None if value is None or (node, place) in self._unknown else self._dims(value)
        if dims is None:
            return None
        changing = self._changing.get((node, place), ())
        return [self._names.new() if axis in changing else size for axis, size in enumerate(dims)]

    def _widen(self, node: ir.Node, before: Sequence[Dims | None], after: Sequence[Dims | None]) -> bool:
        """Note what a step changes; return whether that is new."""
        is_new = False
        for place, (old, new) in enumerate(zip(before, after, strict=True)):
            if old is None:
                continue
            if new is None or len(new) != len(old):
                self._unknown.add((node, place))
                is_new = True
                continue
            differing = {axis for axis, pair in enumerate(zip(old, new, strict=True)) if not _equal(*pair)}
            is_new |= not differing <= self._changing.setdefault((node, place), set())
            self._changing[node, place] |= differing
        return is_new

    def _declare(self, node: ir.Node, body: ir.Graph, states: Sequence[Dims | None]) -> None:
        first = 2 if is_op(node, "Loop") else 0
        for value in body.inputs[:first]:  # the number of the step and the condition, which may have one axis
            value.shape = value.shape if value.shape is not None and value.shape.is_static() else ir.Shape(())
        scanned = len(node.inputs) - first - len(states)
        axes = list(node.attributes.get_ints("scan_input_axes", ()) or [0] * scanned)
        parts = zip(node.inputs[first + len(states) :], axes, strict=False)
        slices = [None if value is None else _without(self._dims(value), axis) for value, axis in parts]
        for inner, outer, dims in zip(body.inputs[first:], node.inputs[first:], [*states, *slices], strict=False):
            if inner.type is None and outer is not None:
                inner.type = outer.type
            if dims is not None:
                inner.shape = to_shape(dims)

    def _dims(self, value: ir.Value) -> Dims | None:
        """All sizes of a tensor, with new names for those that are not known."""
        if value.shape is None or not isinstance(value.type, ir.TensorType | None):
            return None
        sizes = [expression(dim) if is_named_size(dim) else None for dim in value.shape]
        return [self._names.new() if size is None else size for size in sizes]

    def _either(self, left: Dims | None, right: Dims | None) -> Dims | None:
        if left is None or right is None or len(left) != len(right):
            return None
        return [size if _equal(size, other) else self._names.new() for size, other in zip(left, right, strict=True)]

    def _outside(self, dims: Dims | None, of_step: set[sympy.Symbol]) -> Dims | None:
        """Sizes of a slice, with new names for those that depend on what a step names."""
        if dims is None:
            return None
        return [self._names.new() if size.free_symbols & of_step else size for size in dims]


def set_shapes(node: ir.Node, shapes: Sequence[Dims | None]) -> bool:
    """Give outputs without named sizes these shapes; return whether any got one."""
    missing = [
        (output, dims)
        for output, dims in zip(node.outputs, shapes, strict=True)
        if dims is not None and not is_named(output)
    ]
    for output, dims in missing:
        output.shape = to_shape(dims)
    return bool(missing)


def never_asks(body: ir.Graph) -> bool:
    """Whether each step of a Loop goes on if the one before did."""
    condition = body.outputs[0].producer() if body.outputs else None
    return len(body.inputs) > 1 and is_op(condition, "Identity") and condition.inputs[0] is body.inputs[1]


@contextlib.contextmanager
def _shapes_kept(node: ir.Node) -> Iterator[None]:
    kept = [(value, value.shape) for body in nested_graphs(node) for value in _values(body)]
    try:
        yield
    finally:
        for value, shape in kept:
            value.shape = shape


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    yield from graph.inputs
    for node in graph.all_nodes():
        yield from node.outputs
        for body in nested_graphs(node):
            yield from body.inputs


def _fits(node: ir.Node, body: ir.Graph) -> bool:
    """Whether a loop has the inputs and outputs that its body takes and makes."""
    states, head = len(carried_inputs(node)), int(is_op(node, "Loop"))
    return len(body.inputs) == len(node.inputs) >= 2 * head and len(body.outputs) - head == len(node.outputs) >= states


def _trips(node: ir.Node, body: ir.Graph, values: SymbolicValues, inside: SymbolicValues) -> sympy.Expr | None:
    """The number of steps of a Loop; None where it is not known, or a condition may end the loop."""
    trips = values.of(node.inputs[0])
    goes = node.inputs[1] is None or _known(values.of(node.inputs[1]))
    if trips is None or trips.size != 1 or not goes or not (never_asks(body) or _known(inside.of(body.outputs[0]))):
        return None
    count = sympy.sympify(trips.item())
    return count if count.is_nonnegative else None


def _scanned_size(node: ir.Node) -> sympy.Expr | None:
    """The size of the axes that a Scan reads; None where they are not known to be equal."""
    values = node.inputs[len(carried_inputs(node)) :]
    axes = list(node.attributes.get_ints("scan_input_axes", ()) or [0] * len(values))
    sizes = [_size(value, axis) for value, axis in zip(values, axes, strict=False)]
    first = sizes[0] if sizes else None
    return first if first is not None and all(size is not None and _equal(size, first) for size in sizes) else None


def _size(value: ir.Value | None, axis: int) -> sympy.Expr | None:
    shape = () if value is None or value.shape is None else value.shape
    return expression(shape[axis]) if -len(shape) <= axis < len(shape) and is_named_size(shape[axis]) else None


def _without(dims: Dims | None, axis: int) -> Dims | None:
    if dims is None or not -len(dims) <= axis < len(dims):
        return None
    return [size for place, size in enumerate(dims) if place != axis % len(dims)]


def _stacked(dims: Dims | None, axis: int, count: sympy.Expr) -> Dims | None:
    """The shape of ``count`` slices along a new axis."""
    if dims is None or not -len(dims) <= axis + (axis < 0) <= len(dims):
        return None
    place = axis % (len(dims) + 1)
    return [*dims[:place], count, *dims[place:]]


def _known(condition: Any) -> bool | None:
    """The only element of an array of booleans; None where it is not known."""
    item = condition.item() if condition is not None and condition.size == 1 else None
    return bool(item) if isinstance(item, bool | int | np.bool_) else None


def _equal(left: sympy.Expr, right: sympy.Expr) -> bool:
    return sympy.expand(left - right) == 0
