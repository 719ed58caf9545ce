"""The experts inside a block: their MLPs, and the weights of these.

An MLP is the function of one expert (or of all of them at once, with stacked weights) on its rows: an up projection,
perhaps a gate projection, and a down projection that no other projection comes after.
"""

from __future__ import annotations

import dataclasses

import onnx_ir as ir

from moec.passes.raising.block import Block, Projection
from moec.passes.raising.dataflow import follow_data
from moec.passes.raising.failure import NotUnderstoodError


@dataclasses.dataclass(frozen=True)
class Mlp:
    """Projections in graph order, the down projection last, and each one's bias constant or None."""

    projections: tuple[Projection, ...]
    biases: tuple[ir.Value | None, ...]


def find_mlps(block: Block) -> list[Mlp]:
    """All MLPs of a block, in the order of their down projections."""
    projections = block.projections()
    by_node = {projection.node: projection for projection in projections}
    behind: dict[ir.Value, frozenset[Projection]] = {}
    inner: set[Projection] = set()
    used_by: dict[Projection, frozenset[Projection]] = {}
    for node in block.expert_nodes():
        before = frozenset().union(*(behind.get(value, frozenset()) for value in node.inputs if value is not None))
        projection = by_node.get(node)
        if projection is not None:
            inner |= before
            used_by[projection] = before
            before = before | {projection}
        for value in node.outputs:
            behind[value] = before
    biases = _find_biases(block, by_node)
    mlps = []
    for last in projections:
        if last not in inner:
            members = sorted(used_by[last] | {last}, key=lambda p: block.dataflow.order[p.node])
            mlps.append(Mlp(tuple(members), tuple(biases.get(member) for member in members)))
    return mlps


def _find_biases(block: Block, by_node: dict[ir.Node, Projection]) -> dict[Projection, ir.Value]:
    """Constants added to a projection's result before anything else is done with it."""
    dataflow = block.dataflow
    biases: dict[Projection, ir.Value] = {}
    for node, projection in by_node.items():
        if node.op_type in ("Gemm", "Linear") and len(node.inputs) > 2 and node.inputs[2] is not None:
            biases[projection] = node.inputs[2]
    for node in block.expert_nodes():
        if node.op_type != "Add":
            continue
        left, right = node.inputs[0], node.inputs[1]
        for data, added in ((left, right), (right, left)):
            if data is None or added is None:
                continue
            source = follow_data(data, lambda v: v.producer() in by_node)
            bias = follow_data(added, lambda v: dataflow.constant(v) or v in (block.x, block.logits))
            if (
                source is not None
                and bias is not None
                and dataflow.constant(bias)
                and max(dataflow.shape(bias), default=1) > 1
            ):
                owner = source.producer()
                assert owner is not None
                biases.setdefault(by_node[owner], bias)
    return biases


def selected_operands(block: Block, mlp: Mlp) -> bool:
    """Whether any operand of the MLP's projections depends on the router's selection."""
    return any(operand in block.selected for projection in mlp.projections for operand in projection.node.inputs)


def check_structure(mlps: list[Mlp], E: int) -> None:
    """Raise NotUnderstoodError unless there is one MLP, or one per expert, of two or three projections each."""
    if not mlps:
        raise NotUnderstoodError("nothing in it multiplies tokens with constant weights")
    if len(mlps) not in (1, E):
        raise NotUnderstoodError(f"the graph holds {len(mlps)} MLPs for {E} experts")
    lengths = sorted({len(mlp.projections) for mlp in mlps})
    if lengths not in ([2], [3]):
        actual = " or ".join(map(str, lengths))
        raise NotUnderstoodError(f"its experts have {actual} projections; two or three are understood")
