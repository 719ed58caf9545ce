"""Properties of a graph that need no run: constants, order, and dependencies of values.

Reading only the shape of a value (``Shape``) does not count as depending on its data.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from moec.common.errors import UnsupportedError
from moec.ir.interpreter import evaluate
from moec.ir.intervals import Interval
from moec.ir.movement import MOVEMENTS
from moec.ir.weights.stacks import ExpertStack
from moec.ir.weights.stored import WeightRun, weight_runs
from moec.ir.widened import WidenedConstants
from moec.passes.graph.edits import is_op
from moec.passes.raising.dominators import Dominators

Array = np.ndarray[Any, Any]


class DataFlow:
    """Constants, node order and data flow of one graph. Valid while the graph only changes as announced to
    :meth:`extend`, or by removing unused nodes."""

    def __init__(self, graph: ir.Graph) -> None:
        self._graph = graph
        self.order: dict[ir.Node, float] = {}
        self._room: dict[ir.Node, float] = {}  # how far in front of a node there is no other; 1 where nothing is said
        self._arrays: dict[ir.Value, Array] = {}
        self.widened = WidenedConstants()
        self.bounds: dict[ir.Value, Interval] = {}
        """Bounds of values as far as they were asked for, whatever projections give."""
        self._stored: dict[ir.Value, WeightRun | None] = {}
        self._constant = set(filter(_is_initial, graph.initializers.values()))
        self._from_shapes: set[ir.Value] = set()
        self._dominators = Dominators(lambda value: not self._is_free_of_data(value))
        self._learn({node: position for position, node in enumerate(graph)})

    def extend(self, nodes: Sequence[ir.Node], before: ir.Node) -> None:
        """Learn new nodes, given in order, that are in front of another and compute in its place the same result.

        Takes time only for these nodes: a graph with many blocks is read once.
        """
        self._constant.update(value for node in nodes for value in node.inputs if value and _is_initial(value))
        end, room = self.order[before], self._room.get(before, 1.0)
        self._dominators.forget([value for node in (*nodes, before) for value in node.outputs])
        step = room / (len(nodes) + 1)
        self._room.update(dict.fromkeys((*nodes, before), step))
        self._learn({node: end - room + step * place for place, node in enumerate(nodes, 1)})

    def _learn(self, order: Mapping[ir.Node, float]) -> None:
        self.order.update(order)
        self.outputs = {value for value in self._graph.outputs if value is not None}
        for node in order:
            if self._is_constant(node):
                self._constant.update(node.outputs)
            if node.op_type in ("Shape", "Size") or (
                node.inputs and all(value is None or self._is_free_of_data(value) for value in node.inputs)
            ):
                self._from_shapes.update(node.outputs)

    def _is_constant(self, node: ir.Node) -> bool:
        if node.op_type == "Constant" and not node.domain:
            return True
        inputs = [value for value in node.inputs if value is not None]
        has_body = any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values())
        return bool(inputs) and not has_body and all(value in self._constant for value in inputs)

    def _is_free_of_data(self, value: ir.Value) -> bool:
        """Whether a value depends only on constants and shapes."""
        return value in self._constant or value in self._from_shapes

    def constant(self, value: ir.Value | None) -> bool:
        return value is not None and value in self._constant

    def array(self, value: ir.Value) -> Array:
        """The elements of a constant value. Folded constants are computed on first use and cached; a weight that is
        stored in fewer bits is decoded on every use."""
        if value.const_value is not None:
            return value.const_value.numpy()
        run = self.stored(value)
        if run is not None:
            experts = [run.decoded(expert) for expert in range(run.count)]
            return experts[0] if rank_of(run) == 2 else np.stack(experts)
        if value not in self._arrays:
            nodes = self.between([value], stop=lambda v: v.const_value is not None)
            self._arrays[value] = evaluate(nodes, {}, [value])[0]
        return self._arrays[value]

    def stored(self, value: ir.Value) -> WeightRun | None:
        """The stored form of a weight in fewer than 32 bits; None for every other value. Cached, because the value may
        outlive its node."""
        if value not in self._stored:
            self._stored[value] = _stored(value)
        return self._stored[value]

    def shape(self, value: ir.Value) -> tuple[int, ...]:
        """The shape of a constant value."""
        if value.shape is not None and value.shape.is_static():
            return tuple(value.shape.numpy())
        return self.array(value).shape

    def scalar(self, value: ir.Value | None) -> float | None:
        """The number a constant of one element holds; None for everything else."""
        if value is None or not self.constant(value) or int(np.prod(self.shape(value))) != 1:
            return None
        array = self.array(value)
        return float(array.reshape(())) if array.dtype.kind in "fiu" else None

    def is_mask(self, value: ir.Value) -> bool:
        """Whether a constant holds a single number, like the start of a sum, or one number and 0 or an infinity, like
        masks and one-hot tables."""
        run = self.stored(value)
        if run is not None and (run.format.quantized or not self._is_mask(run.decoded(0))):
            return False
        if isinstance(value.const_value, ExpertStack) and not self._is_mask(value.const_value.expert(0)):
            return False  # one expert says so: a stack that computes itself would compute all of them
        return self._is_mask(self.array(value))

    @staticmethod
    def _is_mask(array: Array) -> bool:
        flat = array.reshape(-1)
        if flat.size == 0 or np.unique(flat[:64]).size > 2:
            return False
        is_first = flat == flat[0]
        others = flat[~is_first]
        return others.size == 0 or bool((others == others[0]).all() and ({flat[0], others[0]} & {0, np.inf, -np.inf}))

    def between(self, outputs: Iterable[ir.Value], stop: Callable[[ir.Value], bool]) -> list[ir.Node]:
        """The nodes that compute ``outputs`` from the values for which ``stop`` holds, in graph order."""
        return self.few_between(outputs, stop, len(self.order)) or []

    def few_between(
        self, outputs: Iterable[ir.Value], stop: Callable[[ir.Value], bool], most: int
    ) -> list[ir.Node] | None:
        """:meth:`between` if there are at most ``most`` nodes, else None."""
        nodes: set[ir.Node] = set()
        pending = [value for value in outputs if not stop(value)]
        while pending:
            node = pending.pop().producer()
            if node is None or node in nodes:
                continue
            nodes.add(node)
            if len(nodes) > most:
                return None
            pending.extend(value for value in node.inputs if value is not None and not stop(value))
        return sorted(nodes, key=self.order.__getitem__)

    def dependents(self, values: Iterable[ir.Value], within: Iterable[ir.Node]) -> set[ir.Value]:
        """``values`` and all that is computed from their data by the nodes ``within`` (given in graph order)."""
        reached = set(values)
        for node in within:
            if node.op_type != "Shape" and any(value in reached for value in node.inputs):
                reached.update(node.outputs)
        return reached

    def depends(self, value: ir.Value, source: ir.Value) -> bool:
        """Whether ``value`` is ``source`` or computed from its data. Visits only nodes between the two."""
        producer = source.producer()
        start = -1 if producer is None else self.order[producer]
        pending, seen = [value], set[ir.Node]()
        while pending:
            value = pending.pop()
            if value is source:
                return True
            node = value.producer()
            if node is not None and node not in seen and node.op_type != "Shape" and self.order[node] > start:
                seen.add(node)
                pending.extend(operand for operand in node.inputs if operand is not None)
        return False

    def determined_by(self, values: Iterable[ir.Value]) -> frozenset[ir.Value]:
        """``values`` and all values that depend only on them, constants and shapes."""
        determined = set(values)

        def follows(node: ir.Node) -> bool:
            return all(value is None or value in determined or self._is_free_of_data(value) for value in node.inputs)

        for node in self._downstream(determined, follows):
            determined.update(node.outputs)
        return frozenset(determined)

    def readers(
        self, values: Iterable[ir.Value], through: Callable[[ir.Node], bool] = lambda node: True
    ) -> Iterator[ir.Node]:
        """The nodes for which ``through`` holds that compute from the data of ``values``, directly or from results of
        other such nodes, in graph order."""
        return self._downstream(values, lambda node: node.op_type != "Shape" and through(node))

    def _downstream(self, values: Iterable[ir.Value], follows: Callable[[ir.Node], bool]) -> Iterator[ir.Node]:
        """The nodes after ``values`` that can be reached through nodes for which ``follows`` holds, in graph order."""
        queue: list[tuple[float, ir.Node]] = []
        seen: set[ir.Node] = set()
        pending = list(values)
        while pending or queue:
            for node in (node for value in pending for node in value.consumers()):
                if node in self.order and node not in seen:
                    seen.add(node)
                    heapq.heappush(queue, (self.order[node], node))
            pending = []
            if queue:
                _, node = heapq.heappop(queue)
                if follows(node):
                    yield node
                    pending = list(node.outputs)

    def post_dominators(
        self, values: Iterable[ir.Value], sources: frozenset[ir.Value] = frozenset()
    ) -> Iterator[ir.Value]:
        """The post-dominators of ``values``: the values that everything computed from them passes through, nearest
        first. Uses of ``sources`` as results, or for results alone, do not count."""
        reached = list(values)
        others = sources.difference(self._on_the_way(sources), reached)
        alive_until = max((self._last_data_use(value, others) for value in reached), default=-1)
        for node in self.readers(reached):
            if alive_until == float("inf"):  # a result or a body reads one of them, and nothing comes after that
                return
            if not others.isdisjoint(node.outputs):
                continue
            position = self.order[node]
            if len(node.outputs) == 1 and alive_until <= position:
                yield node.outputs[0]
            for value in node.outputs:
                returned = value in self.outputs and value not in sources
                alive_until = max(alive_until, float("inf") if returned else self._last_data_use(value, others))

    def _on_the_way(self, sources: frozenset[ir.Value]) -> set[ir.Value]:
        """Outputs of the producers of all ``sources`` from which something outside ``sources`` is computed."""
        upstream: set[ir.Value] = set()
        pending = [
            v for v in sources if any(n.op_type != "Shape" and sources.isdisjoint(n.outputs) for n in v.consumers())
        ]
        while pending:
            node = pending.pop().producer()
            if node is not None and node.outputs[0] not in upstream:
                upstream.update(node.outputs)
                pending.extend(value for value in node.inputs if value in sources)
        return upstream

    def _last_data_use(self, value: ir.Value, others: frozenset[ir.Value]) -> float:
        """Position of the last node that uses the data of ``value``, except for nodes that compute one of ``others``;
        bodies of If and Loop come after everything."""
        readers = (n for n in value.consumers() if n.op_type != "Shape" and others.isdisjoint(n.outputs))
        return max((self.order.get(node, float("inf")) for node in readers), default=-1)

    def dominators(self, value: ir.Value, sources: frozenset[ir.Value] = frozenset()) -> Iterator[ir.Value]:
        """The dominators of ``value``: the values that all its data comes through, nearest first. ``sources`` counts as
        constant."""
        if not sources:
            yield from self._dominators.of(value)
            return
        first = min(-1 if v.producer() is None else self.order[v.producer()] for v in sources)  # type: ignore[index]
        pending = {value}
        while pending:
            inner = [v for v in pending if v.producer() is not None]
            node = max((v.producer() for v in inner), key=lambda n: self.order[n], default=None)  # type: ignore[index]
            if len(pending) - len(inner) > 1:
                return
            if node is None or self.order[node] < first:  # none of them is computed from sources
                yield from self._dominators.of_all(pending)
                return
            if len(pending) == 1:
                yield next(iter(pending))
            pending.difference_update(node.outputs)
            pending.update(
                v for v in node.inputs if v is not None and v not in sources and not self._is_free_of_data(v)
            )


def _stored(value: ir.Value) -> WeightRun | None:
    if not is_op(value.producer(), "DequantizeLinear", "Cast"):
        return None
    try:
        (run,) = weight_runs(value)
    except UnsupportedError:  # it is no weight, or of no format that experts can have
        return None
    return run if run.format.elements.bits < 32 else None


def _is_initial(value: ir.Value) -> bool:
    """Whether a value is an initializer that cannot be replaced: one that is also an input may be given another
    value."""
    return value.is_initializer() and value.const_value is not None and not value.is_graph_input()


def rank_of(run: WeightRun) -> int:
    """2 for a matrix, 3 for the matrices of several experts."""
    assert run.data.const_value is not None
    return len(run.data.const_value.shape)


def follow_data(value: ir.Value, until: Callable[[ir.Value], bool]) -> ir.Value | None:
    """Walk back from ``value`` through operators that only move data, to the first value for which ``until`` holds."""
    while not until(value):
        node = value.producer()
        if node is None or node.op_type not in MOVEMENTS or node.inputs[0] is None:
            return None
        value = node.inputs[0]
    return value
