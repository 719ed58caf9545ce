"""Groups of nodes that come directly before and after each node of a graph.

A group stands for a part of a model, such as one attention. Paths end at groups: a node *leads to* a group where a path
reaches it that crosses no other group, and *stems from* a group likewise. A node that leads to one group alone, or
stems from one alone, belongs to that part: a residual connection goes around the part, so that its sum stems from
several (dominators, on the scale of parts).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator

import onnx_ir as ir

from moec.ir.graphs import is_op, read_values

STREAM = 1
"""Bit of the model's own stream of data, in sets of groups. Group g has the bit g + 1."""
_FLOATS = frozenset(dtype for dtype in ir.DataType if dtype.is_floating_point())
_PRODUCTS = ("MatMul", "Gemm", "Conv", "ConvTranspose", "Einsum", "MatMulInteger", "QLinearMatMul")


class Wiring:
    """The nodes of a graph by number, in topological order, and the group of each (None: not in any yet)."""

    def __init__(self, graph: ir.Graph, states: Collection[str]) -> None:
        """``states``: names of the inputs that a run takes from the run before."""
        self.nodes = list(graph)
        self.group: list[int | None] = [None] * len(self.nodes)
        self._outputs = set(graph.outputs)
        self._producer = {value: place for place, node in enumerate(self.nodes) for value in node.outputs}
        self._readers: dict[ir.Value, list[int]] = {}
        for place, node in enumerate(self.nodes):
            for value in read_values(node):
                self._readers.setdefault(value, []).append(place)
        self._fixed: set[ir.Value] = set(graph.initializers.values())
        for node in self.nodes:  # a node without inputs, such as one that draws numbers, is not constant
            if node.inputs and all(value in self._fixed for value in read_values(node)):
                self._fixed.update(node.outputs)
        self._states = set(states)
        self._data = self._of_data(graph)
        self.products = {place for place, node in enumerate(self.nodes) if self._multiplies_by_weights(node)}
        self._feeds = self._feeding()

    def is_fixed(self, value: ir.Value) -> bool:
        """Whether a value is a weight, or computed from weights alone."""
        return value in self._fixed

    def is_constant(self, place: int) -> bool:
        """Whether a node computes from weights alone."""
        outputs = self.nodes[place].outputs
        return bool(outputs) and outputs[0] in self._fixed

    def readers(self, value: ir.Value) -> list[int]:
        """Numbers of the nodes that read a value."""
        return self._readers.get(value, [])

    def before(self, place: int) -> Iterator[int]:
        """Numbers of the nodes whose values a node reads."""
        return (self._producer[value] for value in read_values(self.nodes[place]) if value in self._producer)

    def after(self, place: int) -> Iterator[int]:
        """Numbers of the nodes that read a node's values."""
        return (reader for value in self.nodes[place].outputs for reader in self.readers(value))

    def leads_to(self) -> list[int]:
        """Compute the set of groups, as bits, that each node leads to. :data:`STREAM` stands for an output of the
        model that no node reads; one that is read, such as a key, is kept for the next run."""
        sets = [0] * len(self.nodes)
        for place in reversed(range(len(self.nodes))):
            for value in self.nodes[place].outputs:
                readers = self.readers(value)
                sets[place] |= STREAM if value in self._outputs and not readers else 0
                for reader in readers:
                    sets[place] |= self._bits(reader, sets)
        return sets

    def stems_from(self) -> list[int]:
        """Compute the set of groups, as bits, that each node stems from by floats. :data:`STREAM` stands for data that
        enters the model, except states, and except what is computed from sizes and positions and reaches no product."""
        sets = [0] * len(self.nodes)
        for place, node in enumerate(self.nodes):
            for value in read_values(node):
                if value in self._producer and _is_float(value):
                    sets[place] |= self._bits(self._producer[value], sets)
                elif value.is_graph_input() and _is_float(value) and value.name not in self._states:
                    sets[place] |= STREAM
            if not sets[place] and self._feeds[place] and self._data[place] and _is_float(node.outputs[0]):
                sets[place] = STREAM
        return sets

    def embeds(self, place: int) -> bool:
        """Whether a node looks data of the stream up in a table of weights."""
        node = self.nodes[place]
        if not is_op(node, "Gather", "GatherND") and node.op_type != "GatherBlockQuantized":
            return False
        table = node.inputs[0]
        return table is not None and self.is_fixed(table) and self._data[place] and self._feeds[place]

    def convolves_tokens(self, place: int) -> bool:
        """Whether a node is a convolution along one axis, as state space models have before their recurrence."""
        weights = self.nodes[place].inputs[1] if is_op(self.nodes[place], "Conv") else None
        return weights is not None and weights.shape is not None and len(weights.shape) == 3

    def _bits(self, place: int, sets: list[int]) -> int:
        group = self.group[place]
        return sets[place] if group is None else 1 << (group + 1)

    def _multiplies_by_weights(self, node: ir.Node) -> bool:
        if not is_op(node, *_PRODUCTS) and node.op_type != "Linear":
            return False
        fixed = [place for place, value in enumerate(node.inputs) if value is not None and self.is_fixed(value)]
        return any(_adds_up(node, place) for place in fixed[:1]) and not self._fixed.issuperset(read_values(node))

    def _of_data(self, graph: ir.Graph) -> list[bool]:
        """Whether each node depends on the numbers of an input, and not just on its sizes."""
        depends = [False] * len(self.nodes)
        inputs = set(graph.inputs)
        for place, node in enumerate(self.nodes):
            if not is_op(node, "Shape", "Size"):
                read = list(read_values(node))
                depends[place] = any(value in inputs or depends[self._producer.get(value, place)] for value in read)
        return depends

    def _feeding(self) -> list[bool]:
        """Whether the floats of each node reach a product by weights, or a MoE block, around no attention."""
        feeds = [False] * len(self.nodes)
        for place in reversed(range(len(self.nodes))):
            readers = [r for value in self.nodes[place].outputs if _is_float(value) for r in self.readers(value)]
            feeds[place] = any(
                reader in self.products
                or self.nodes[reader].domain == "moec"
                or (feeds[reader] and not _mixes(self.nodes[reader]))
                for reader in readers
            )
        return feeds


