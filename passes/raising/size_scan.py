"""Values that nodes compute only from sizes, scanned at far more sizes than a trial can have rows.

A smooth switch on the number of tokens decides nothing, so no side of it is missing. But a number that is constant in
all trials and differs at a size without a trial was not compared. Such values cost little to compute without any rows.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from moec.ir.interpreter import EvaluationError, Evaluator
from moec.ir.kinds import ELEMENTWISE
from moec.ir.movement import moving
from moec.ir.sides import Given, Never
from moec.ir.watch import Unseen
from moec.passes.raising.block import Block
from moec.passes.raising.dataflow import Array, DataFlow
from moec.passes.raising.symbols import shape_at, symbols_of

LARGEST = 1 << 20
"""The largest size that is looked at."""
MOST_BYTES = 1 << 27
"""Largest number of bytes of a value: a table of all pairs of places soon takes more."""
GROWTH = 1.5
GOES_ON = 1.1
"""Least growth of a value, from trials to sizes beyond them, that counts as a different number there."""
NEAR = 1e-6
"""Largest difference of equal numbers, relative to the larger of 1 and the number."""
Layout = Mapping[str, int]
Range = tuple[float, float]
_SHAPED = {"ConstantOfShape": 0, "Expand": 1, "Pad": 1, "Reshape": 1, "Split": 1, "Tile": 1, "TopK": 1}
"""Operators and which of their inputs says a size of their result."""

_FILLING = frozenset({*_SHAPED, *moving(), "Unsqueeze"})


def sizes_text(layout: Layout) -> str:
    return ", ".join(f"{symbol} = {size}" for symbol, size in layout.items())


@dataclasses.dataclass(frozen=True)
class _OversizedValue(Never):
    """A value that differs only where there are more rows than a trial can have."""

    layout: tuple[tuple[str, int], ...] = ()

    def __str__(self) -> str:
        return f"it is another number than in all trials where {sizes_text(dict(self.layout))}"


@dataclasses.dataclass(frozen=True)
class _Scanned:
    """``ranges``: the least and the largest number of each value, none for sizes that the graph does not take.
    ``largest``: the bytes of the largest value."""

    ranges: Mapping[ir.Node, Range]
    largest: int


@dataclasses.dataclass(frozen=True)
class SizedGraph:
    """A graph whose sizes can be chosen: its nodes in topological order, and the free ``symbols``. ``completed`` adds
    the sizes that follow from theirs; ``allows`` tells whether the graph takes them. Sizes next to the ``numbers`` in
    the graph are scanned, until a value takes ``most_bytes``."""

    nodes: Sequence[ir.Node]
    symbols: Sequence[str]
    dataflow: DataFlow
    numbers: Callable[[], Collection[float]]
    completed: Callable[[Layout], Layout] = dict
    allows: Callable[[Layout], bool] = lambda layout: True
    most_bytes: int = MOST_BYTES

    @staticmethod
    def of_block(block: Block) -> SizedGraph:
        symbols = [*symbols_of(block.x), *block.other_symbols]
        return SizedGraph(block.nodes, symbols, block.dataflow, block.numbers)


@dataclasses.dataclass
class SizeScan:
    """The part of a graph that is scanned: ``nodes`` compute numbers from sizes only; ``shapes`` are the sources of
    these sizes."""

    graph: SizedGraph
    nodes: list[ir.Node]
    shapes: list[ir.Node]

    @staticmethod
    def of(graph: SizedGraph) -> SizeScan:
        names = set(graph.completed(dict.fromkeys(graph.symbols, 1)))
        shapes = [node for node in graph.nodes if node.op_type == "Shape" and _is_known(node.inputs[0], names)]
        sizes = {node.outputs[0] for node in shapes}
        computed: list[ir.Node] = []
        for node in graph.nodes:
            used = [value for value in node.inputs if value is not None]
            if used and all(value in sizes or graph.dataflow.constant(value) for value in used) and node.outputs:
                computed.append(node)
                sizes.update(node.outputs)
        flat = _flat(graph, computed)
        nodes = [node for node in _entering(graph, computed, shapes) if node not in flat]
        return SizeScan(graph, nodes, shapes)

    def varying(self, seen: Sequence[Layout]) -> list[ir.Node]:
        """Values that were several numbers in the layouts that were ``seen``."""
        ranges = [self._scanned(layout).ranges for layout in seen]
        met = {node for range_of in ranges for node in range_of}
        return [node for node in self.nodes if node in met and _constant_in(node, ranges) is None]

    def differing(self, seen: Sequence[Layout], fits: Callable[[Layout], bool]) -> Iterator[tuple[ir.Node, Layout]]:
        """Values that were constant in all layouts that were ``seen``, each with the layout where it differs most from
        that number. Layouts that fit a trial (``fits``) come first. A larger one follows only if the value changes
        further there: a switch that a trial shows completely needs no other."""
        ranges = [self._scanned(layout).ranges for layout in seen]
        fixed = {node: fixed_number for node in self.nodes if (fixed_number := _constant_in(node, ranges)) is not None}
        near = {node: 2 * NEAR * max(1.0, abs(number)) for node, number in fixed.items()}
        farthest: dict[tuple[ir.Node, bool], tuple[float, Layout]] = {}
        for layout, range_of in self._scan() if fixed else ():
            within = fits(layout)
            for node, number in fixed.items():
                distance = max(abs(number - end) for end in range_of.get(node, (number, number)))
                if distance > farthest.get((node, within), (near[node],))[0]:
                    farthest[node, within] = distance, layout
        for node in fixed:
            tried = farthest.get((node, True), (near[node], None))
            beyond = farthest.get((node, False), (0.0, None))
            if tried[1] is not None:
                yield node, tried[1]
            if beyond[1] is not None and beyond[0] > GOES_ON * tried[0]:
                yield node, beyond[1]

    def unseen(self, node: ir.Node, layout: Layout) -> Unseen:
        return Unseen(node, _OversizedValue(layout=tuple(layout.items())))

    def _scan(self) -> Iterator[tuple[Layout, Mapping[ir.Node, Range]]]:
        """Values for each symbol alone, and all together, at growing sizes and beside the numbers in the block, as far
        as memory allows."""
        symbols = list(self.graph.symbols)
        numbers = sorted(abs(number) for number in self.graph.numbers() if number)[:24]
        products = [a * b for a in numbers for b in (*numbers, *(1 / divisor for divisor in numbers))]
        nearby = {int(number) + step for number in (*numbers, *products) for step in (0, 1) if number < LARGEST}
        steps = itertools.takewhile(LARGEST.__ge__, (int(4 * GROWTH**step) for step in itertools.count()))
        sizes = sorted({*steps, *itertools.islice(sorted(nearby - {0}), 200)})
        together = [tuple(symbols)] if len(symbols) > 1 else []
        for long in [*((symbol,) for symbol in symbols), *together]:
            most = 0.0
            for before, size in itertools.pairwise([1, *sizes]):
                if most * (size / before) ** (2 * len(long)) > self.graph.most_bytes:
                    break
                layout = dict.fromkeys(symbols, 1) | dict.fromkeys(long, size)
                if not self.graph.allows(layout):
                    continue
                scanned = self._scanned(layout)
                yield layout, scanned.ranges
                most = max(most, scanned.largest)

    def _scanned(self, layout: Layout) -> _Scanned:
        range_of: dict[ir.Node, Range] = {}
        taken = [0]

        def note(node: ir.Node, inputs: Given, outputs: Given) -> None:
            array = outputs[0]
            taken.append(0 if array is None else array.nbytes)
            if array is not None and array.size and array.dtype.kind in "fiub":
                range_of[node] = float(array.min()), float(array.max())

        try:
            sizes = self.graph.completed(layout)
            self._evaluator.run({node.outputs[0]: _shape_of(node, sizes) for node in self.shapes}, note)
        except (EvaluationError, MemoryError):
            range_of = {}
        return _Scanned(range_of, max(taken))

    @functools.cached_property
    def _evaluator(self) -> Evaluator:
        fed = [node.outputs[0] for node in self.shapes]
        nodes = self.graph.dataflow.between([node.outputs[0] for node in self.nodes], stop=fed.__contains__)
        outputs = [node.outputs[0] for node in self.nodes[-1:]]
        return Evaluator(nodes, fed, outputs, {"": 24}, dtype=np.float64)


def _is_known(value: ir.Value | None, names: set[str]) -> bool:
    if value is None or value.shape is None:
        return False
    unnamed = any(isinstance(dim, ir.SymbolicDim) and dim.value is None for dim in value.shape)
    return not unnamed and set(symbols_of(value)) <= names


def _shape_of(node: ir.Node, layout: Layout) -> Array:
    assert node.inputs[0] is not None
    shape = shape_at(node.inputs[0], layout)
    return np.array(shape[slice(node.attributes.get_int("start", 0), node.attributes.get_int("end", len(shape)))])


def _entering(graph: SizedGraph, nodes: Sequence[ir.Node], shapes: Sequence[ir.Node]) -> list[ir.Node]:
    """The nodes whose numbers enter those of others, not only their shapes."""
    own = {*nodes, *shapes}
    entering: set[ir.Node] = set()
    for node in reversed(graph.nodes):
        if node in own and node not in entering:
            continue
        for place, value in enumerate(node.inputs):
            maker = None if value is None else value.producer()
            if maker in own and _SHAPED.get(node.op_type) != place:
                entering.add(maker)
    return [node for node in nodes if node in entering]


def _flat(graph: SizedGraph, nodes: Sequence[ir.Node]) -> set[ir.Node]:
    """Nodes that fill any number of elements with one constant."""
    flat: set[ir.Node] = set()

    def is_flat(value: ir.Value | None) -> bool:
        maker = None if value is None else value.producer()
        return value is None or maker in flat or (graph.dataflow.constant(value) and _is_single(value))

    for node in nodes:
        others = [value for place, value in enumerate(node.inputs) if _SHAPED.get(node.op_type) != place]
        if (node.op_type in _FILLING or node.op_type in ELEMENTWISE) and all(map(is_flat, others)):
            flat.add(node)
    return flat


def _is_single(value: ir.Value) -> bool:
    return value.shape is not None and all(size == 1 for size in value.shape)


def _constant_in(node: ir.Node, ranges: Sequence[Mapping[ir.Node, Range]]) -> float | None:
    """The one number that a value is in all of them."""
    numbers = [number for range_of in ranges for number in range_of.get(node, ())]
    if not numbers or not np.isfinite(numbers).all():
        return None
    low, high = min(numbers), max(numbers)
    return (low + high) / 2 if high - low <= NEAR * max(1.0, abs(high)) else None
