"""Graphs of ``torch.compile`` as pure functions of tensors, both in ATen's operators and as imported ONNX IR.

Equal values have the same names in both.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch._guards import tracing
from torch.fx import GraphModule, Node
from torch.fx.graph import CodeGen

from moec.common.errors import UnsupportedError
from moec.frontend.onnx.importer import import_model
from moec.frontend.pytorch.importer import quiet

if TYPE_CHECKING:
    import onnx_ir as ir

_aten = torch.ops.aten


@dataclasses.dataclass(frozen=True)
class Functional:
    """A graph in both forms.

    ``graph`` takes ``tensors``, the arguments at ``positions``, one placeholder each, and returns the original's
    results. ``model`` is the same graph; its inputs are named like the placeholders. ``grouped``: names of the stacks
    of matrices whose grouped products ``graph`` computes with a matrix for each row.
    """

    graph: GraphModule
    model: ir.Model
    positions: tuple[int, ...]
    tensors: tuple[torch.Tensor, ...]
    grouped: frozenset[str]

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        """Parameters and buffers of modules among the inputs, by the names of their placeholders."""
        names = [node.name for node in self.graph.graph.find_nodes(op="placeholder")]
        return {name: tensor for name, tensor in zip(names, self.tensors, strict=True) if _is_weight(tensor)}


def functional(graph: GraphModule, arguments: Sequence[Any]) -> Functional:
    """Convert the graph from dynamo for ``arguments``; its sizes are as dynamic as dynamo's. Raises UnsupportedError
    for a graph that changes its inputs or takes a number that is no tensor's size, and the errors of PyTorch's
    exporters."""
    positions = tuple(index for index, value in enumerate(arguments) if isinstance(value, torch.Tensor))
    tensors = tuple(arguments[index] for index in positions)
    placeholders = graph.graph.find_nodes(op="placeholder")
    fake_tensors = [placeholders[index].meta["example_value"] for index in positions]
    pure = _OfTensors(graph, [_source(node, fake_tensors) for node in placeholders], positions)
    # Dynamo's own fake tensors and symbols do not concern this export.
    with tracing(None), quiet(), torch.no_grad():
        shapes = {"tensors": tuple(_dynamic_sizes(value) for value in fake_tensors)}
        detached = tuple(tensor.detach() for tensor in tensors)
        program = torch.export.export(pure.eval(), detached, dynamic_shapes=shapes, strict=False)
        grouped = frozenset(_without_grouped_products(program.graph_module))
        exported = torch.onnx.export(program, dynamo=True, verbose=False)
    assert exported is not None and exported.exported_program is not None
    signature = exported.exported_program.graph_signature
    if signature.user_inputs_to_mutate or signature.buffers_to_mutate:
        raise UnsupportedError("the graph changes its inputs in place")
    module = exported.exported_program.module(check_guards=False)
    assert isinstance(module, GraphModule)
    module.graph.set_codegen(CodeGen())
    flat = GraphModule(module, module.graph)  # a class of its own would have no name in caches of compiled graphs
    return Functional(flat, import_model(exported.model), positions, tensors, grouped)


class _OfTensors(torch.nn.Module):
    """The graph as a function of its tensors alone; its other inputs are sizes of these."""

    def __init__(self, graph: GraphModule, sources: Sequence[tuple[int, int] | None], positions: Sequence[int]) -> None:
        super().__init__()
        self._graph, self._sources, self._positions = graph, sources, positions

    def forward(self, *tensors: torch.Tensor) -> Any:
        remaining = iter(tensors)
        sizes = [None if place is None else tensors[place[0]].shape[place[1]] for place in self._sources]
        return self._graph(*(next(remaining) if size is None else size for size in sizes))


def _source(node: Node, tensors: Sequence[torch.Tensor]) -> tuple[int, int] | None:
    """Find the tensor and axis whose size a placeholder is. Returns None for a tensor itself."""
    value = node.meta["example_value"]
    if isinstance(value, torch.Tensor):
        return None
    for index, tensor in enumerate(tensors):
        for axis, size in enumerate(tensor.shape):
            if isinstance(value, torch.SymInt) and not isinstance(size, int) and size.node.expr == value.node.expr:
                return index, axis
    raise UnsupportedError(f"the graph takes the number {node.name}, which is not the size of any of its tensors")


def _dynamic_sizes(value: torch.Tensor) -> dict[int, Any]:
    return {
        axis: torch.export.Dim.DYNAMIC
        for axis, size in enumerate(value.shape)
        if not isinstance(size, int) and size.node.expr.free_symbols
    }


def _is_weight(tensor: torch.Tensor) -> bool:
    """Whether a tensor belongs to a module: dynamo marks those that are no parameters."""
    return isinstance(tensor, torch.nn.Parameter) or hasattr(tensor, "_dynamo_static_input_type")


def _without_grouped_products(graph: GraphModule) -> Iterator[str]:
    """Replace grouped products, for which ONNX has no operator, by a product of each row with its own matrix. Yields
    the names of the stacks of matrices."""
    transformers = getattr(torch.ops, "transformers", None)
    kinds = {getattr(_aten, "_grouped_mm", None), getattr(transformers, "grouped_mm_fallback", None)}
    for node in list(graph.graph.nodes):
        if getattr(node.target, "overloadpacket", None) not in kinds - {None}:
            continue
        rows, stack, offsets = node.args[0], node.args[1], node.kwargs.get("offs", (*node.args, None, None)[2])
        owners = _owners(offsets)
        if owners is None:
            raise UnsupportedError(f"the order of the rows of the grouped product {node.name} is not known")
        with graph.graph.inserting_before(node):
            matrices = graph.graph.call_function(_aten.index.Tensor, (stack, [owners]))
            column = graph.graph.call_function(_aten.unsqueeze.default, (rows, 1))
            product = graph.graph.call_function(_aten.bmm.default, (column, matrices))
            result = graph.graph.call_function(_aten.squeeze.dim, (product, 1))
        node.replace_all_uses_with(result)
        graph.graph.erase_node(node)
        yield from (source.name for source in _weights_of(stack))
    graph.recompile()


def _owners(offsets: Any) -> Node | None:
    """Find the sorted expert ids [rows] whose counts (``histc``), added up (``cumsum``), are the offsets."""
    sums = _behind_conversions(offsets)
    counts = _behind_conversions(sums.args[0]) if _calls(sums, _aten.cumsum) else None
    if counts is None or not _calls(counts, _aten.histc):
        return None
    values, bins, least, most = (*counts.args, 0, 0)[:4]
    ids = _behind_conversions(values)
    if (least, most) != (0, bins - 1) or getattr(ids, "target", None) is not operator.getitem or ids.args[1] != 0:
        return None
    is_sorted = _calls(ids.args[0], _aten.sort) and ids.args[0].args[2:3] in ((), (False,))
    return ids if is_sorted and not ids.args[0].kwargs.get("descending") else None


def _behind_conversions(node: Any) -> Any:
    while _calls(node, _aten._to_copy) or _calls(node, _aten.to):
        node = node.args[0]
    return node


def _calls(node: Any, packet: Any) -> bool:
    return isinstance(node, Node) and getattr(node.target, "overloadpacket", None) is packet


def _weights_of(node: Node) -> Iterator[Node]:
    if node.op == "placeholder":
        yield node
    for source in node.all_input_nodes:
        yield from _weights_of(source)
