"""Writing the raised operators into the graph: Route and Experts, or a graph over dispatched rows."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir

from moec.ir import dialect
from moec.ir.expert_ids import table_node
from moec.ir.graphs import add_constant
from moec.ir.weights.stacks import ExpertStack
from moec.passes.raising.block import Block
from moec.passes.raising.check import Proposal
from moec.passes.raising.row_proposal import RowProposal
from moec.passes.raising.stored_experts import stacked, stored_runs
from moec.passes.raising.weights import ExpertTensor

REPLACES_KEY = "moec.replaces"
"""Metadata of a block's last node: the name of the value that its output took the place of."""


def replace(graph: ir.Graph, block: Block, proposal: Proposal | RowProposal, formulation: str) -> None:
    """Compute ``block.y`` by Route and Experts, and announce the new nodes to the block's data flow. Nodes that become
    unused are left to remove-dead-nodes."""
    name = block.name
    writer = _BlockWriter(graph, block, block.y.name or name)
    bias, places = proposal.routing.correction_bias, proposal.routing.places
    logits = writer.rows(block.logits if places is None else writer.sums(places), block.E, "logits")
    x = writer.rows(block.x, block.d, "x")
    correction_bias = None if bias is None else writer.vector(bias)
    route_inputs = {"logits": logits, "correction_bias": correction_bias}
    route = dialect.make_node("Route", route_inputs, proposal.routing.spec, name=f"{name}.route")
    weights, experts_ids = writer.add(route, logits.dtype, "weights", "experts")
    experts_ids.dtype = ir.DataType.INT32
    weights = writer.cast(weights, block.x.dtype, "weights")
    if isinstance(proposal, RowProposal):
        y = proposal.write(writer, x, weights, experts_ids)
    else:
        if proposal.ids:
            table = writer.constant(np.array([*proposal.ids, -1], np.int32), "stored")
            (experts_ids,) = writer.add(table_node(experts_ids, table), ir.DataType.INT32, "stored_ids")
        tensors = {key: writer.tensor(key, tensor) for key, tensor in proposal.tensors.items()}
        inputs: dict[str, ir.Value | None] = {"x": x, "weights": weights, "experts": experts_ids, **tensors}
        experts = dialect.make_node("Experts", inputs, proposal.spec, name=f"{name}.experts")
        experts.metadata_props[dialect.FORMULATION_KEY] = formulation
        (y,) = writer.add(experts, block.x.dtype, "y")
    writer.finish(y)
    block.dataflow.extend(writer.nodes, before=writer.place)


