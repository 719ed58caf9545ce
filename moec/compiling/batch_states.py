"""States that each run replaces, in the model of a batch: those of convolutions and of recurrences.

Such a state is [N, ...], with an entry for each of N sequences (:mod:`moec.ir.batches`).

1. LinearAttention reads the state of a sequence for each of its tokens. What lies between a state and its operator has
   to treat entries alone, which :mod:`moec.compiling.batches` proves.
2. A convolution over tokens reads rows of the last P inputs and the new ones of each sequence, one sequence behind the
   other. The places of the rows are inputs of the graph. Each window lies within a sequence, except those of results
   that no token has::

       rows = Concat <axis = 2> (past, x)              [1, C, P + T]
       after = Slice (rows, -P, end, 2)                [1, C, P]
       y = Conv (rows, w)                              [1, C, T]
           ->
       apart = Transpose <perm = [1, 0, 2]> (past)     [C, N, P]
       before = Reshape (apart, [1, C, -1])            [1, C, N * P]
       all = Concat <axis = 2> (before, x)             [1, C, N * P + T]
       rows = Gather <axis = 2> (all, joined)          [1, C, N * P + T]
       last = Gather <axis = 2> (rows, last)           [1, C, N, P]
       channels = Reshape (last, [C, -1, P])           [C, N, P]
       after = Transpose <perm = [1, 0, 2]> (channels) [N, C, P]
       convolved = Conv (rows, w)                      [1, C, N * P + T - P]
       y = Gather <axis = 2> (convolved, convolved)    [1, C, T]
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
import onnx_ir as ir

from moec.common.errors import UnsupportedError
from moec.common.specs import CONVOLVED, JOINED, LAST, SEQUENCES
from moec.ir.graphs import add_constant, is_op
from moec.ir.sequence_cuts import known_shape, size_names
from moec.ir.weights.stored import constant

_AXIS = 2
_BEHIND_ALL = np.iinfo(np.int32).max


@dataclasses.dataclass(frozen=True)
class BatchConvolution:
    """A convolution over the tokens of all sequences. ``nodes``: all of it. ``past``, ``x``: its state and new inputs;
    ``afters``, ``results``: its states and results; ``operands``: weights and biases."""

    nodes: Sequence[ir.Node]
    past: ir.Value
    x: ir.Value
    afters: Sequence[ir.Value]
    results: Sequence[ir.Value]
    operands: Sequence[ir.Value]


def separate_states(graph: ir.Graph, names: Sequence[str], tokens: str) -> list[BatchConvolution]:
    """Let the states ``names``, [1, ...] so far, have an entry for each sequence. ``tokens``: size of new tokens.

    Returns the convolutions. Raises UnsupportedError where these keep different numbers of inputs."""
    states = {value for value in graph.inputs if value.name in names}
    moved = followers(graph, states)
    appending = [(node, count) for node in list(graph) if (count := appends_inputs(node, moved))]
    for value in moved:
        shape = known_shape(value)
        if shape is not None and shape[:1] == [1]:
            value.shape = ir.Shape([ir.SymbolicDim(SEQUENCES), *shape[1:]])
    if not appending:
        _forget_unknown_sizes(graph)
        return []
    counts = {count for _, count in appending}
    if len(counts) > 1:
        kept = ", ".join(map(str, sorted(counts)))
        raise UnsupportedError(
            f"no batches of sequences: convolutions keep {kept} inputs; expected the same number in all layers"
        )
    places = _RowPlaces.of(graph, tokens, *counts)
    convolutions = [_Rewrite(graph, node, places).run() for node, _ in appending]
    _forget_unknown_sizes(graph)
    return convolutions


def _forget_unknown_sizes(graph: ir.Graph) -> None:
    """Forget shapes with sizes that no input has, such as those behind a convolution, so that they are inferred again
    from the number of tokens."""
    names_of_inputs = {name for value in graph.inputs for size in known_shape(value) or () for name in size_names(size)}
    for value in (value for node in graph for value in node.outputs):
        shape = known_shape(value)
        if shape is None or not {name for size in shape for name in size_names(size)} <= names_of_inputs:
            value.shape = None


def followers(graph: ir.Graph, states: set[ir.Value]) -> set[ir.Value]:
    """States, and what nodes make of the numbers of one of them and of constants."""
    moved = set(states)
    for node in graph:
        reads = [] if is_op(node, "Shape") else [value for value in node.inputs if value is not None]
        others = [value for value in reads if value not in moved]
        if len(others) < len(reads) and all(constant(value) is not None for value in others):
            moved.update(node.outputs)
    return moved


def appends_inputs(node: ir.Node, moved: set[ir.Value]) -> int:
    """Number of earlier inputs, one of the ``moved`` states, to which a node appends the new ones of a convolution; 0
    for another node."""
    if not is_op(node, "Concat") or len(node.inputs) != 2 or node.inputs[0] not in moved:
        return 0
    past, x = (known_shape(value) for value in node.inputs)
    if past is None or x is None or len(past) != 3 or node.attributes.get_int("axis", 0) % 3 != _AXIS:
        return 0
    count, rows = past[_AXIS], node.outputs[0]
    if not isinstance(count, int) or node.inputs[1] in moved or rows.is_graph_output():
        return 0
    readers = [reader for reader, _ in rows.uses()]
    return count if readers and all(_is_last(reader, count) or _convolves(reader, count) for reader in readers) else 0


def takes_last(node: ir.Node) -> bool:
    """Whether a node takes the last rows that a convolution reads, for the next run."""
    rows = node.inputs[0] if is_op(node, "Slice") else None
    concat = None if rows is None else rows.producer()
    past = known_shape(concat.inputs[0]) if is_op(concat, "Concat") else None
    count = past[_AXIS] if past is not None and len(past) == 3 else None
    return isinstance(count, int) and _is_last(node, count)


def _is_last(node: ir.Node, count: int) -> bool:
    """Whether a node takes the last ``count`` rows."""
    return _sliced_from(node) == -count


def _convolves(node: ir.Node, count: int) -> bool:
    """Whether a node convolves rows over windows that end with each new input, or drops first rows before that."""
    first = _sliced_from(node)
    if first is not None:
        users = [user for user, _ in node.outputs[0].uses()]
        is_inside = first >= 0 and not node.outputs[0].is_graph_output()
        return is_inside and bool(users) and all(_reach(user) == count - first for user in users)
    return _reach(node) == count


def _sliced_from(node: ir.Node) -> int | None:
    """The first row that a Slice to the end takes; None for another node."""
    if not is_op(node, "Slice"):
        return None
    bounds = [constant(value) for value in node.inputs[1:]]
    numbers = [None if bound is None else bound.numpy().ravel().tolist() for bound in bounds]
    start, end, axes, steps = (*numbers, None, None)[:4]
    is_to_end = axes in ([_AXIS], [-1]) and (steps == [1] or len(node.inputs) < 5) and end is not None
    return int(start[0]) if start and is_to_end and end and end[0] >= _BEHIND_ALL else None


def _reach(node: ir.Node) -> int | None:
    """Number of rows before a token that its result depends on; None for what is no convolution of that kind."""
    weight = known_shape(node.inputs[1]) if is_op(node, "Conv") else None
    attributes = node.attributes
    if weight is None or len(weight) != 3 or not isinstance(weight[2], int):
        return None
    is_plain = attributes.get_string("auto_pad", "NOTSET") in ("NOTSET", "VALID")
    is_plain &= list(attributes.get_ints("strides", [1])) == [1] and not any(attributes.get_ints("pads", []))
    (dilation,) = attributes.get_ints("dilations", [1])
    return dilation * (weight[2] - 1) if is_plain else None


@dataclasses.dataclass(frozen=True)
class _RowPlaces:
    """Inputs of the graph that say where rows are. ``count``: earlier rows of each sequence."""

    count: int
    joined: ir.Value
    convolved: ir.Value
    last: ir.Value

    @staticmethod
    def of(graph: ir.Graph, tokens: str, count: int) -> _RowPlaces:
        shapes = {
            JOINED: [ir.SymbolicDim("moec_joined")],
            CONVOLVED: [ir.SymbolicDim(tokens)],
            LAST: [ir.SymbolicDim(SEQUENCES), count],
        }
        values = [
            ir.Value(name=name, type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape(shape))
            for name, shape in shapes.items()
        ]
        graph.inputs.extend(values)
        return _RowPlaces(count, *values)


@dataclasses.dataclass
class _Rewrite:
    """Change of the convolution behind one Concat of earlier and new inputs, ``concat``."""

    graph: ir.Graph
    concat: ir.Node
    places: _RowPlaces
    nodes: list[ir.Node] = dataclasses.field(default_factory=list)

    def run(self) -> BatchConvolution:
        (past, x), rows = self.concat.inputs, self.concat.outputs[0]
        assert past is not None and x is not None and x.shape is not None
        readers = [reader for reader, _ in rows.uses()]
        channels = known_shape(past)[1]  # type: ignore[index]  # checked by appends_inputs
        before = self._new("Reshape", self._swapped(past), self._numbers(1, channels, -1), label="before")
        joined = self._rows(self._new("Concat", before, x, label="all", axis=_AXIS), self.places.joined, "joined")
        rows.replace_all_uses_with(joined)
        afters, results, operands = [], [], []
        for reader in readers:
            if _is_last(reader, self.places.count):
                last = self._rows(joined, self.places.last, "last")
                apart = self._new("Reshape", last, self._numbers(channels, -1, self.places.count), label="channels")
                afters.append(self._swapped(apart))
                afters[-1].shape = past.shape
                self._replace(reader.outputs[0], afters[-1])
            else:
                reader.outputs[0].shape = None
                for convolution in _convolutions(reader):
                    results.append(self._results(convolution))
                    operands += [operand for operand in convolution.inputs[1:] if operand is not None]
                    self.nodes += [reader, convolution]
        return BatchConvolution(self.nodes, past, x, afters, results, operands)

    def _results(self, convolution: ir.Node) -> ir.Value:
        """The results of tokens, which all readers of a convolution then read."""
        (value,) = convolution.outputs
        uses, value.shape = [*value.uses()], None
        result = self._rows(value, self.places.convolved, "results", after=convolution)
        for user, place in uses:
            user.replace_input_with(place, result)
        return result

    def _replace(self, value: ir.Value, after: ir.Value) -> None:
        """Let ``after`` take the place of a state, with its name."""
        name = value.name
        value.replace_all_uses_with(after, replace_graph_outputs=True)
        value.name, after.name = f"{name}.alone", name

    def _swapped(self, value: ir.Value) -> ir.Value:
        return self._new("Transpose", value, label="swapped", perm=[1, 0, 2])

    def _rows(self, value: ir.Value, places: ir.Value, label: str, after: ir.Node | None = None) -> ir.Value:
        return self._new("Gather", value, places, label=label, after=after, axis=_AXIS)

    def _numbers(self, *numbers: object) -> ir.Value:
        name = f"{self.concat.outputs[0].name}.sizes{len(self.nodes)}"
        return add_constant(self.graph, ir.tensor(np.array(numbers, np.int64)), name)

    def _new(
        self, operator: str, *inputs: ir.Value, label: str, after: ir.Node | None = None, **attributes: object
    ) -> ir.Value:
        """Insert a node in front of the Concat, or behind the node ``after``."""
        name = f"{self.concat.outputs[0].name}.{label}{len(self.nodes)}"
        node = ir.node(operator, inputs, attributes=attributes, name=name)  # type: ignore[arg-type]
        (value,) = node.outputs
        value.name, value.type = f"{name}.y", inputs[0].type
        if after is None:
            self.graph.insert_before(self.concat, node)
        else:
            self.graph.insert_after(after, node)
        self.nodes.append(node)
        return value


def _convolutions(reader: ir.Node) -> Iterator[ir.Node]:
    """The convolution that a reader of rows is, or those of the rows that it takes."""
    yield from [reader] if is_op(reader, "Conv") else [user for user, _ in reader.outputs[0].uses()]