def _mixes(node: ir.Node) -> bool:
    return node.op_type in MIXERS


MIXERS = {
    "Attention": "attention",
    "LinearAttention": "recurrent",
    "LSTM": "recurrent",
    "GRU": "recurrent",
    "RNN": "recurrent",
}
"""Kinds of operators that mix tokens."""


def _is_float(value: ir.Value) -> bool:
    return value.dtype is None or value.dtype in _FLOATS


def _adds_up(node: ir.Node, place: int) -> bool:
    """Whether a product adds several numbers up along an axis of its operand at a place: a table of frequencies, which
    multiplies positions one by one, has one."""
    value = node.inputs[place]
    shape = None if value is None else value.shape
    if shape is None or not shape:
        return shape is None
    if not is_op(node, "MatMul", "Gemm"):
        return math.prod(size if isinstance(size, int) else 2 for size in shape) > 1
    is_transposed = bool(node.attributes.get_int("transB" if place else "transA", 0))
    size = shape[-1] if len(shape) == 1 or (place == 0) != is_transposed else shape[-2]
    return not isinstance(size, int) or size > 1


def bits_of(groups: int) -> Iterator[int]:
    """Go through the groups in a set, without :data:`STREAM`."""
    groups >>= 1
    while groups:
        lowest = groups & -groups
        yield lowest.bit_length() - 1
        groups ^= lowest


def single(groups: int) -> int | None:
    """Return the one group of a set that has no other, and no :data:`STREAM`."""
    return (groups.bit_length() - 2) if groups > STREAM and not groups & (groups - 1) else None


def union(pairs: Iterable[tuple[int, int]], members: Iterable[int]) -> list[list[int]]:
    """Join members that are in a pair, also over others. Returns the sets in ascending order of their first members."""
    root = {member: member for member in members}

    def find(member: int) -> int:
        while root[member] != member:
            root[member] = root[root[member]]
            member = root[member]
        return member

    for a, b in pairs:
        low, high = sorted((find(a), find(b)))
        root[high] = low
    sets: dict[int, list[int]] = {}
    for member in sorted(root):
        sets.setdefault(find(member), []).append(member)
    return list(sets.values())