@dataclasses.dataclass
class _BlockWriter:
    """Adds nodes before the one that computed y, with value names that start with ``name``."""

    graph: ir.Graph
    block: Block
    name: str
    nodes: list[ir.Node] = dataclasses.field(default_factory=list)

    @property
    def place(self) -> ir.Node:
        """The node in front of which everything is written."""
        producer = self.block.y.producer()
        assert producer is not None
        return producer

    def add(self, node: ir.Node, dtype: ir.DataType | None, *outputs: str) -> tuple[ir.Value, ...]:
        for value, label in zip(node.outputs, outputs, strict=True):
            value.name = f"{self.name}.{label}"
            value.type = None if dtype is None else ir.TensorType(dtype)
        node.metadata_props[dialect.BLOCK_KEY] = self.block.name
        self.graph.insert_before(self.place, node)
        self.nodes.append(node)
        return tuple(node.outputs)

    def rows(self, value: ir.Value, width: int, label: str) -> ir.Value:
        """``value`` as a matrix with one row per token."""
        if value is self.block.logits and self.block.experts_first:
            node = ir.node("Transpose", [value], {"perm": [1, 0]}, name=f"{self.name}.{label}.rows")
            (rows,) = self.add(node, value.dtype, f"{label}.rows")
            rows.shape = ir.Shape([None, width])
            return rows
        if value.shape is not None and len(value.shape) == 2:
            return value
        target = self.constant(np.array([-1, width]), f"{label}.rows_shape")
        node = ir.node("Reshape", [value, target], name=f"{self.name}.{label}.rows")
        (rows,) = self.add(node, value.dtype, f"{label}.rows")
        rows.shape = ir.Shape([None, width])
        return rows

    def sums(self, places: ir.Value) -> ir.Value:
        """Weights [...,E] of weights at places [...,E,C]."""
        axis = self.constant(np.array([-1]), "places_axis")
        node = ir.node("ReduceSum", [places, axis], {"keepdims": 0}, name=f"{self.name}.sums")
        (sums,) = self.add(node, places.dtype, "sums")
        sums.shape = None if places.shape is None else ir.Shape(places.shape[:-1])
        return sums

    def cast(self, value: ir.Value, dtype: ir.DataType | None, label: str) -> ir.Value:
        """``value`` in another type, where models mix types (a router in float32 within a model in float16)."""
        if dtype is None or value.dtype is None or dtype == value.dtype:
            return value
        node = ir.node("Cast", [value], {"to": dtype}, name=f"{self.name}.{label}.cast")
        return self.add(node, dtype, f"{label}.cast")[0]

    def constant(self, array: np.ndarray, label: str) -> ir.Value:
        return add_constant(self.graph, ir.tensor(array), f"{self.name}.{label}")

    def vector(self, value: ir.Value) -> ir.Value:
        """A constant with one number per expert as an initializer [E]."""
        dataflow = self.block.dataflow
        if value.const_value is not None and dataflow.shape(value) == (self.block.E,):
            return value
        return self.constant(dataflow.array(value).reshape(-1), "correction_bias")

    def tensor(self, label: str, tensor: ExpertTensor) -> ir.Value:
        """A weight of all experts; each expert's part is made when it is read, or used as stored where that will do."""
        if tensor.is_as_stored:
            return tensor.parts[0]
        runs = stored_runs(tensor)
        if runs is not None:
            nodes, constants = stacked(runs, f"{self.name}.{label}", tensor.dtype)
            for constant in constants:
                self.graph.register_initializer(constant)
            for node in nodes[:-1]:
                self.add(node, node.outputs[0].dtype, f"{label}.scales")
            return self.add(nodes[-1], tensor.dtype, label)[0]
        stack = ExpertStack(None, tensor.stored_dtype, tensor.shape, tensor.stored_entry)
        return self.cast(add_constant(self.graph, stack, f"{self.name}.{label}"), tensor.dtype, label)

    def finish(self, y: ir.Value) -> None:
        """Replace the block's output by y [T,d], plus the start of the block, in the output's shape."""
        old, start = self.block.y, self.block.start
        y = self.cast(y, old.dtype, "y")
        if start is not None:
            node = ir.node("Add", [self.rows(start, self.block.d, "start"), y], name=f"{self.name}.sum")
            (y,) = self.add(node, old.dtype, "sum")
        if old.shape is None or len(old.shape) != 2 or old.shape[1] != self.block.d:
            node = ir.node("Reshape", [y, self._shape_of_y()], {"allowzero": 1}, name=f"{self.name}.restore")
            (y,) = self.add(node, old.dtype, "restored")
        y.shape = old.shape
        last = y.producer()
        assert last is not None
        last.metadata_props[REPLACES_KEY] = str(old.name)
        if old.is_graph_output():
            y.name, old.name = old.name, f"{self.name}.replaced"
        ir.convenience.replace_all_uses_with(old, y, replace_graph_outputs=True)

    def _shape_of_y(self) -> ir.Value:
        """The shape of the block's output: that of x, or sizes from wherever they are known."""
        x, sizes = self.block.x, self.block.sizes_of_y()
        assert sizes is not None
        if sizes == [(x, axis) for axis in range(len(x.shape or ()))]:
            node = ir.node("Shape", [x], name=f"{self.name}.shape")
            return self.add(node, ir.DataType.INT64, "shape")[0]
        parts: list[ir.Value] = []
        for axis, size in enumerate(sizes):
            if isinstance(size, int):
                parts.append(self.constant(np.array([size]), f"size_{axis}"))
            else:
                source, start = size
                node = ir.node("Shape", [source], {"start": start, "end": start + 1}, name=f"{self.name}.size_{axis}")
                parts += self.add(node, ir.DataType.INT64, f"size_{axis}")
        node = ir.node("Concat", parts, {"axis": 0}, name=f"{self.name}.shape")
        return self.add(node, ir.DataType.INT64, "shape")[0]
