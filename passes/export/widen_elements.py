"""Quantised weights in the element types that ONNX's DequantizeLinear has."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from moec.common.names import node_name
from moec.ir.graphs import add_constant, is_op
from moec.ir.weights.stacks import ExpertStack, expert_data
from moec.ir.weights.stored import WIDTH, constant
from moec.passes.framework.base import Exactness, Report
from moec.passes.graph.edits import fresh_name, remove_unused

_WIDER = {ir.DataType.INT2: ir.DataType.INT4, ir.DataType.UINT2: ir.DataType.UINT4}
_BITS = {2: 4, 3: 4, 4: 8, 5: 8, 6: 8}


@dataclasses.dataclass(frozen=True)
class WidenElements:
    """Stores weights of 2, 3, 5 and 6 bits, and those of iq4, in the next wider integers, with the same numbers.

    1. Elements of 3, 5 and 6 bits, and of iq4, lie in wider ones already; the attribute ``width``, which ONNX does not
       have, goes.
    2. Elements and zero points of 2 bits, which few programs read, get 4.
    3. A note says so: the bits that the model had are not in the file.

    ::

        (float[T,32] x) => (float[T,4] y) <int4[4,32] numbers, float[4,1] scales> {
           w = DequantizeLinear <axis = 1, block_size = 32, output_dtype = 1, width = 3> (numbers, scales)
           y = moec.Linear (x, w)
        }
            ->
        (float[T,32] x) => (float[T,4] y) <int4[4,32] numbers, float[4,1] scales> {
           w = DequantizeLinear <axis = 1, block_size = 32, output_dtype = 1> (numbers, scales)
           y = moec.Linear (x, w)
        }
    """

    name: ClassVar[str] = "widen-elements"
    exactness: ClassVar[Exactness] = "exact"

    def apply(self, model: ir.Model, report: Report) -> bool:
        widened: dict[ir.Value, ir.Value] = {}
        changed = False
        for node in [node for node in model.graph.all_nodes() if is_op(node, "DequantizeLinear")]:
            attribute = node.attributes.pop(WIDTH, None)
            bits = None if attribute is None else attribute.as_int()
            for place in (0, 2)[: len(node.inputs) - 1]:
                value = node.inputs[place]
                if value is None or value.dtype not in _WIDER or constant(value) is None:
                    continue
                bits = value.dtype.bitwidth
                widened[value] = widened.get(value) or _widened(model.graph, value)
                node.replace_input_with(place, widened[value])
            if bits is not None:
                report.note(self.name, node_name(node), f"its weights of {bits} bits are stored in {_BITS[bits]}")
                changed = True
        for value in widened:
            remove_unused(model.graph, value)
        return changed


def _widened(graph: ir.Graph, value: ir.Value) -> ir.Value:
    """A constant of the same numbers in wider elements, made when it is written."""
    tensor, kind = constant(value), _WIDER[value.dtype or ir.DataType.INT2]
    assert tensor is not None
    shape = tensor.shape.numpy()

    def wide(numbers: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return numbers.astype(np.int8).astype(kind.numpy())

    if len(shape) == 3:
        stack = ExpertStack(None, kind, shape, lambda expert: wide(expert_data(value, expert)))
        return add_constant(graph, stack, fresh_name(graph, f"{value.name}.wide"))
    lazy = ir.LazyTensor(lambda: ir.Tensor(wide(tensor.numpy()), dtype=kind), dtype=kind, shape=ir.Shape(shape))
    return add_constant(graph, lazy, fresh_name(graph, f"{value.name}.wide"))
