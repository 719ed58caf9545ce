"""A part of a graph that may be an MoE block: its borders, its nodes, and evaluations on chosen rows and logits."""

from __future__ import annotations

import copy
import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import onnx_ir as ir

from moec.common.names import node_name
from moec.ir.interpreter import Evaluator, Watcher
from moec.passes.raising.contractions import factors, is_contraction
from moec.passes.raising.counting import counts, reduces_tokens
from moec.passes.raising.dataflow import Array, DataFlow, follow_data
from moec.passes.raising.symbols import shape_at, sizes_for, symbols_of
from moec.passes.raising.weighing import Weighing

MOST_TOKENS = 2048
MOST_NUMBERS = 64
EVALUATION_BUDGET = 1 << 28
"""Bytes of intermediate results per evaluation that depend on the number of tokens."""

SUM_TOLERANCE = 1e-9
"""Allowed error of a sum in float64, relative to its summands."""


@dataclasses.dataclass(frozen=True)
class Projection:
    """A contraction of data with weights of the experts. ``weight`` is a constant of two dimensions or more."""

    node: ir.Node
    weight: ir.Value


@dataclasses.dataclass
class Block:
    """A part of a graph that computes y from x and logits, constants and the shapes of other values.

    ``shape_sources`` are outside values of which only the shape is read. E is the number of experts, d the width of x.
    ``start`` [T,d] is a value, if there is one, that is computed without the logits: y is its sum with the experts'
    results (see :mod:`moec.passes.raising.starts`). Evaluations replace it by zeros, so that y is the rest.
    ``weighing``: the logits are weights with these known properties, and evaluations keep to them.
    ``layout``: sizes for the symbols in the shapes of x and ``shape_sources``; without it they follow from the number
    of rows.
    """

    dataflow: DataFlow
    anchor: ir.Node
    x: ir.Value
    logits: ir.Value
    y: ir.Value
    nodes: list[ir.Node]
    shape_sources: list[ir.Value]
    E: int
    d: int
    start: ir.Value | None = None
    weighing: Weighing | None = None
    layout: Mapping[str, int] | None = None
    _evaluators: dict[tuple[ir.Value, ...], Evaluator] = dataclasses.field(default_factory=dict, repr=False)
    without_zeros: dict[ir.Value, bool] = dataclasses.field(default_factory=dict, repr=False)
    """Whether a constant has no element that is 0, for each constant that was read."""

    @property
    def name(self) -> str:
        return node_name(self.anchor)

    @functools.cached_property
    def from_x(self) -> set[ir.Value]:
        """Values that depend on elements of x or of ``start``."""
        sources = [self.x] if self.start is None else [self.x, self.start]
        return self.dataflow.dependents(sources, self.nodes)

    @functools.cached_property
    def selected(self) -> set[ir.Value]:
        """Values that depend on the logits."""
        return self.dataflow.dependents([self.logits], self.nodes)

    @property
    def experts_first(self) -> bool:
        """Whether logits are [E,T], not [T,E]."""
        return width(self.logits) is None

    def router_nodes(self) -> list[ir.Node]:
        """Nodes that depend on the logits but on no element of x."""
        return [n for n in self.nodes if n.outputs[0] in self.selected and n.outputs[0] not in self.from_x]

    def expert_nodes(self) -> list[ir.Node]:
        """Nodes that depend on elements of x."""
        return [n for n in self.nodes if n.outputs[0] in self.from_x]

    def feeds(self, x: Array, logits: Array) -> dict[ir.Value, Array]:
        """Feeds for an evaluation on rows x [T,d] and logits [T,E]; T is a multiple of ``row_step``."""
        sizes = self.sizes_at(len(x))
        feeds = {
            source: np.zeros(shape_at(source, sizes), source.dtype.numpy() if source.dtype else np.float32)
            for source in self.shape_sources
        }
        feeds[self.x] = x.reshape(x.shape if rank(self.x) == 2 else shape_at(self.x, sizes))
        leading = feeds[self.x].shape[:-1] if rank(self.logits) == rank(self.x) else (len(x),)
        logits = logits if self.weighing is None else self.weighing.constrained(logits)
        feeds[self.logits] = logits.T if self.experts_first else logits.reshape(*leading, self.E)
        return {**feeds, **self._start_of(np.zeros_like(x))}

    def _start_of(self, rows: Array) -> dict[ir.Value, Array]:
        """Feeds with the rows [T,d] in the place of ``start``, if there is one."""
        if self.start is None:
            return {}
        sizes = self.sizes_at(len(rows))
        return {self.start: rows if rank(self.start) == 2 else rows.reshape(shape_at(self.x, sizes))}

    def laid_out(self, layout: Mapping[str, int]) -> Block:
        """The same block, to be evaluated on rows of one layout: see :meth:`rows_of`."""
        other = copy.copy(self)
        other.layout = layout
        return other

    def rows_of(self, layout: Mapping[str, int]) -> int:
        """The number of rows of x where its symbols have these sizes."""
        return math.prod(shape_at(self.x, layout)[:-1])

    @functools.cached_property
    def other_symbols(self) -> list[str]:
        """Symbols that x lacks: lengths of other inputs."""
        symbols = dict.fromkeys(symbol for source in self.shape_sources for symbol in symbols_of(source))
        return [symbol for symbol in symbols if symbol not in symbols_of(self.x)]

    def sizes_at(self, rows: int) -> dict[str, int]:
        """The sizes of all symbols in an evaluation on so many rows."""
        return self._symbol_sizes(rows // max(self.row_step, 1))

    def _symbol_sizes(self, units: int) -> dict[str, int]:
        """The sizes of ``layout``, or those that follow from the number of rows."""
        if self.layout is not None:
            return dict(self.layout)
        return sizes_for(units, symbols_of(self.x), self.other_symbols)

    @functools.cached_property
    def row_step(self) -> int:
        """Numbers of tokens must be multiples of this, where the model fixes some of x's dimensions."""
        if rank(self.x) == 2 and not self.shape_sources and not self.rows_are_fixed:
            return 1
        return int(np.prod(shape_at(self.x, {})[:-1]))

    @functools.cached_property
    def rows_are_fixed(self) -> bool:
        return self.x.shape is not None and self.x.shape.is_static()

    def y_of(self, x: Array, logits: Array, watch: Watcher | None = None) -> Array | None:
        """The block's output [T,d] in float64, for any T; rows are added if the model needs more.

        None if the output is not one row of width d per token, or not the sum of ``start`` and another value.
        """
        none, *others = self.starts_for(len(x))
        y = self._y_of(x, logits, none, watch)
        if y is None:
            return None
        for start in others:
            moved = self._y_of(x, logits, start, watch)
            if moved is None or not _is_sum(moved, start, y):
                return None
        return y

    def starts_for(self, T: int) -> list[Array]:
        """Alternatives [T,d] for ``start``: zeros, and other rows if there is one."""
        if self.start is None:
            return [np.zeros((T, self.d))]
        rows = np.random.default_rng(11).normal(size=(T, self.d)) * np.resize([1.0, 60.0, 8.0], T)[:, None]
        return [np.zeros((T, self.d)), rows]

    def _y_of(self, x: Array, logits: Array, start: Array, watch: Watcher | None) -> Array | None:
        parts = [np.zeros((0, self.d))]
        for feeds, rows in self.runs(x, logits, start):
            (y,) = self.evaluator(feeds, [self.y]).run(feeds, watch)
            if y.size != self.rows_for(len(x)) * self.d:
                return None
            parts.append(y.reshape(-1, self.d)[:rows])
        return np.concatenate(parts)

    def values_on(
        self, x: Array, logits: Array, outputs: list[ir.Value], watch: Watcher | None = None
    ) -> list[list[Array]]:
        """The block's values ``outputs`` for any T, once for each run that it takes: see :meth:`y_of`."""
        return [self.evaluator(feeds, outputs).run(feeds, watch) for feeds, _ in self.runs(x, logits)]

    def runs(self, x: Array, logits: Array, start: Array | None = None) -> Iterator[tuple[dict[ir.Value, Array], int]]:
        """Feeds of each evaluation for T tokens, with the number of rows that are tokens; more rows follow if the model
        needs them. ``start`` [T,d] replaces the zeros in the place of the block's ``start``."""
        size = self.rows_for(len(x))
        for first in range(0, len(x) or 1, size or 1):
            rows = [a[first : first + size] for a in (x, logits, np.zeros_like(x) if start is None else start)]
            padding = size - len(rows[0])
            filled = [np.concatenate([a, np.ones((padding, a.shape[1]))]) for a in rows]
            yield {**self.feeds(filled[0], filled[1]), **self._start_of(filled[2])}, len(rows[0])

    def rows_for(self, T: int) -> int:
        """The rows of one evaluation for T tokens."""
        return self.row_step if self.rows_are_fixed else -(-T // self.row_step) * self.row_step

    def evaluate(
        self,
        x: Array,
        logits: Array,
        outputs: list[ir.Value],
        replaced: Mapping[ir.Value, Array] | None = None,
        watch: Watcher | None = None,
    ) -> list[Array]:
        """The block's values ``outputs`` in float64; values in ``replaced`` are not computed but given."""
        feeds = {**self.feeds(x, logits), **(replaced or {})}
        return self.evaluator(feeds, outputs).run(feeds, watch)

    def evaluator(self, feeds: Mapping[ir.Value, Array], outputs: list[ir.Value]) -> Evaluator:
        """An evaluator of ``outputs`` for such feeds in float64."""
        key = (*outputs, *feeds)
        if key not in self._evaluators:
            nodes, widened = self.dataflow.between(outputs, stop=feeds.__contains__), self.dataflow.widened
            self._evaluators[key] = Evaluator(nodes, feeds, outputs, {"": 24}, dtype=np.float64, widened=widened)
        return self._evaluators[key]

    def shapes_on(self, x: Array, logits: Array, values: list[ir.Value]) -> list[tuple[int, ...]]:
        """The shapes of some values. They are computed only if their symbols do not determine them, because that takes
        as long as a trial for the results of all experts."""
        sizes = self.sizes_at(len(x))
        if all(_is_shape_known(value, sizes) for value in values):
            return [tuple(shape_at(value, sizes)) for value in values]
        return [array.shape for array in self.evaluate(x, logits, values)]

    def y_by_value(
        self, x: Array, logits: Array, replaced: Mapping[ir.Value, Array]
    ) -> tuple[Array, Callable[[ir.Value, Array], Array]]:
        """y in float64 with ``replaced`` values instead of computed ones, and a function that recomputes y for another
        array of one of them: it repeats only what depends on that."""
        feeds = {**self.feeds(x, logits), **replaced}
        evaluator = self.evaluator(feeds, [self.y])
        values = evaluator.values(feeds)
        (y,) = evaluator.run_changed(values, {})
        return y, lambda value, array: evaluator.run_changed(values, {value: array})[0]

    def y_in_own_types(self, x: Array, logits: Array) -> Array:
        """y [T,d] for rows x [T,d] and logits [T,E], computed in the types of the graph. T has to be a multiple of
        ``row_step``, and no larger where the model fixes it."""
        arrays = self.feeds(x, logits).items()
        feeds = {value: array if value.dtype is None else array.astype(value.dtype.numpy()) for value, array in arrays}
        nodes = self.dataflow.between([self.y], stop=feeds.__contains__)
        return Evaluator(nodes, feeds, [self.y], {"": 24}).run(feeds)[0].reshape(-1, self.d)

    def gathers_weights(self) -> bool:
        """Whether every token gets copies of its experts' weights, which bounds the tokens per evaluation."""
        projections = self.projections()
        weights = {projection.weight for projection in projections}
        operands = (operand for projection in projections for operand in projection.node.inputs)
        gathered = (
            v
            for v in operands
            if v is not None and v in self.selected and follow_data(v, weights.__contains__) is not None
        )
        return len(projections) <= 3 and next(gathered, None) is not None

    def numbers(self) -> set[float]:
        """The finite numbers that the nodes compute with, and the sizes of their constants, without weights."""
        weights = {projection.weight for projection in self.projections()}
        used = {value for node in self.nodes for value in node.inputs if value is not None}
        constants = set(filter(self.dataflow.constant, used - weights))
        sizes = {float(size) for value in constants for size in self.dataflow.shape(value)}
        small = (self.dataflow.array(v) for v in constants if np.prod(self.dataflow.shape(v)) <= MOST_NUMBERS)
        arrays = [array.ravel() for array in small if array.dtype.kind in "fiu"]
        return sizes | {float(number) for array in arrays for number in array if np.isfinite(number)}

    def counts_tokens(self) -> bool:
        """Whether the number of tokens, or the place of one, may enter the computation as a number."""
        return any(counts(node) for node in self.nodes) or any(
            is_contraction(node) or reduces_tokens(self.dataflow, node) for node in self.router_nodes()
        )

    def work_per_token(self) -> int:
        """Approximate number of multiplications per token; of one expert if the graph computes only the selected
        ones."""
        weights = {projection.weight for projection in self.projections()}
        elements = sum(int(np.prod(self.dataflow.shape(weight))) for weight in weights)
        return max(1, elements // self.E if self.gathers_weights() or len(weights) > 3 else elements)

    def most_tokens(self) -> int:
        """Largest number of tokens of one evaluation if a decision needs many."""
        return self.tokens_at_once() if self.gathers_weights() else 2 * MOST_TOKENS + 4

    def tokens_at_once(self) -> int:
        """Largest number of tokens of one evaluation whose largest intermediate results stay within the budget: the
        weights gathered for each token, or else the results of all experts for it."""
        stacked = [p.weight for p in self.projections()]
        if not 0 < len(stacked) <= 3:
            return MOST_TOKENS
        elements = sum(int(np.prod(self.dataflow.shape(weight))) for weight in stacked)
        k = self.dataflow.scalar(self.anchor.inputs[1]) if self.anchor.op_type == "TopK" else 1
        per_token = 4 * elements // self.E * int(k or 1) if self.gathers_weights() else 8 * elements // self.d
        return max(1, min(MOST_TOKENS, EVALUATION_BUDGET // per_token))

    def sizes_of_y(self) -> list[int | tuple[ir.Value, int]] | None:
        """Sources of the sizes of y: a number, an axis of another value, or at most one -1 for the size that follows
        from the others. None if they are unknown. If y has as many axes as x, its symbolic sizes are those of x."""
        x, y = list(self.x.shape or ()), self.y.shape
        if y is None or (len(x) == len(y) and not any(map(_are_unequal, x, y))):
            return [(self.x, axis) for axis in range(len(x))]
        sizes = {
            dim.value: (value, axis)
            for value in (*self.shape_sources, self.x)
            for axis, dim in enumerate(value.shape or ())
            if isinstance(dim, ir.SymbolicDim) and dim.value is not None
        }
        dims = [dim if isinstance(dim, int) else sizes.get(str(dim.value), -1) for dim in y]
        return None if dims.count(-1) > 1 else dims

    def products(self) -> list[ir.Node]:
        """Contractions of data with values that do not depend on x: with weights, perhaps of the selected experts."""
        products = []
        for node in self.expert_nodes():
            others = [value for value in factors(node) if value not in self.from_x]
            if len(others) == 1 and self.dataflow.scalar(others[0]) is None:
                products.append(node)
        return products

    def projections(self) -> list[Projection]:
        """Contractions of data with constants, in graph order."""
        return list(_projections(self))


def _are_unequal(size: int | ir.SymbolicDim, other: int | ir.SymbolicDim) -> bool:
    """Whether two sizes are known to differ; symbols may be names of one size."""
    return size != other and (isinstance(size, int) or isinstance(other, int))


def _is_shape_known(value: ir.Value, sizes: Mapping[str, int]) -> bool:
    named = all(isinstance(dim, int) or dim.value is not None for dim in value.shape or ())
    return value.shape is not None and named and set(symbols_of(value)) <= sizes.keys()


def _is_sum(y: Array, start: Array, rest: Array) -> bool:
    """Whether y is start + rest, all [T,d], in rows where the rest is finite."""
    with np.errstate(all="ignore"):
        apart = np.abs(y - start - rest) > SUM_TOLERANCE * (np.abs(start) + np.abs(rest))
    return not (apart | ~np.isfinite(y))[np.isfinite(rest)].any()


def _projections(block: Block) -> Iterator[Projection]:
    dataflow = block.dataflow

    def until(value: ir.Value) -> bool:
        return value is block.x or value is block.logits or dataflow.constant(value)

    for node in block.expert_nodes():
        if is_contraction(node):
            for operand in factors(node):
                weight = follow_data(operand, until)
                if weight is not None and dataflow.constant(weight) and _is_matrix(dataflow, weight):
                    yield Projection(node, weight)
                    break


def _is_matrix(dataflow: DataFlow, value: ir.Value) -> bool:
    shape = dataflow.shape(value)
    return len([size for size in shape if size > 1]) >= 2


def rank(value: ir.Value) -> int:
    """Number of dimensions; 2 if unknown."""
    return 2 if value.shape is None else len(value.shape)


def width(value: ir.Value) -> int | None:
    """The last dimension of a value that has several, if it is a number."""
    if value.shape is None or len(value.shape) < 2:
        return None
    last = value.shape[-1]
    return last if isinstance(last, int) else None


def experts_of(logits: ir.Value) -> int | None:
    """Number of experts if these are logits: [...,E], or [E,T] for any number of tokens."""
    if width(logits) is not None or logits.shape is None or len(logits.shape) != 2:
        return width(logits)
    first = logits.shape[0]
    return first if isinstance(first, int) else None
