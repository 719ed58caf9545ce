"""MoE blocks of an imported graph whose weights are still inputs: the values around each block, and a model of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Mapping

import onnx_ir as ir

from moec.ir import dialect
from moec.passes import pipeline
from moec.passes.framework.base import Report
from moec.passes.raising.rewrite import REPLACES_KEY

_RAISING = "O0,raise-moe,remove-dead-nodes"


@dataclasses.dataclass(frozen=True)
class TracedBlock:
    """``model`` computes the value named ``output`` from those named ``inputs``, and holds its weights."""

    inputs: tuple[str, ...]
    output: str
    model: ir.Model


def find_blocks(model: ir.Model, weights: Mapping[str, ir.TensorProtocol], names: Collection[str]) -> list[TracedBlock]:
    """Find MoE blocks by raising a copy of ``model`` in which some inputs are ``weights``. Each block lies between the
    nearest values that are ``names``; blocks without such values are omitted."""
    model = model.clone()
    for value in [value for value in model.graph.inputs if value.name in weights]:
        model.graph.inputs.remove(value)
        value.const_value = weights[str(value.name)]
        model.graph.register_initializer(value)
    pipeline.run(model, pipeline.parse(_RAISING), Report())
    varying = set(_varying(model.graph))
    return list(filter(None, (_block(model, node, names, varying) for node in model.graph)))


def _varying(graph: ir.Graph) -> Iterator[ir.Value]:
    """Collect the values that depend on inputs."""
    varying = set(graph.inputs)
    yield from varying
    for node in graph:
        if not varying.isdisjoint(node.inputs):
            varying.update(node.outputs)
            yield from node.outputs


def _block(model: ir.Model, node: ir.Node, names: Collection[str], varying: Collection[ir.Value]) -> TracedBlock | None:
    """Extract the block whose last node is ``node``. Returns None where there is none."""
    replaced = node.metadata_props.get(REPLACES_KEY)
    if replaced is None or replaced not in names:
        return None
    inputs: dict[ir.Value, None] = {}
    seen, waiting = {node}, [node]
    while waiting:
        for value in waiting.pop().inputs:
            if value is None or value not in varying:
                continue
            producer = value.producer()
            if value.name in names:
                inputs[value] = None
            elif producer is None:
                return None
            elif producer not in seen:
                seen.add(producer)
                waiting.append(producer)
    graph = ir.convenience.extract(model.graph, list(inputs), [node.outputs[0]])
    graph.opset_imports.setdefault(dialect.DOMAIN, 1)
    return TracedBlock(
        tuple(str(value.name) for value in inputs), replaced, ir.Model(graph, ir_version=model.ir_version)
    )
