"""Candidates for MoE blocks: regions of a graph from the input x and the router logits to the output y.

Names play no part. A block's output is the first value after the selection that everything selected passes through and
that has one row of x's width per token. Its input is the nearest value that all data of the experts comes from.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Hashable, Iterator

import numpy as np
import onnx_ir as ir

from moec.ir.dialect import inputs_of, is_moec
from moec.passes.graph.edits import is_op
from moec.passes.raising.block import Block, experts_of, width
from moec.passes.raising.contractions import factors, is_contraction
from moec.passes.raising.dataflow import DataFlow
from moec.passes.raising.isomorphic import Structure, structure_of
from moec.passes.raising.starts import starts
from moec.passes.raising.symbols import shape_at, symbols_of

SELECTIONS = frozenset({"ArgMax", "TopK"})
"""Operators around which blocks are looked for."""
MOST_DOMINATORS = 96
"""Largest number of dominators that the search for a block's borders visits."""
MOST_NUMBERS = 1024
"""Largest number of elements of a constant whose numbers have to be equal in regions that count as alike."""


def find_logits(dataflow: DataFlow, anchor: ir.Node) -> list[ir.Value]:
    """Values that may be the router's logits: from the router's projection, if there is one, to the anchor's input.

    Empty when the selection is not made from one value of a known, constant width.
    """
    scores = anchor.inputs[0]
    if scores is None:
        return []
    chain = router_chain(dataflow, scores)[0] or [scores]
    E = next((count for value in chain if (count := experts_of(value)) not in (None, 1)), None)
    return [value for value in chain if E is not None and experts_of(value) == E]


def selects_for_experts(dataflow: DataFlow, anchor: ir.Node) -> bool:
    """Whether a selection gives the ids of a ``moec.Experts`` node, so that its block is known already."""
    passed = list(dataflow.readers(anchor.outputs, through=lambda node: not (is_contraction(node) or is_moec(node))))
    values = [value for node in (anchor, *passed) for value in node.outputs]
    readers = {node for value in values for node in value.consumers() if is_moec(node, "Experts")}
    return any(inputs_of(node)["experts"] in values for node in readers)


def router_chain(dataflow: DataFlow, scores: ir.Value) -> tuple[list[ir.Value], list[ir.Node]]:
    """The values that all scores come through, from the result of the router's product on (or from its columns of a
    larger product), and the nodes of that product: one contraction or, for a weight in parts, several. Both are empty
    if there is no product."""
    chain: list[ir.Value] = []
    for value, source in itertools.pairwise(itertools.islice(dataflow.dominators(scores), MOST_DOMINATORS)):
        chain.insert(0, value)
        products = [node for node in dataflow.between([value], {source}.__contains__) if _projects(dataflow, node)]
        if products:
            return chain[_last_taken(chain) :], products
    return [], []


def _projects(dataflow: DataFlow, node: ir.Node) -> bool:
    """Whether a node is a contraction, but not a sum written as one: of a single operand, or with ones."""
    operands = factors(node)
    if not is_contraction(node) or len(operands) < 2:
        return False
    constants = [value for value in operands if dataflow.constant(value)]
    return not any(0 in dataflow.shape(value) or dataflow.is_mask(value) for value in constants)


def _last_taken(chain: list[ir.Value]) -> int:
    """The place of the last value that holds some columns of the value before it; 0 where there is none."""
    counts = map(experts_of, chain)
    narrower = (
        place
        for place, (before, after) in enumerate(itertools.pairwise(counts), 1)
        if is_op(chain[place].producer(), "Gather", "Slice", "Split") and before and after and after < before
    )
    return max(narrower, default=0)


@dataclasses.dataclass(frozen=True)
class Tried:
    """Findings of trials of regions, by their structure and small constants: of layers that differ only in their
    weights, one is tried. They only direct the search, so an alike layer may still turn out to differ."""

    rows: dict[Hashable, bool] = dataclasses.field(default_factory=dict)
    start_places: dict[Hashable, list[int | None]] = dataclasses.field(default_factory=dict)
    """Places of starts among the values of the structure; None after the last."""

    def maps_rows_to_rows(self, block: Block) -> bool:
        structure = structure_of(block)
        if structure is None:
            return _maps_rows_to_rows(block)
        key = _with_numbers(block, structure)
        if key not in self.rows:
            self.rows[key] = _maps_rows_to_rows(block)
        return self.rows[key]

    def starts(self, block: Block) -> Iterator[ir.Value]:
        structure = structure_of(block)
        if structure is None:
            yield from starts(block)
            return
        places = self.start_places.setdefault(_with_numbers(block, structure), [])
        earlier = [structure.values[place] for place in places if place is not None]
        yield from earlier
        if None in places:
            return
        for value in starts(block):
            if value not in earlier:
                places.append(structure.values.index(value))
                yield value
        places.append(None)


