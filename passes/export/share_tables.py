"""Large constants that are stored once, not once more in another order."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import onnx_ir as ir

from moec.ir.graphs import add_constant
from moec.passes.framework.base import Exactness, Report
from moec.passes.graph.edits import FreshNames
from moec.passes.graph.folded import FoldedTensor


@dataclasses.dataclass(frozen=True)
class ShareTables:
    """Computes a constant from another one that is stored anyway, instead of storing both.

    1. A constant that ``fold-constants`` would compute when it is written, from one that other nodes read as it is,
       becomes the result of that node again: an embedding and its transpose, which is the output matrix. Programs
       compute what depends on constants alone when they load a model, so the file shrinks and a step stays as fast.
    2. A constant whose source nothing else reads stays: it is stored in the order that its readers want.

    ::

        (float[T,512] x, int64[T] ids) => (float[T,256] y, float[T,512] e) <float[256,512] table> {
           e = Gather (table, ids)
           turned = Transpose <perm = [1, 0]> (table)
           y = MatMul (x, turned)
        }
            fold-constants,share-tables ->
        (float[T,512] x, int64[T] ids) => (float[T,256] y, float[T,512] e) <float[256,512] table> {
           shared = Transpose <perm = [1, 0]> (table)
           e = Gather (table, ids)
           y = MatMul (x, shared)
        }
    """

    name: ClassVar[str] = "share-tables"
    exactness: ClassVar[Exactness] = "exact"

    def apply(self, model: ir.Model, report: Report) -> bool:
        stored = {id(value.const_value): value for value in model.graph.initializers.values() if value.uses()}
        computed = [value for value in stored.values() if _is_computed(value.const_value, stored)]
        shared = [value for value in computed if not value.is_graph_output()]
        for value in shared:
            del stored[id(value.const_value)]
        if not shared:
            return False
        nodes = _SharedNodes(model.graph, stored)
        for value in shared:
            assert isinstance(value.const_value, FoldedTensor)
            value.replace_all_uses_with(nodes.written(value.const_value))
            del model.graph.initializers[str(value.name)]
        return True


def _is_computed(tensor: ir.TensorProtocol | None, stored: Mapping[int, ir.Value]) -> bool:
    """Whether a tensor is computed, in one step or several, from one that is stored."""
    if not isinstance(tensor, FoldedTensor):
        return False
    return any(id(source) in stored or _is_computed(source, stored) for source in tensor.sources)


class _SharedNodes:
    """Nodes that compute tensors from ``stored`` ones, by the ids of these, before all other nodes."""

    def __init__(self, graph: ir.Graph, stored: Mapping[int, ir.Value]) -> None:
        self._graph, self._stored = graph, stored
        self._names, self._first = FreshNames(graph), graph[0]

    def written(self, tensor: FoldedTensor) -> ir.Value:
        """Write the nodes. Returns their output."""
        same, inputs = tensor.operator, [self._operand(source) for source in tensor.sources]
        node = ir.Node("", same.op_type, inputs, attributes=same.attributes.values(), num_outputs=len(same.outputs))
        for output in node.outputs:
            output.name = self._names.new("shared")
        self._graph.insert_before(self._first, node)
        result = node.outputs[tensor.index]
        result.type, result.shape = ir.TensorType(tensor.dtype), tensor.shape
        return result

    def _operand(self, source: ir.TensorProtocol | None) -> ir.Value | None:
        if source is None or id(source) in self._stored:
            return None if source is None else self._stored[id(source)]
        if isinstance(source, FoldedTensor) and _is_computed(source, self._stored):
            return self.written(source)
        return add_constant(self._graph, source, self._names.new("shared.operand"))
