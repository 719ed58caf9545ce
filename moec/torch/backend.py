"""``torch.compile(model, backend="moec")``: MoE blocks by moec, the rest by another backend.

A graph from dynamo is imported like any other model, with its parameters as weights, and raised. Each block in the
graph is replaced by a call of an operator (:mod:`moec.torch.region`); the rest goes to Inductor, or to the backend that
``options={"rest": NAME}`` names. PyTorch finds this backend by the entry point ``torch_dynamo_backends``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node

from moec.common.arguments import check_optional_text
from moec.common.errors import MoecError, UnsupportedError, one_line
from moec.torch.blocks import TracedBlock, find_blocks
from moec.torch.graphs import Functional, functional
from moec.torch.operator import wants_gradients
from moec.torch.region import Region

log = logging.getLogger("moec.torch")

_OPTIONS = {"rest": "inductor", "experts": None}


def backend(
    graph: GraphModule, arguments: list[Any], *, options: Mapping[str, Any] | None = None, mode: str | None = None
) -> Callable[..., Any]:
    """Compile the graph to a function of ``arguments``, as ``torch.compile`` expects from backends.

    ``options``: ``rest`` names the backend for everything except MoE blocks (``inductor``; ``eager`` needs no
    compiler), ``experts`` the format to round experts' weights to, as for ``moec.compile``. ``mode`` concerns only
    ``rest`` and is ignored. A graph without MoE blocks, one that moec cannot read, and one whose results need gradients
    go to ``rest`` as a whole, which is logged in ``moec.torch``. Raises MoecError for unknown options.
    """
    chosen = _chosen(options)
    rest = torch._dynamo.lookup_backend(chosen["rest"])
    if wants_gradients(arguments):
        log.warning("a graph is left to %s: its results need gradients, and moec computes inference only: call it "
                    "under torch.no_grad()", chosen["rest"])  # fmt: skip
        return rest(graph, arguments)
    try:
        pure, regions = _with_blocks(graph, arguments, chosen["experts"])
    except Exception as error:  # PyTorch's exporters raise many unrelated types; the graph also runs without moec
        log.warning("a graph is left to %s: %s", chosen["rest"], one_line(error))
        return rest(graph, arguments)
    log.info(
        "%d MoE blocks of a graph are computed by moec: %s", len(regions), ", ".join(region.name for region in regions)
    )
    compiled, positions = rest(pure.graph, list(pure.tensors)), pure.positions

    def run(*arguments: Any, regions: Collection[Region] = regions) -> Any:  # the default keeps them alive
        return compiled(*(arguments[position] for position in positions))

    return run


def _chosen(options: Mapping[str, Any] | None) -> dict[str, Any]:
    from moec.passes.framework.shorthand import with_formats

    chosen = {**_OPTIONS, **(options or {})}
    unknown = sorted(chosen.keys() - _OPTIONS.keys())
    if unknown:
        raise MoecError(f"backend moec has no option {unknown[0]!r}; expected {' or '.join(_OPTIONS)}")
    check_optional_text(**chosen)
    with_formats("", chosen["experts"])
    return chosen


def _with_blocks(graph: GraphModule, arguments: Sequence[Any], experts: str | None) -> tuple[Functional, list[Region]]:
    """Replace the blocks of the graph. Raises UnsupportedError where there are none."""
    pure = functional(graph, arguments)
    weights = pure.weights
    if any(weight.is_inference() for weight in weights.values()):
        raise UnsupportedError("parameters were made under torch.inference_mode(), where PyTorch counts no changes")
    nodes = {node.name: node for node in pure.graph.graph.nodes if node.op in ("call_function", "placeholder")}
    blocks = find_blocks(pure.model, _tensors(weights), nodes.keys() - weights.keys())
    if not blocks:
        raise UnsupportedError("no MoE block was found in it")
    regions = [_replace(pure, block, nodes, experts) for block in blocks]
    pure.graph.graph.eliminate_dead_code()
    left = {user for name in pure.grouped for user in nodes[name].users if user.target != torch.ops.moec.block.default}
    if left:
        raise UnsupportedError("a grouped product in it belongs to no MoE block that was found")
    for node in pure.graph.graph.nodes:
        node.meta.pop("val", None)  # left by the export, irrelevant to the other backend
    pure.graph.recompile()
    return pure, regions


def _tensors(weights: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    import onnx_ir as ir

    return {name: ir.tensor(tensor.detach(), name=name) for name, tensor in weights.items()}


def _replace(functional: Functional, block: TracedBlock, nodes: Mapping[str, Node], experts: str | None) -> Region:
    """Let the graph call a region for the block. Nodes that only the block needed are left without users."""
    output, inputs = nodes[block.output], [nodes[name] for name in block.inputs]
    inside = _between(inputs, output)
    sizes = [node for node in inside if _is_size(node)]
    weights = [node for node in inside if node.op == "placeholder"]
    if not functional.weights.keys() >= {node.name for node in weights}:
        raise UnsupportedError(f"the MoE block of {output.name} depends on more than {', '.join(block.inputs)}")
    names = [node.name for node in weights]

    def model(tensors: Sequence[torch.Tensor]) -> Any:
        tensors_by_name = _tensors({**functional.weights, **dict(zip(names, tensors, strict=True))})
        again = (
            candidate for candidate in find_blocks(functional.model, tensors_by_name, {*block.inputs, block.output})
        )
        return next(
            (
                candidate.model
                for candidate in again
                if (candidate.inputs, candidate.output) == (block.inputs, block.output)
            ),
            None,
        )

    region = Region(
        output.name, _extracted(functional.graph, [*inputs, *sizes, *weights], inside, output), model, experts
    )
    with functional.graph.graph.inserting_before(output):
        call = functional.graph.graph.call_function(
            torch.ops.moec.block.default, (inputs, sizes, weights, region.number)
        )
    output.replace_all_uses_with(call)
    return region


def _between(inputs: Sequence[Node], output: Node) -> list[Node]:
    """List the nodes that compute ``output`` from ``inputs`` and sizes, in order, itself included."""
    seen, waiting = set(inputs), [output]
    while waiting:
        node = waiting.pop()
        if node not in seen:
            seen.add(node)
            waiting.extend(() if _is_size(node) else node.all_input_nodes)
    return [node for node in output.graph.nodes if node in seen and node not in inputs]


def _is_size(node: Node) -> bool:
    return isinstance(node.meta.get("val"), (torch.SymInt, int))


def _extracted(module: GraphModule, inputs: Sequence[Node], inside: Sequence[Node], output: Node) -> GraphModule:
    """Copy the nodes ``inside`` as a function of ``inputs``."""
    graph, copies = Graph(), {}
    for node in inputs:
        copies[node] = graph.placeholder(node.name)
    for node in inside:
        if node not in copies:
            copies[node] = graph.node_copy(node, copies.__getitem__)
    graph.output(copies[output])
    return GraphModule(module, graph)
