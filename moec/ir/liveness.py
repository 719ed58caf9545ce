"""Live elements: the elements of a run's values that reach its results, so that a decision shows there.

If every expert is computed for every token, most results are multiplied by 0: a side that an expert takes for a token
that does not select it shows nothing. :class:`Liveness` watches one run and goes back from its results
(:mod:`moec.ir.live_rules`). Live elements need not reach the results, but all others cannot. The values that hide
others (a factor of 0, a branch that is not taken) must not depend on the decision in question, because its other side
might uncover them. Therefore neither factor of ``Mul (r, r)`` with ``r = Relu (x)`` hides the other. Nor does a value
hide another one that is computed from the same numbers, element by element: ``Where (x > 20, x, Min (x, 20))`` would
never show the minimum.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from moec.ir.graphs import read_values
from moec.ir.interpreter import Evaluator
from moec.ir.live_rules import HIDING, PRODUCTS, Found, NodeRun, Shape, is_pointwise, keeps_positions, reached
from moec.ir.sides import Array, Given, Live

NEGLIGIBLE = 1e-4
"""Least factor that counts, relative to the largest in a run: a smaller weight shows in no comparison."""
MOST_PIECES = 8
"""Largest number of groups of decisions that one value separates; with more, the elements of all count for each."""
Piece = tuple[int, Array]
"""Decisions, as bits, and the elements of a value through which these reach the results."""


class Liveness:
    """A watch over one run of ``evaluator``; :meth:`of_decisions` then returns the live elements of the results of
    the nodes ``decisions``. ``data`` and ``choices`` are the values that depend on rows and on the selection of
    experts. ``without_zeros`` caches, from run to run, whether constants have no zeros."""

    def __init__(
        self,
        evaluator: Evaluator,
        decisions: Sequence[ir.Node],
        data: Collection[ir.Value],
        choices: Collection[ir.Value],
        without_zeros: dict[ir.Value, bool],
    ) -> None:
        self._operators, self._without_zeros = evaluator.operators, without_zeros
        self._data, self._choices = data, choices
        self._bits = {node: 1 << place for place, node in enumerate(decisions)}
        self._decisions: dict[ir.Value, int] = {}
        for node in self._operators:
            bits = self._bits.get(node, 0)
            for value in read_values(node):
                bits |= self._decisions.get(value, 0)
            if bits:
                self._decisions.update(dict.fromkeys(node.outputs, bits))
        self._sources = _sources(self._operators, data)
        self._steps: list[NodeRun] = []

    def __call__(self, node: ir.Node, inputs: Given, outputs: Given) -> None:
        if any(value in self._decisions for value in node.outputs):
            shapes = [None if array is None else tuple(array.shape) for array in inputs]
            indices = [None, *inputs[1:]] if inputs and keeps_positions(node) else [None] * len(inputs)
            results = [() if array is None else np.shape(array) for array in outputs]
            step = NodeRun(node, self._operators[node], shapes, results, indices, self._counting(node, inputs))
            self._steps.append(step)

    def of_decisions(self, results: Mapping[ir.Value, Array]) -> dict[ir.Node, Live]:
        """The live elements of the first output of each node ``told``: those that reach the given elements of
        ``results``. None, for all elements, if they are hidden whatever is selected: such a decision has nothing to
        show."""
        live = self._back(results, choices=True)
        if all(mask.any() for mask in live.values()):
            return {**live}
        hidden = {node for node, mask in self._back(results, choices=False).items() if not mask.any()}
        return {node: None if node in hidden else mask for node, mask in live.items()}

    def _back(self, results: Mapping[ir.Value, Array], *, choices: bool) -> dict[ir.Node, Array]:
        every = (1 << len(self._bits)) - 1
        live = {value: [(every, mask)] for value, mask in results.items()}
        shown: dict[ir.Node, Array] = {}
        for step in reversed(self._steps):
            outputs = zip(step.node.outputs, step.results, strict=False)
            pieces = list(_side_by_side([_of_shape(live.pop(value, []), shape) for value, shape in outputs]))
            bit = self._bits.get(step.node, 0)
            if bit:
                shown[step.node] = _shown(step, [flags for bits, flags in pieces if bits & bit])
            hiders = [place for place in step.counting if choices or self._is_fixed(step.node.inputs[place])]
            self._step_back(step, hiders, pieces, live)
        return shown

    def _step_back(
        self,
        step: NodeRun,
        hiders: Collection[int],
        pieces: Sequence[tuple[int, Found]],
        live: dict[ir.Value, list[Piece]],
    ) -> None:
        for place, value in enumerate(step.node.inputs):
            if value is None or value not in self._decisions or step.shapes[place] is None:
                continue
            own = [
                (part, reached(step, place, flags, hiding))
                for bits, flags in pieces
                for hiding, part in self._apart(step.node, place, hiders, bits & self._decisions[value]).items()
            ]
            if own:
                live[value] = _merged(live.get(value, []), _merged([], own))
        for value in set(read_values(step.node)).difference(step.node.inputs):  # what bodies read
            live[value] = [(bits, np.ones((), bool)) for bits, _ in pieces]

    def _apart(self, node: ir.Node, place: int, hiders: Collection[int], bits: int) -> dict[frozenset[int], int]:
        """The other operands that may hide elements of one from decisions; no operand hides a decision that it depends
        on."""
        groups = {frozenset[int](): bits} if bits else {}
        for other in hiders:
            if other == place:
                continue
            shared = self._spared(node.inputs[other])
            parts: dict[frozenset[int], int] = {}
            for hiding, part in groups.items():
                for key, some in ((hiding | {other}, part & ~shared), (hiding, part & shared)):
                    if some:
                        parts[key] = parts.get(key, 0) | some
            groups = parts
        return groups

    def _counting(self, node: ir.Node, inputs: Given) -> dict[int, Array]:
        """The elements that count, of operands that can hide elements of others."""
        places = HIDING.get(node.op_type, ()) if node.domain == "" else ()
        counting: dict[int, Array] = {}
        for place in range(len(inputs)) if places is None else places:
            array, value = inputs[place], node.inputs[place]
            if not isinstance(array, np.ndarray) or value is None or (node.op_type == "Gemm" and place == 2):
                continue
            if not any(self._decisions_in(other) & ~self._spared(value) for other in node.inputs):
                continue
            constant = ir.convenience.get_const_tensor(value) is not None
            if constant and node.op_type in PRODUCTS and self._has_no_zeros(value, array):
                continue
            weighs = array.dtype.kind == "f" and value in self._choices and value not in self._data
            counting[place] = _counts(array) if weighs else array != 0
        return counting

    def _decisions_in(self, value: ir.Value | None) -> int:
        return 0 if value is None else self._decisions.get(value, 0)

    def _is_fixed(self, value: ir.Value | None) -> bool:
        return value not in self._choices and value not in self._data

    def _spared(self, hider: ir.Value | None) -> int:
        """Decisions that a value cannot hide, because it depends on them or is computed from the same numbers."""
        spared = self._decisions_in(hider)
        if hider is None or hider not in self._data:
            return spared
        for node, bit in self._bits.items():
            about = frozenset[ir.Value]().union(*(self._sources.get(value, ()) for value in node.inputs if value))
            spared |= 0 if about.isdisjoint(self._sources.get(hider, ())) else bit
        return spared

    def _has_no_zeros(self, value: ir.Value, array: Array) -> bool:
        if value not in self._without_zeros:
            self._without_zeros[value] = bool(array.all())
        return self._without_zeros[value]


def _sources(nodes: Iterable[ir.Node], data: Collection[ir.Value]) -> dict[ir.Value, frozenset[ir.Value]]:
    """The values that each value is computed from, element by element."""
    sources = {value: frozenset([value]) for value in data}
    for node in nodes:
        if is_pointwise(node):
            origin = frozenset[ir.Value]().union(
                *(sources.get(value, ()) for value in node.inputs if value is not None)
            )
            sources.update(dict.fromkeys(node.outputs, origin))
    return sources


def _counts(array: Array) -> Array:
    sizes = np.abs(array)
    largest = sizes.max(initial=0, where=np.isfinite(sizes))
    return ~(sizes <= NEGLIGIBLE * largest)


def _shown(step: NodeRun, pieces: Sequence[Found]) -> Array:
    """Elements of the first output; of several outputs whether any element of any does."""
    parts = [flags for outputs in pieces for flags in outputs if flags is not None]
    if len(step.results) == 1 and parts:
        return parts[0]
    return np.full(step.results[0], any(flags.any() for flags in parts))


def _side_by_side(outputs: Sequence[Sequence[Piece]]) -> Iterator[tuple[int, Found]]:
    """Pieces of each output side by side; several outputs count for the decisions of all."""
    if len(outputs) == 1:
        yield from ((bits, [mask]) for bits, mask in outputs[0])
    elif any(outputs):
        bits = 0
        for pieces in outputs:
            for some, _ in pieces:
                bits |= some
        yield bits, [_union(pieces) for pieces in outputs]


def _of_shape(pieces: Sequence[Piece], shape: Shape) -> list[Piece]:
    """Pieces of a value, of which it may not have been known how large it is."""
    return [(bits, np.broadcast_to(mask, shape)) for bits, mask in pieces]


def _union(pieces: Sequence[Piece]) -> Any:
    return np.logical_or.reduce([mask for _, mask in pieces]) if pieces else None


def _merged(first: Sequence[Piece], other: Sequence[Piece]) -> list[Piece]:
    """Pieces of no common decision in which the elements of both count."""
    pieces = list(first)
    for bits, mask in other:
        apart: list[Piece] = []
        for piece_bits, own in pieces:
            apart += [(piece_bits & bits, own | mask)] if piece_bits & bits else []
            apart += [(piece_bits & ~bits, own)] if piece_bits & ~bits else []
            bits &= ~piece_bits
        pieces = [*apart, *([(bits, mask)] if bits else [])]
    if len(pieces) > MOST_PIECES:
        together = 0
        for bits, _ in pieces:
            together |= bits
        return [(together, _union(pieces))]
    return pieces
