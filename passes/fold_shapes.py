"""Shape arithmetic: computed once, from the sizes of the graph's inputs, or not at all."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir
import sympy

from moec.ir.graphs import add_constant
from moec.passes.framework.base import Exactness, Report
from moec.passes.graph.edits import FreshNames, constant, is_op, replace_by_tensors, replace_value
from moec.passes.shapes.inference import allows_zero, annotate
from moec.passes.shapes.symbolic import COMPARING, Names, SymbolicValues, shape_of


@dataclasses.dataclass(frozen=True)
class FoldShapes:
    """Evaluates chains of integer operators over named sizes; alternates with shape inference to a fixed point.

    1. An integer or boolean value that turns out the same for every size becomes a constant: Shape of known sizes, the
       ``Where (Equal (target, -1), ones, target)`` idiom of Expand.
       Comparisons, quotients and casts of integers of 4 bytes stay that sizes up to 131,072 make wrap around.
    2. A Reshape target becomes a constant: a size that the input has in the same place is copied (0), and one size may
       be left to compute (-1) when all others are known and not 0; otherwise -1 would be undefined for empty tensors.
    3. Expand to the shape that the value has disappears. Expand to a size that only has to be the value's or 1 stays,
       because that is checked when the model runs.
    4. The remaining arithmetic is rebuilt in one form: ``Shape`` of one graph input's axis, ``Mul``, ``Add``,
       ``Concat``; each size once.
    5. Values get shapes over named sizes; a size that depends on data (NonZero) gets a name of its own.

    ::

        (float[T,32] x) => (float[T,4,8] y) <int64[1] zero = {0}, int64[2] parts = {4, 8}> {
           shape = Shape (x)
           tokens = Gather (shape, zero)
           target = Concat <axis = 0> (tokens, parts)
           y = Reshape (x, target)
        }
            fold-shapes,remove-dead-nodes ->
        (float[T,32] x) => (float[T,4,8] y) <int64[3] y_shape = {0, 4, 8}> {
           y = Reshape (x, y_shape)
        }
    """

    name: ClassVar[str] = "fold-shapes"
    exactness: ClassVar[Exactness] = "exact"

    rounds: int = 16

    def apply(self, model: ir.Model, report: Report) -> bool:
        from moec.ir import shapes

        changed = False
        for _ in range(self.rounds):
            shapes.infer(model)
            if not _fold(model.graph):
                break
            changed = True
        return changed


def _fold(graph: ir.Graph) -> bool:
    values = SymbolicValues()
    sizes, names = Names(graph), FreshNames(graph)
    rebuild = _Rebuild(graph, values, names)
    changed = False
    for node in list(graph):
        if node.graph is None:
            continue
        if _fold_constant(node, values) or _drop_expand(node, values):
            changed = True
            continue
        changed |= annotate(node, values, sizes)
        changed |= _fold_reshape_target(node, values, names)
        changed |= rebuild.inputs_of(node)
    return changed


def _fold_constant(node: ir.Node, values: SymbolicValues) -> bool:
    if len(node.outputs) != 1 or not node.outputs[0].uses() or node.outputs[0].is_graph_output():
        return False
    array = values.of(node.outputs[0])
    kind = _element_type(node)
    if array is None or kind is None or any(isinstance(item, sympy.Basic) for item in array.ravel()):
        return False
    replace_by_tensors(node, [ir.tensor(array.astype(kind.numpy()), dtype=kind)])
    return True


def _element_type(node: ir.Node) -> ir.DataType | None:
    if is_op(node, "Shape", "Size"):
        return ir.DataType.INT64
    return node.outputs[0].dtype


def _fold_reshape_target(node: ir.Node, values: SymbolicValues, names: FreshNames) -> bool:
    if not is_op(node, "Reshape") or constant(node.inputs[1]) is not None or allows_zero(node):
        return False
    target = values.of(node.inputs[1])
    source = shape_of(node.inputs[0]) if node.inputs[0] is not None else None
    if target is None or source is None:
        return False
    sizes = _constant_target(source, [sympy.sympify(size) for size in target.ravel()])
    if sizes is None:
        return False
    assert isinstance(node.graph, ir.Graph)
    name = names.new(f"{node.outputs[0].name}_shape")
    node.replace_input_with(1, add_constant(node.graph, ir.tensor(np.array(sizes, np.int64)), name))
    return True


def _constant_target(source: list[sympy.Expr], target: list[sympy.Expr]) -> list[int] | None:
    """The target with copies (0) and at most one size left open (-1); None when that cannot say it for all sizes."""
    sizes: list[int] = []
    for position, size in enumerate(target):
        if size.is_Integer and size != 0:
            sizes.append(int(size))
        elif position < len(source) and size == source[position]:
            sizes.append(0)
        else:
            sizes.append(-1)
    if -1 not in sizes:
        return sizes
    only_positive = all(size > 0 for size in sizes if size != -1)
    open_sizes = [size for size in target if not size.is_Integer or size == -1]
    return sizes if sizes.count(-1) == 1 and only_positive and len(open_sizes) == 1 else None


def _drop_expand(node: ir.Node, values: SymbolicValues) -> bool:
    if not is_op(node, "Expand"):
        return False
    source = node.inputs[0]
    target = values.of(node.inputs[1])
    dims = shape_of(source) if source is not None else None
    if target is None or dims is None or not _keeps(dims, list(target.ravel())):
        return False
    assert source is not None and node.graph is not None
    if not replace_value(node.outputs[0], source):
        return False
    node.graph.remove(node, safe=True)
    return True


def _keeps(dims: list[sympy.Expr], target: list[Any]) -> bool:
    """Whether Expand to ``target`` is known to change nothing: a size that merely has to be 1 or equal is left to the
    check when the model runs."""
    aligned = dims[len(dims) - len(target) :] if len(target) <= len(dims) else None
    return aligned is not None and all(size in (1, dim) for dim, size in zip(aligned, target, strict=True))


class _Rebuild:
    """Replaces inputs that are shape arithmetic by the same arithmetic in one form, made at the graph's start."""

    def __init__(self, graph: ir.Graph, values: SymbolicValues, names: FreshNames) -> None:
        self._graph, self._values, self._names = graph, values, names
        self._first: ir.Node | None = None  # known once it is needed: what was first may be folded away before
        self._made: dict[Any, ir.Value] = {}
        self._sources: dict[sympy.Expr, tuple[ir.Value, int]] = {}
        for value in graph.inputs:
            for axis, dim in enumerate(shape_of(value) or []):
                if dim.is_Symbol:
                    self._sources.setdefault(dim, (value, axis))

    def inputs_of(self, node: ir.Node) -> bool:
        """Rebuild the inputs of a node that is not itself shape arithmetic."""
        if all(self._values.of(output) is not None for output in node.outputs):
            return False
        changed = False
        for position, value in enumerate(node.inputs):
            if value is None or value.producer() is None or value.dtype not in (None, ir.DataType.INT64):
                continue
            array = self._values.of(value)
            if self._values.may_wrap(value) and node.op_type in (*COMPARING, "Cast"):
                continue
            if array is None or array.ndim > 1 or _is_canonical(value):
                continue
            replacement = self._value(array)
            if replacement is not None:
                node.replace_input_with(position, replacement)
                changed = True
        return changed

    def _value(self, array: np.ndarray) -> ir.Value | None:
        items = [sympy.sympify(item) for item in array.ravel()]
        if not items or not all(self._can_build(item) for item in items):
            return None
        key = (array.ndim, tuple(items))
        if key not in self._made:
            parts = [self._size(item) for item in items]
            result = parts[0] if len(parts) == 1 else self._node("Concat", parts, {"axis": 0}, (len(parts),))
            self._made[key] = self._node("Squeeze", [result], {}, ()) if array.ndim == 0 else result
        return self._made[key]

    def _can_build(self, item: Any) -> bool:
        if item.is_Symbol:
            return item in self._sources
        return bool(item.is_Integer) or ((item.is_Mul or item.is_Add) and all(map(self._can_build, item.args)))

    def _size(self, item: Any) -> ir.Value:
        """A tensor of one element."""
        if item in self._made:
            return self._made[item]
        if item.is_Integer:
            name = self._names.new(f"size_{item}")
            size = add_constant(self._graph, ir.tensor(np.array([int(item)], np.int64)), name)
        elif item.is_Symbol:
            value, axis = self._sources[item]
            size = self._node("Shape", [value], {"start": axis, "end": axis + 1}, (1,))
        else:
            operator = "Mul" if item.is_Mul else "Add"
            size, *rest = (self._size(term) for term in item.args)
            for other in rest:
                size = self._node(operator, [size, other], {}, (1,))
        self._made[item] = size
        return size

    def _node(
        self, op_type: str, inputs: list[ir.Value], attributes: dict[str, int], shape: tuple[int, ...]
    ) -> ir.Value:
        node = ir.node(op_type, inputs, attributes=attributes)
        node.outputs[0].type, node.outputs[0].shape = ir.TensorType(ir.DataType.INT64), ir.Shape(shape)
        self._first = self._first or next(iter(self._graph))
        self._graph.insert_before(self._first, node)
        return node.outputs[0]


def _is_canonical(value: ir.Value) -> bool:
    """Whether the value is already in the one form that :class:`_Rebuild` makes. Iterative, and looks at each value
    once: chains are as long as the model is deep, and may read a value twice at every step."""
    pending, seen = [value], {value}
    while pending:
        current = pending.pop()
        node = current.producer()
        if node is not None and is_op(node, "Concat", "Mul", "Add", "Squeeze"):
            if None in node.inputs:
                return False
            new = {value for value in node.inputs if value is not None} - seen
            seen |= new
            pending += new
        elif not (current.const_value is not None if node is None else _is_axis_of_input(node)):
            return False
    return True


def _is_axis_of_input(node: ir.Node) -> bool:
    """Whether the node reads a single size of an input of the graph."""
    if not is_op(node, "Shape"):
        return False
    source, start, end = node.inputs[0], node.attributes.get("start"), node.attributes.get("end")
    one_axis = start is not None and end is not None and end.as_int() == start.as_int() + 1
    return one_axis and source is not None and source.is_graph_input()
