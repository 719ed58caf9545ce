"""Cutting an MoE block out of a graph: from its input x and its router logits to its output y.

Nothing here looks at names. The block's output is the first value behind the selection that everything selected passes
through and that has the shape of x; its input is the nearest value that all of the experts' data comes from.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from moec.ir.interpreter import Evaluator
from moec.passes.raising.facts import Array, Facts, follow_data

CONTRACTIONS = frozenset({"MatMul", "Gemm", "Einsum", "FusedMatMul"})
MOST_GATEWAYS = 96
"""How far the search for a block's borders goes."""


def is_contraction(node: ir.Node | None) -> bool:
    return node is not None and node.op_type in CONTRACTIONS


@dataclasses.dataclass(frozen=True)
class Projection:
    """A contraction of data with weights of the experts. ``weight`` is a constant of two dimensions or more."""

    node: ir.Node
    weight: ir.Value


@dataclasses.dataclass
class Block:
    """A part of a graph that computes y from x and logits, constants and the shapes of other values.

    ``shape_sources`` are values outside of which only the shape is read. E is the width of the logits, d that of x.
    """

    facts: Facts
    anchor: ir.Node
    x: ir.Value
    logits: ir.Value
    y: ir.Value
    nodes: list[ir.Node]
    shape_sources: list[ir.Value]
    E: int
    d: int

    @property
    def name(self) -> str:
        return self.anchor.name or self.anchor.outputs[0].name or self.anchor.op_type

    def router_nodes(self) -> list[ir.Node]:
        """Nodes that depend on the logits but on no element of x."""
        from_x = self.facts.dependents([self.x], self.nodes)
        from_logits = self.facts.dependents([self.logits], self.nodes)
        return [n for n in self.nodes if n.outputs[0] in from_logits and n.outputs[0] not in from_x]

    def expert_nodes(self) -> list[ir.Node]:
        """Nodes that depend on elements of x."""
        from_x = self.facts.dependents([self.x], self.nodes)
        return [n for n in self.nodes if n.outputs[0] in from_x]

    def feeds(self, x: Array, logits: Array) -> dict[ir.Value, Array]:
        """Feeds for an evaluation of the block's nodes on rows x [T,d] and logits [T,E]; T is a multiple of row_step."""
        sizes = _token_sizes(self.x, len(x))
        feeds = {
            source: np.zeros(_sizes_of(source, sizes), source.dtype.numpy() if source.dtype else np.float32)
            for source in self.shape_sources
        }
        feeds[self.x] = x.reshape(x.shape if _rank(self.x) == 2 else _sizes_of(self.x, sizes))
        leading = feeds[self.x].shape[:-1] if _rank(self.logits) == _rank(self.x) else (len(x),)
        feeds[self.logits] = logits.reshape(*leading, self.E)
        return feeds

    @property
    def row_step(self) -> int:
        """Numbers of tokens must be multiples of this, where the model fixes some of x's dimensions."""
        if _rank(self.x) == 2 and not self.shape_sources:
            return 1
        return _rows(self.x, 1)

    @property
    def rows_are_fixed(self) -> bool:
        return self.x.shape is not None and self.x.shape.is_static()

    def y_of(self, x: Array, logits: Array) -> Array:
        """The block's output [T,d] in float64, for any T: rows are added where the model wants more of them."""
        T, step = len(x), self.row_step
        size = step if self.rows_are_fixed else max(-(-T // step) * step, 0)
        parts = [np.zeros((0, self.d))]
        for start in range(0, max(T, 1) if size else 1, max(size, 1)):
            rows = x[start : start + size]
            padding = size - len(rows)
            filled = [np.concatenate([a, np.ones((padding, a.shape[1]))]) for a in (rows, logits[start : start + size])]
            (y,) = self.evaluate(filled[0], filled[1], [self.y])
            if y.size != size * self.d:
                raise ValueError(f"y has {y.size} elements for {size} rows of {self.d}")
            parts.append(y.reshape(size, self.d)[: len(rows)])
        return np.concatenate(parts)

    def evaluate(self, x: Array, logits: Array, outputs: list[ir.Value]) -> list[Array]:
        """The block's values ``outputs`` in float64."""
        feeds = self.feeds(x, logits)
        nodes = self.facts.between(outputs, stop=feeds.__contains__)
        return Evaluator(nodes, feeds, outputs, {"": 24}, dtype=np.float64).run(feeds)

    def projections(self) -> list[Projection]:
        """Contractions of data with constants, in graph order."""
        return list(_projections(self))


def _projections(block: Block) -> Iterator[Projection]:
    facts = block.facts

    def until(value: ir.Value) -> bool:
        return value is block.x or value is block.logits or facts.constant(value)

    for node in block.expert_nodes():
        if is_contraction(node):
            for operand in node.inputs[:2]:
                weight = None if operand is None else follow_data(operand, until)
                if weight is not None and facts.constant(weight) and _is_matrix(facts, weight):
                    yield Projection(node, weight)
                    break


def _is_matrix(facts: Facts, value: ir.Value) -> bool:
    shape = facts.shape(value)
    return len([size for size in shape if size > 1]) >= 2


def _rank(value: ir.Value) -> int:
    return 2 if value.shape is None else len(value.shape)


def _token_sizes(x: ir.Value, T: int) -> dict[str, int]:
    """Sizes for the symbols of x's shape such that it has T rows: the last symbol gets T, the others 1."""
    symbols: list[str] = []
    for dim in x.shape or ():
        if isinstance(dim, ir.SymbolicDim):
            symbols.extend(sorted(s for s in dim.free_symbols() if s not in symbols))
    return {symbol: T if symbol == symbols[-1] else 1 for symbol in symbols}


def _sizes_of(value: ir.Value, sizes: dict[str, int]) -> list[int]:
    """The shape of ``value``; symbols without a size count as 1."""
    assert value.shape is not None
    return [
        dim if isinstance(dim, int) else int(dim.evaluate({s: sizes.get(s, 1) for s in dim.free_symbols()}))
        for dim in value.shape
    ]


def find_logits(facts: Facts, anchor: ir.Node) -> list[ir.Value]:
    """Values that may be the router's logits: from the router's projection, if there is one, down to the anchor's input.

    Empty when the selection is not made from one value of a known, constant width.
    """
    scores = anchor.inputs[0]
    if scores is None:
        return []
    chain: list[ir.Value] = []
    for value in itertools.islice(facts.gateways_before(scores), MOST_GATEWAYS):
        chain.insert(0, value)
        if is_contraction(value.producer()):
            break
    else:
        chain = [scores]
    return [v for v in chain if _width(v) is not None and _width(v) == _width(chain[0])]


def _width(value: ir.Value) -> int | None:
    if value.shape is None or len(value.shape) < 2 or not isinstance(value.shape[-1], int):
        return None
    return value.shape[-1]


def cut_blocks(facts: Facts, anchor: ir.Node, logits: ir.Value) -> Iterator[Block]:
    """Blocks around ``anchor`` that start at ``logits``, likeliest first: y nearest to the logits, x nearest to y."""
    given = frozenset({logits})
    for y in itertools.islice(facts.gateways_after([logits]), MOST_GATEWAYS):
        if y.dtype is not None and not y.dtype.is_floating_point():
            continue
        for x in itertools.islice(facts.gateways_before(y, given), 1, MOST_GATEWAYS):
            block = _cut(facts, anchor, x, logits, y)
            if block is not None and len(block.projections()) >= 2 and _maps_rows_to_rows(block):
                yield block
                break


def _cut(facts: Facts, anchor: ir.Node, x: ir.Value, logits: ir.Value, y: ir.Value) -> Block | None:
    """The block between these values, if y can be computed from them, constants and shapes."""
    E, d = _width(logits), _width(x)
    if E is None or d is None or not _may_be_rows(x):
        return None

    def is_leaf(value: ir.Value) -> bool:
        return value is x or value is logits or facts.constant(value)

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
    ordered = sorted(nodes, key=facts.order.__getitem__)
    return Block(facts, anchor, x, logits, y, ordered, outside, E, d)


def _may_be_rows(x: ir.Value) -> bool:
    """Whether x may be one row per token; a fixed number of rows per token (k, E) shows as a factor."""
    return x.shape is not None and all(isinstance(d, int) or d.value is not None for d in x.shape)


def _rows(x: ir.Value, T: int) -> int:
    return int(np.prod(_sizes_of(x, _token_sizes(x, T))[:-1]))


def _maps_rows_to_rows(block: Block) -> bool:
    """Whether y has one row of width d per token, tried out on a few tokens that together select every expert."""
    T = 2 * block.E + 3
    logits = np.random.default_rng(0).normal(size=(T, block.E)) + 4 * np.eye(block.E)[np.arange(T) % block.E]
    try:
        block.y_of(np.ones((T, block.d)), logits)
    except Exception:  # whatever a wrong cut makes numpy stumble over, it only means that the cut is wrong
        return False
    return True