def _with_numbers(block: Block, structure: Structure) -> Hashable:
    dataflow = block.dataflow
    small = (v for v in structure.values if dataflow.constant(v) and math.prod(dataflow.shape(v)) <= MOST_NUMBERS)
    return structure.key, tuple(dataflow.array(value).tobytes() for value in small)


def candidate_blocks(
    dataflow: DataFlow, anchor: ir.Node, logits: ir.Value, tried: Tried | None = None
) -> Iterator[Block]:
    """Regions around ``anchor`` that start at ``logits``, likeliest first: y nearest to the logits, x nearest to y. If
    y is the sum of a value computed without the logits and of another one, the region without that value comes first.
    ``tried``: findings of earlier regions."""
    tried = Tried() if tried is None else tried
    determined = dataflow.determined_by([logits])
    for y in itertools.islice(dataflow.post_dominators([logits], determined), MOST_DOMINATORS):
        if y.dtype is not None and not y.dtype.is_floating_point():
            continue
        block = next(_regions(dataflow, anchor, logits, y, determined, tried), None)
        if block is not None:
            for start in tried.starts(block):
                yield from itertools.islice(
                    _regions(dataflow, anchor, logits, y, determined | {start}, tried, start), 1
                )
            yield block


def _regions(
    dataflow: DataFlow,
    anchor: ir.Node,
    logits: ir.Value,
    y: ir.Value,
    determined: frozenset[ir.Value],
    tried: Tried,
    start: ir.Value | None = None,
) -> Iterator[Block]:
    """Regions that make rows y of rows x, x nearest to y first."""
    for x in itertools.islice(dataflow.dominators(y, determined), 1, MOST_DOMINATORS):
        block = None if dataflow.depends(x, logits) else _region(dataflow, anchor, x, logits, y, start)
        if block is None or block.sizes_of_y() is None:
            continue
        if len(block.products()) >= 2 and tried.maps_rows_to_rows(block):
            yield block


def _region(
    dataflow: DataFlow, anchor: ir.Node, x: ir.Value, logits: ir.Value, y: ir.Value, start: ir.Value | None
) -> Block | None:
    """The region between these values, if y can be computed from them, constants and shapes."""
    E, d = experts_of(logits), width(x)
    if E is None or d is None or not _may_be_rows(x) or _counts_differ(x, y):
        return None
    if width(logits) is not None and _counts_differ(x, logits):
        return None

    def is_leaf(value: ir.Value) -> bool:
        return value is x or value is logits or value is start or dataflow.constant(value)

    nodes: set[ir.Node] = set()
    shapes_read: set[ir.Value] = set()
    pending = [y]
    while pending:
        value = pending.pop()
        node = value.producer()
        if is_leaf(value) or node in nodes:
            continue
        if node is None:
            return None
        nodes.add(node)
        inputs = [v for v in node.inputs if v is not None]
        (shapes_read.update if node.op_type == "Shape" else pending.extend)(inputs)
    outside = [v for v in shapes_read if not is_leaf(v) and v.producer() not in nodes]
    if any(v.shape is None for v in outside):
        return None
    ordered = sorted(nodes, key=dataflow.order.__getitem__)
    return Block(dataflow, anchor, x, logits, y, ordered, outside, E, d, start)


def _may_be_rows(x: ir.Value) -> bool:
    """Whether x may be one row per token; a fixed number of rows per token (k, E) shows as a factor."""
    return x.shape is not None and all(isinstance(d, int) or d.value is not None for d in x.shape)


def _counts_differ(x: ir.Value, other: ir.Value) -> bool:
    """Whether the shapes rule out that x and another value both have one row per token.

    Only shapes over the same symbols can be compared. Regions that this rules out need not be tried, and a trial may be
    costly: it might gather weights for each element of x.
    """
    if not (_may_be_rows(x) and _may_be_rows(other)) or set(symbols_of(x)) != set(symbols_of(other)):
        return False
    sizes = {symbol: 2 * position + 3 for position, symbol in enumerate(sorted(symbols_of(x)))}
    return math.prod(shape_at(x, sizes)[:-1]) != math.prod(shape_at(other, sizes)[:-1])


def _maps_rows_to_rows(block: Block) -> bool:
    """Whether y has one row of width d per token, by a trial."""
    few, many = 3, 2 * block.E + 3  # many only if few fail: a traced loop may depend on every expert being selected
    for T in (few,) if block.gathers_weights() else (few, many):
        logits = np.random.default_rng(0).normal(size=(T, block.E)) + 4 * np.eye(block.E)[np.arange(T) % block.E]
        try:
            return block.y_of(np.ones((T, block.d)), logits) is not None
        except Exception:  # whatever a wrong region makes the interpreter stumble over
            continue
    return False
