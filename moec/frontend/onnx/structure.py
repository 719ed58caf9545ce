"""Checks of a model's structure before anything walks it: order of nodes, and growth by inlining functions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import onnx_ir as ir

from moec.common.errors import MoecError, UnsupportedError
from moec.common.names import node_name, operator_name
from moec.ir.graphs import nested_graphs

DEEPEST_CALL = 64
LARGEST_GROWTH = 32
ALWAYS_ALLOWED = 2_000
"""Number of nodes that inlining may always make; beyond it, ``LARGEST_GROWTH`` times as many as the file has. A
function for each expert of each layer grows less. The time that ONNX IR takes is quadratic in the calls of a
function."""


def sort_nodes(model: ir.Model, where: str) -> None:
    """Bring the nodes of all graphs into topological order. A sorted graph stays as it is.

    Raises MoecError naming the nodes of a cycle.
    """
    for graph in (model.graph, *(function.graph for function in model.functions.values())):
        try:
            graph.sort()
        except ValueError:
            cycle = _cycle(graph)
            shown = [f"{node_name(node)!r} ({operator_name(node)})" for node in cycle[:4]] + ["..."] * (len(cycle) > 4)
            raise MoecError(
                f"{where}: node {' -> '.join(shown)} needs its own result: the graph has a cycle; export it again"
            ) from None


def check_bodies(model: ir.Model, where: str) -> None:
    """Raise UnsupportedError for a node whose body is a reference to an attribute of a function."""
    kinds = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
    for node in (node for graph in (model.graph, *model.functions.values()) for node in _all_nodes(graph)):
        for name, attribute in node.attributes.items():
            if attribute.is_ref() and attribute.type in kinds:
                raise UnsupportedError(
                    f"{where}: node {node_name(node)!r} ({operator_name(node)}): its body {name!r} is an attribute of "
                    "a function, which is not supported; export the model without local functions"
                )


def check_functions(model: ir.Model, where: str) -> None:
    """Check the calls of functions before any is inlined: a file of a kilobyte can ask for a billion nodes.

    Raises MoecError for functions that call each other in a circle, and UnsupportedError for calls that are nested too
    deep or make too large a graph.
    """
    sizes: dict[ir.OperatorIdentifier, tuple[int, int]] = {}
    for key in model.functions:
        _measure(model, key, sizes, where)
    own = sum(
        len(nodes) for nodes in (list(_all_nodes(model.graph)), *map(list, map(_all_nodes, model.functions.values())))
    )
    largest = max(ALWAYS_ALLOWED, LARGEST_GROWTH * own)
    total = sum(sizes.get(node.op_identifier(), (1, 0))[0] for node in _all_nodes(model.graph))
    if total > largest:
        raise UnsupportedError(
            f"{where}: its local functions call each other so often that inlining them makes {total:.3g} nodes of "
            f"{own}; expected at most {largest}; export the model without local functions"
        )


def _measure(
    model: ir.Model,
    start: ir.OperatorIdentifier,
    sizes: dict[ir.OperatorIdentifier, tuple[int, int]],
    where: str,
) -> None:
    """Count the nodes and the depth of ``start`` once inlined, and of all functions it calls, without recursion."""
    stack, entered = [start], set[ir.OperatorIdentifier]()
    while stack:
        key = stack[-1]
        function = model.functions[key]
        called = [node.op_identifier() for node in _all_nodes(function)]
        missing = [name for name in dict.fromkeys(called) if name in model.functions and name not in sizes]
        if missing and key in entered:
            raise MoecError(
                f"{where}: local function {function.domain}.{function.name} calls itself, through {missing[0][1]}; "
                "export the model again"
            )
        entered.add(key)
        if missing:
            stack += missing
            continue
        stack.pop()
        depth = 1 + max((sizes[name][1] for name in called if name in sizes), default=0)
        if depth > DEEPEST_CALL:
            raise UnsupportedError(
                f"{where}: calls of local function {function.domain}.{function.name} are nested more than "
                f"{DEEPEST_CALL} deep; export the model without local functions"
            )
        sizes[key] = (sum(sizes.get(name, (1, 0))[0] for name in called), depth)


def _all_nodes(graph: Iterable[ir.Node]) -> Iterator[ir.Node]:
    """Iterate over the nodes of a graph or function and of the graphs inside them."""
    pending = [graph]
    while pending:
        for node in pending.pop():
            yield node
            pending.extend(nested_graphs(node))


def _cycle(graph: ir.Graph) -> list[ir.Node]:
    """Find a cycle in one graph: each node uses the one before, and the first uses the last."""
    for body in (graph, *(inner for node in _all_nodes(graph) for inner in nested_graphs(node))):
        finished: set[ir.Node] = set()
        for start in body:
            path = [start]
            while path:
                following = next(
                    (node for node in _used_nodes(path[-1]) if node.graph is body and node not in finished), None
                )
                if following is None:
                    finished.add(path.pop())
                elif following in path:
                    return path[path.index(following) :][::-1]
                else:
                    path.append(following)
    return []


def _used_nodes(node: ir.Node) -> Iterator[ir.Node]:
    """Iterate over the nodes whose results this one takes, itself or in its bodies."""
    for user in (node, *(inner for body in nested_graphs(node) for inner in _all_nodes(body))):
        yield from (used for value in user.inputs if value is not None and (used := value.producer()) is not None)
