"""The borders of the activation of experts, found by trying operators for affinity instead of knowing them.

An MLP is affine in its rows up to its activation, and its result is affine in the activation's result. The activation,
however it is written, lies between the two.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Hashable, Mapping

import numpy as np
import onnx_ir as ir

from moec.common.names import node_name
from moec.ir.interpreter import EvaluationError, Evaluator
from moec.passes.graph.edits import is_op
from moec.passes.raising.block import Block
from moec.passes.raising.dataflow import Array
from moec.passes.raising.failure import NotUnderstoodError

FAR = 1e3
"""Factor by which inputs are moved, relative to their largest number: farther than clamps let pass."""
TOLERANCE = 1e-10


@dataclasses.dataclass(frozen=True)
class Cut:
    """Borders of an activation. ``inner``: the last values that are affine in x, which the activation reads. ``outer``:
    the first values, computed by the activation, in which together y is affine. ``around``: a node through which y is
    affine in x without the activation, such as that of experts that return their token; None if there is none."""

    inner: list[ir.Value]
    outer: list[ir.Value]
    around: ir.Node | None = None

    def why_around(self) -> NotUnderstoodError:
        """The reason why not all experts of the block have hidden units."""
        assert self.around is not None
        return NotUnderstoodError(
            f"y is affine in something that is affine in x (node {node_name(self.around)}): a way around the activation"
        )


def find_cut(block: Block, x: Array, logits: Array) -> Cut:
    """Find the activation of a block, for rows x [T,d] whose routing is fixed by logits [T,E].

    Raises NotUnderstoodError if there is no activation.
    """
    nodes = block.expert_nodes()
    affine = _affine_nodes(block, nodes, x, logits)
    before = {block.x}
    for node in nodes:
        if node in affine and all(value in before for value in affine[node]):
            before.update(node.outputs)
    read = (value for node in nodes if node not in affine for value in node.inputs)
    inner = dict.fromkeys(_without_scalars(block, v) for v in read if v is not None and v in before)
    behind = _affine_in(block, nodes, affine)
    results = (value for node in nodes if node not in affine for value in node.outputs)
    outer = dict.fromkeys(_behind_scalars(block, value) for value in results if value in behind)
    around = next(
        (n for n in nodes if n in affine and n.outputs[0] in behind and not behind.issuperset(affine[n])), None
    )
    if not inner or not outer:
        raise NotUnderstoodError("no activation lies between two affine maps")
    return Cut(list(inner), list(outer), around)


def _affine_in(block: Block, nodes: list[ir.Node], affine: Collection[ir.Node]) -> set[ir.Value]:
    """Values in which, together, y is affine."""
    inside, behind = set(nodes), {block.y} if block.start is None else {block.y, block.start}
    for node in reversed(nodes):
        for value in node.outputs:
            readers = [reader for reader in value.consumers() if reader in inside and reader.op_type != "Shape"]
            if readers and all(reader in affine and behind.issuperset(reader.outputs) for reader in readers):
                behind.add(value)
    return behind


def _without_scalars(block: Block, value: ir.Value) -> ir.Value:
    """The value of which this one is a multiple, plus a number: the activation includes that step."""
    while (data := _scaled(block, value.producer())) is not None:
        value = data
    return value


def _behind_scalars(block: Block, value: ir.Value) -> ir.Value:
    """The last value that is a multiple of this one, plus a number."""
    while len(readers := value.consumers()) == 1 and _scaled(block, readers[0]) is value and value is not block.y:
        value = readers[0].outputs[0]
    return value


def _scaled(block: Block, node: ir.Node | None) -> ir.Value | None:
    """The operand that a node multiplies with a number, or adds one to; None if it does anything else."""
    if not is_op(node, "Add", "Div", "Mul", "Neg", "Sub"):
        return None
    data = [operand for operand in node.inputs if operand is not None and block.dataflow.scalar(operand) is None]
    return data[0] if len(data) == 1 else None


def _affine_nodes(block: Block, nodes: list[ir.Node], x: Array, logits: Array) -> dict[ir.Node, list[ir.Value]]:
    """The nodes that are affine in all of their inputs that depend on x, taken together; with these inputs."""
    dataflow = block.dataflow
    used = dict.fromkeys(value for node in nodes for value in node.inputs if value is not None)
    needed = [value for value in used if not dataflow.constant(value)]
    arrays = dict(zip(needed, block.evaluate(x, logits, needed), strict=True))
    arrays.update((v, dataflow.array(v)) for v in used if dataflow.constant(v))
    verdicts: dict[Hashable, bool] = {}
    moving_inputs: dict[ir.Node, list[ir.Value]] = {}
    for node in nodes:
        moving = [value for value in dict.fromkeys(node.inputs) if value is not None and value in block.from_x]
        attributes = tuple(sorted((name, repr(attribute.value)) for name, attribute in node.attributes.items()))
        places = tuple("moves" if value in moving else dataflow.scalar(value) for value in node.inputs)
        key = node.domain, node.op_type, attributes, places
        affine = verdicts[key] if key in verdicts else _is_affine(node, moving, arrays)
        if affine:
            moving_inputs[node] = moving
        if all(np.isfinite(arrays[value]).all() for value in moving):  # what overflows tells nothing of other nodes
            verdicts[key] = affine
    return moving_inputs


def _is_affine(node: ir.Node, moving: list[ir.Value], arrays: Mapping[ir.Value, Array]) -> bool:
    if any(arrays[value].dtype.kind != "f" for value in moving):
        return False
    random = np.random.default_rng(0)
    operands = {value: arrays[value] for value in node.inputs if value is not None}
    steps = {v: random.normal(size=arrays[v].shape) * FAR * np.abs(arrays[v]).max(initial=1.0) for v in moving}
    try:
        evaluator = Evaluator([node], operands, list(node.outputs), {"": 24}, dtype=np.float64)
        with np.errstate(all="ignore"):
            at = [
                evaluator.run({v: a + n * steps[v] if v in steps else a for v, a in operands.items()}) for n in range(3)
            ]
    except EvaluationError:
        return False
    return all(map(_on_a_line, *at))


def _on_a_line(start: Array, middle: Array, end: Array) -> bool:
    if start.dtype.kind != "f" or not start.shape == middle.shape == end.shape:
        return False
    with np.errstate(all="ignore"):
        return bool((np.abs(start - 2 * middle + end) <= TOLERANCE * np.abs(end).max(initial=1e-300)).all())
