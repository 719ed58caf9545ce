"""Reading of the steps that one expert applies to its rows, from the nodes between x and its result."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence

import numpy as np
import onnx_ir as ir

from moec.common.names import node_name
from moec.ir.dialect import LinearSpec, ProductSpec, is_moec, spec_of
from moec.ir.last_tokens import ALONG, ELEMENTWISE, NORMALIZING
from moec.passes.raising.block import Block
from moec.passes.raising.failure import NotUnderstoodError
from moec.passes.raising.row_steps import PRODUCT, ROWS, Operand, Step, whole
from moec.passes.raising.weights import EntryPlace

MOST_STEPS = 256
SHAPING = frozenset({"Expand", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})
SELECTING = frozenset({"Compress", "Gather", "GatherElements", "GatherND", "Slice", "Split"})
REDUCING = frozenset({"ReduceL1", "ReduceL2", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum", "ReduceSumSquare"})


def steps_of(block: Block, result: ir.Value) -> list[Step]:
    """The steps from rows of x to the rows of an expert's result; the last step computes these.

    Raises NotUnderstoodError for a node that does not treat each row alone, or that has no rule.
    """
    return RowReading(block).steps_to(result)


class RowReading:
    """Steps by the values that hold their results."""

    def __init__(self, block: Block) -> None:
        self.block = block
        self.steps = [Step("Rows", (), dtype=block.x.dtype, width=block.d)]
        self._known: dict[ir.Value, int] = {block.x: ROWS}

    def steps_to(self, result: ir.Value) -> list[Step]:
        """The steps to the rows of a value; the last step computes these."""
        last = self.read(result)
        if last != len(self.steps) - 1:
            self.add("Identity", (last,), result)
        return self.steps

    def read(self, value: ir.Value | None) -> int:
        """The step that computes the rows of a value."""
        if value is not None and value in self._known:
            return self._known[value]
        node = None if value is None else value.producer()
        if value is None or node is None or value not in self.block.from_x or len(self.steps) > MOST_STEPS:
            raise NotUnderstoodError("its experts read more than tokens and constants")
        self._known[value] = self._rule(node)(node, value)
        return self._known[value]

    def _rule(self, node: ir.Node) -> Callable[[ir.Node, ir.Value], int]:
        if is_moec(node, "Linear"):
            return self._linear
        operator = node.op_type if not node.domain else ""
        if operator in SELECTING and any(v in self.block.selected for v in node.inputs[1:]):
            return self._selecting
        for operators, rule in (
            (ELEMENTWISE, self._elementwise),
            (SHAPING, self._shaping),
            (NORMALIZING, self._normalizing),
            (ALONG, self._along),
            (REDUCING, self._reducing),
            ({"MatMul"}, self._matmul),
            ({"Gemm"}, self._gemm),
            ({"Slice"}, self._slice),
            ({"Split"}, self._split),
            ({"Concat"}, self._concat),
        ):
            if operator in operators:
                return rule
        raise not_by_rows(node)

    def add(self, operator: str, inputs: Sequence[Operand], value: ir.Value, **more: object) -> int:
        width = value.shape[-1] if value.shape is not None and len(value.shape) else None
        fixed_width = width if isinstance(width, int) else None
        self.steps.append(Step(operator, tuple(inputs), dtype=value.dtype, width=fixed_width, **more))  # type: ignore[arg-type]
        return len(self.steps) - 1

    def _elementwise(self, node: ir.Node, value: ir.Value) -> int:
        inputs = [self._row_operand(node, operand) for operand in node.inputs]
        return self.add(node.op_type, inputs, value, attributes=_attributes(node))

    def _row_operand(self, node: ir.Node, operand: ir.Value | None) -> Operand:
        """Rows, or a constant that is combined with each row."""
        if operand is None:
            return None
        if not self.block.dataflow.constant(operand):
            return self.read(operand)
        shape = self.block.dataflow.shape(operand)
        if math.prod(shape) == 1:
            return whole(operand, ())
        if math.prod(shape) != shape[-1]:
            raise not_by_rows(node)
        return whole(operand, shape[-1:])

    def _shaping(self, node: ir.Node, value: ir.Value) -> int:
        """A change of the axes in front of the rows, which leaves the rows as they are."""
        data = node.inputs[0]
        if data is None or data.shape is None or value.shape is None:
            raise not_by_rows(node)
        if node.op_type == "Transpose":
            rank = len(data.shape)
            if node.attributes.get_ints("perm", list(range(rank))[::-1])[-1] != rank - 1:
                raise not_by_rows(node)
        elif not isinstance(data.shape[-1], int) or data.shape[-1] != value.shape[-1]:
            raise not_by_rows(node)
        return self.read(data)

    def _selecting(self, node: ir.Node, value: ir.Value) -> int:
        """A selection of rows by the router."""
        data = node.inputs[0]
        if data is None or value.shape is None or data.shape is None or data.shape[-1] != value.shape[-1]:
            raise not_by_rows(node)
        return self.read(data)

    def _normalizing(self, node: ir.Node, value: ir.Value) -> int:
        _check_last(node, node.attributes.get_int("axis", -1))
        inputs = [self.read(node.inputs[0]), *(self._row_operand(node, v) for v in node.inputs[1:])]
        if any(output.uses() for output in node.outputs[1:]) or any(isinstance(v, int) for v in inputs[1:]):
            raise not_by_rows(node)
        return self.add(node.op_type, inputs, value, attributes=_attributes(node, axis=-1))

    def _along(self, node: ir.Node, value: ir.Value) -> int:
        _check_last(node, node.attributes.get_int("axis", -1))
        return self.add(node.op_type, [self.read(node.inputs[0])], value, attributes=_attributes(node, axis=-1))

    def _reducing(self, node: ir.Node, value: ir.Value) -> int:
        (axis,) = self._integers(node, 1) or (0,)
        _check_last(node, axis)
        if node.attributes.get_int("keepdims", 1) != 1:
            raise not_by_rows(node)
        return self.add(node.op_type, [self.read(node.inputs[0]), (-1,)], value, attributes=_attributes(node))

    def _slice(self, node: ir.Node, value: ir.Value) -> int:
        starts, ends = self._integers(node, 1), self._integers(node, 2)
        axes = self._integers(node, 3) or tuple(range(len(starts)))
        steps = self._integers(node, 4) or (1,) * len(starts)
        if len(axes) != 1:
            raise not_by_rows(node)
        _check_last(node, axes[0])
        return self.add("Slice", [self.read(node.inputs[0]), starts, ends, (-1,), steps], value)

    def _split(self, node: ir.Node, value: ir.Value) -> int:
        _check_last(node, node.attributes.get_int("axis", 0))
        widths = [output.shape[-1] if output.shape is not None else None for output in node.outputs]
        place = list(node.outputs).index(value)
        before = [width for width in widths[: place + 1] if isinstance(width, int)]
        if len(before) != place + 1:
            raise not_by_rows(node)
        start, end = sum(before[:-1]), sum(before)
        return self.add("Slice", [self.read(node.inputs[0]), (start,), (end,), (-1,), (1,)], value)

    def _concat(self, node: ir.Node, value: ir.Value) -> int:
        _check_last(node, node.attributes.get_int("axis", 0))
        inputs = [self.read(operand) for operand in node.inputs]
        return self.add("Concat", inputs, value, attributes=(("axis", -1),))

    def _matmul(self, node: ir.Node, value: ir.Value) -> int:
        return self.add(PRODUCT, [self.read(node.inputs[0]), self._matrix(node, node.inputs[1]), None], value)

    def _gemm(self, node: ir.Node, value: ir.Value) -> int:
        factors = [node.attributes.get_float(name, 1.0) for name in ("alpha", "beta")]
        if factors != [1.0, 1.0] or node.attributes.get_int("transA", 0):
            raise not_by_rows(node)
        weight = self._matrix(node, node.inputs[1])
        weight = weight.turned if node.attributes.get_int("transB", 0) else weight
        return self._biased(node, weight, value, ProductSpec())

    def _linear(self, node: ir.Node, value: ir.Value) -> int:
        spec = spec_of(node, LinearSpec)
        if spec.activation != "identity":
            raise not_by_rows(node)
        weight = self._matrix(node, node.inputs[1])
        product = ProductSpec(arithmetic=spec.arithmetic, activation_group=spec.activation_group)
        return self._biased(node, weight if spec.transposed else weight.turned, value, product)

    def _biased(self, node: ir.Node, weight: EntryPlace, value: ir.Value, product: ProductSpec) -> int:
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        dataflow, width = self.block.dataflow, weight.shape[1:]
        if bias is not None and (not dataflow.constant(bias) or math.prod(dataflow.shape(bias)) != width[0]):
            raise not_by_rows(node)
        added = None if bias is None else whole(bias, width)
        return self.add(PRODUCT, [self.read(node.inputs[0]), weight, added], value, product=product)

    def _matrix(self, node: ir.Node, value: ir.Value | None) -> EntryPlace:
        dataflow = self.block.dataflow
        if value is None or not dataflow.constant(value):
            raise not_by_rows(node)
        shape = dataflow.shape(value)
        if len(shape) < 2 or math.prod(shape[:-2]) != 1:
            raise not_by_rows(node)
        return whole(value, shape[-2:])

    def _integers(self, node: ir.Node, position: int) -> tuple[int, ...]:
        """A constant vector of integers; empty if the input is absent."""
        value = node.inputs[position] if position < len(node.inputs) else None
        if value is None:
            return ()
        if not self.block.dataflow.constant(value):
            raise not_by_rows(node)
        return tuple(int(number) for number in np.ravel(self.block.dataflow.array(value)))


def not_by_rows(node: ir.Node) -> NotUnderstoodError:
    """Error for a node of an expert that does not treat each row alone."""
    return NotUnderstoodError(f"{node.op_type} node {node_name(node)} inside an expert does not treat each row alike")


def _check_last(node: ir.Node, axis: int) -> None:
    data = node.inputs[0]
    if axis != -1 and (data is None or data.shape is None or axis != len(data.shape) - 1):
        raise not_by_rows(node)


def _attributes(node: ir.Node, **changed: int) -> tuple[tuple[str, Hashable], ...]:
    attributes: dict[str, Hashable] = dict(changed)
    for name, attribute in node.attributes.items():
        value = attribute.value
        if not isinstance(value, int | float | str | list | tuple):
            raise not_by_rows(node)
        attributes.setdefault(name, tuple(value) if isinstance(value, list) else value)
    return tuple(sorted(attributes.items()))
