"""Checks that a model keeps the rules of a graph and of the moec dialect (:mod:`moec.ir.rules`).

Passes run it before and after themselves. A violation is a defect of a pass or of a hand-written text.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from moec.common.errors import VerificationError
from moec.common.names import node_name, operator_name
from moec.ir import dialect
from moec.ir.graphs import nested_graphs
from moec.ir.rules import RULES


def verify(model: ir.Model) -> None:
    """Raises VerificationError with the first violation, naming the node and the rule."""
    for message in violations(model):
        raise VerificationError(message)


def violations(model: ir.Model) -> Iterator[str]:
    """All violations, in the order of the graph: its structure first, then at most one per node of the dialect."""
    yield from _structure(model.graph, set(), {})
    yield from dialect_violations(model)


def dialect_violations(model: ir.Model) -> Iterator[str]:
    """Violations of the rules of the dialect alone, at most one per node."""
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        if dialect.is_moec(node):
            yield from _node(node)


def _node(node: ir.Node) -> Iterator[str]:
    for rule in RULES:
        if rule.operators and node.op_type not in rule.operators:
            continue
        problem = rule.check(node)
        if problem:
            yield _message(node, rule.name, problem)
            return


def _message(node: ir.Node, rule: str, problem: str) -> str:
    return f"node {node_name(node)} ({operator_name(node)}) breaks rule {rule}: {problem}"


def _structure(graph: ir.Graph, outer: set[ir.Value], outer_names: dict[str, ir.Value]) -> Iterator[str]:
    """Rules single-definition, topological-order and undefined-value, for a graph and those nested in it.

    Names are checked too, although this IR refers to values by object: a model is saved and printed by name.
    """
    defined, names = set(outer), dict(outer_names)
    computed = {value for node in graph for value in node.outputs}
    for value in dict.fromkeys((*graph.inputs, *graph.initializers.values())):
        yield from _define(f"graph {graph.name}", value, defined, names)
    for node in graph:
        yield from _uses(node, defined, computed)
        for body in nested_graphs(node):
            yield from _structure(body, defined, names)
        for value in node.outputs:
            yield from _define(f"node {node_name(node)} ({node.op_type})", value, defined, names)
    for value in graph.outputs:
        if value not in defined:
            yield f"graph {graph.name} breaks rule undefined-value: its output {value.name} is defined by nothing"


def _uses(node: ir.Node, defined: set[ir.Value], computed: set[ir.Value]) -> Iterator[str]:
    for value in node.inputs:
        if value is None or value in defined:
            continue
        if value in computed:
            yield _message(node, "topological-order", f"uses {value.name}, which is computed after it")
        else:
            yield _message(node, "undefined-value", f"uses {value.name}, which nothing defines")


def _define(where: str, value: ir.Value, defined: set[ir.Value], names: dict[str, ir.Value]) -> Iterator[str]:
    defined.add(value)
    if value.name and names.setdefault(value.name, value) is not value:
        yield f"{where} breaks rule single-definition: another value is named {value.name} already"
