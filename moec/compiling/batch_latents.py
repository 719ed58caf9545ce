"""Latents in the graph of a batch: attention reads them, instead of keys and values that are expanded from them.

Models of transformers with latent attention (DeepSeek-V2 and V3, Kimi; arXiv 2405.04434) keep, for each token, a latent
and one key part that is turned by its position. In every run they expand the latents of all tokens to keys and values
of each head, a product that reads the states of all sequences. It can be moved to the other operand of attention, the
queries, and to its results. Then latents and turned parts together are one key for all heads, and values are its first
columns::

    states c [B,1,P,R], t [B,1,P,r];  queries q | u [B,H,S,N+r];  matrices K [R,H*N], V [R,H*V] by head
    Attention(q | u, c K | t, c V)  =  Attention(q K^T | u, c | t, c) V

Both states become one. Sums have another order than in the model's own program, which expands.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from moec.common.specs import State, TensorSpec
from moec.ir.graphs import add_constant, is_op
from moec.ir.sequence_cuts import known_shape
from moec.ir.states import set_states
from moec.passes import pipeline
from moec.passes.framework.base import Report
from moec.runtime.interface import Interface

_TURN = [0, 2, 1, 3]
_POSITIONS, _COLUMNS = 2, 3
"""Axes of a state."""


def absorb_latents(model: ir.Model, interface: Interface) -> Interface:
    """Let attention read latents where it reads what is expanded from them. Returns the interface with the states that
    the model then has."""
    states = {state.output: state for state in interface.states if state.axis == _POSITIONS}
    expanded = [latents for node in model.graph if (latents := _Latents.of(node, states)) is not None]
    if not expanded:
        return interface
    for latents in expanded:
        latents.absorb(model.graph)
    model.graph.sort()
    pipeline.run(model, pipeline.parse("remove-dead-nodes"), Report())
    widths = {name: each.width for each in expanded for name in (each.kept.state.input, each.kept.state.output)}
    gone = {name for each in expanded for name in (each.turned.state.input, each.turned.state.output)}
    states_then = [state for state in interface.states if state.input not in gone]
    set_states(model, states_then)
    inputs, outputs = (_widened(specs, widths, gone) for specs in (interface.inputs, interface.outputs))
    return dataclasses.replace(interface, inputs=inputs, outputs=outputs, states=states_then)


def _widened(specs: Sequence[TensorSpec], widths: Mapping[str, int], gone: set[str]) -> list[TensorSpec]:
    kept = [spec for spec in specs if spec.name not in gone]
    return [dataclasses.replace(spec, shape=(*spec.shape[:-1], widths.get(spec.name, spec.shape[-1]))) for spec in kept]


@dataclasses.dataclass(frozen=True)
class _KeptState:
    """A state [B,1,P,size] to which ``append``, a Concat, adds new entries."""

    append: ir.Node
    state: State
    size: int

    @staticmethod
    def of(present: ir.Value | None, user: ir.Node, states: Mapping[str, State]) -> _KeptState | None:
        """Find the state that a value is, where nothing else than ``user`` and sizes read it."""
        append, shape = present.producer() if present is not None else None, known_shape(present)
        state = states.get(str(present.name)) if present is not None and present.is_graph_output() else None
        if present is None or shape is None or state is None or not is_op(append, "Concat") or len(append.inputs) != 2:
            return None
        past, size = append.inputs[0], shape[-1]
        is_row = len(shape) == 4 and shape[1] == 1 and append.attributes.get_int("axis", 0) in (-2, _POSITIONS)
        if not is_row or past is None or past.name != state.input or not isinstance(size, int):
            return None
        others = {reader for reader, _ in past.uses()} - {append}
        is_alone = {reader for reader, _ in present.uses()} == {user} and all(map(_counts_no_columns, others))
        return _KeptState(append, state, size) if is_alone else None


@dataclasses.dataclass(frozen=True)
class _Latents:
    """An attention over keys and values that are expanded from latents. ``kept``, ``turned``: the states of latents and
    of turned parts. ``matrix``: [R, H * (N + V)], keys before values in each of ``heads`` heads; ``plain``: N;
    ``value``: V."""

    attention: ir.Node
    kept: _KeptState
    turned: _KeptState
    matrix: ir.TensorProtocol
    heads: int
    plain: int
    value: int

    @staticmethod
    def of(node: ir.Node, states: Mapping[str, State]) -> _Latents | None:
        """Find the latents of an attention; None where it reads anything else."""
        if not is_op(node, "Attention") or len(node.outputs) != 1 or any(node.inputs[4:6]):
            return None
        key, value = node.inputs[1:3]
        split = None if value is None else value.producer()
        if key is None or not is_op(split, "Split") or split.attributes.get_int("axis", 0) not in (-1, _COLUMNS):
            return None
        first, *others = _columns(key, _COLUMNS)
        expand = others[0].producer() if len(others) == 1 and others[0] is not None else None
        product = _product_of_heads(split)
        if list(split.outputs) != [first, value] or not is_op(expand, "Expand") or product is None:
            return None
        kept, turned = (_KeptState.of(user.inputs[0], user, states) for user in (product, expand))
        sizes = [*(known_shape(first) or [])[1::2], *(known_shape(value) or [])[3:]]
        numbers = [size for size in sizes if isinstance(size, int)]
        matrix = product.inputs[1].const_value if product.inputs[1] is not None else None
        if kept is None or turned is None or matrix is None or len(numbers) != 3:
            return None
        is_alike = (known_shape(expand.outputs[0]) or [])[1::2] == [numbers[0], turned.size]
        return _Latents(node, kept, turned, matrix, *numbers) if is_alike else None

    @property
    def width(self) -> int:
        """Numbers of a latent and a turned part."""
        return self.kept.size + self.turned.size

    def absorb(self, graph: ir.Graph) -> None:
        """Rewrite the attention."""
        attention, rank, turned = self.attention, self.kept.size, self.turned.size
        query, result = attention.inputs[0], attention.outputs[0]
        assert query is not None
        label = f"{result.name}.latents"
        build = _AttentionEdits(graph, attention, label)
        self._join_states(graph, build)
        (present,) = self.kept.append.outputs
        of_keys, of_values = slice(self.plain), slice(self.plain, None)
        into = build.weight("into", self._part(of_keys, (1, 2, 0)), (self.heads, self.plain, rank))
        out = build.weight("out", self._part(of_values, (1, 0, 2)), (self.heads, rank, self.value))
        plain, turning = build.split(query, self.plain, turned)
        met = build.new("MatMul", plain, into)
        attention.replace_input_with(0, build.new("Concat", met, turning, axis=-1))
        attention.replace_input_with(1, present)
        attention.replace_input_with(2, build.split(present, rank, turned)[0])
        if "scale" not in attention.attributes:
            attention.attributes["scale"] = ir.AttrFloat32("scale", 1 / math.sqrt(self.plain + turned))
        uses, sizes = list(result.uses()), result.shape
        if sizes is not None:
            result.shape = ir.Shape([*sizes[:3], rank])
        expanded = build.new("MatMul", result, out)
        expanded.shape = sizes
        for user, place in uses:
            user.replace_input_with(place, expanded)

    def _part(self, columns: slice, order: Sequence[int]) -> Callable[[], np.ndarray[Any, Any]]:
        """Some columns of each head."""

        def read() -> np.ndarray[Any, Any]:
            by_head = self.matrix.numpy().reshape(self.kept.size, self.heads, -1)[:, :, columns]
            return np.ascontiguousarray(by_head.transpose(order))

        return read

    def _join_states(self, graph: ir.Graph, build: _AttentionEdits) -> None:
        """Let the state of latents hold turned parts, too."""
        past, new = self.kept.append.inputs
        past_turned, new_turned = self.turned.append.inputs
        assert past is not None and new is not None and past_turned is not None and new_turned is not None
        self.kept.append.replace_input_with(1, build.new("Concat", new, new_turned, axis=-1))
        for value in (past, self.kept.append.outputs[0]):
            assert value.shape is not None
            value.shape = ir.Shape([*value.shape[:_COLUMNS], self.width])
        for user, place in list(past_turned.uses()):
            user.replace_input_with(place, past)
        graph.inputs.remove(past_turned)
        graph.outputs.remove(self.turned.append.outputs[0])


def _product_of_heads(split: ir.Node) -> ir.Node | None:
    """The product of latents [B,1,P,R] with a constant matrix whose result is split by head: Transpose of Reshape of
    MatMul."""
    nodes = [split]
    for operator in ("Transpose", "Reshape", "MatMul"):
        node = nodes[-1].inputs[0].producer() if nodes[-1].inputs[0] is not None else None
        if not is_op(node, operator) or (operator != "MatMul" and len(node.outputs[0].uses()) != 1):
            return None
        nodes.append(node)
    _, turn, reshape, product = nodes
    latents, matrix, by_head = product.inputs[0], product.inputs[1], known_shape(reshape.outputs[0])
    sizes, shape = known_shape(latents), known_shape(matrix)
    if sizes is None or shape is None or by_head is None or matrix is None or matrix.const_value is None:
        return None
    is_alike = len(sizes) == len(by_head) == 4 and sizes[1] == 1 and by_head[0] == sizes[0]
    is_turned = list(turn.attributes.get_ints("perm", ())) == _TURN
    whole = math.prod(size for size in by_head[2:] if isinstance(size, int))
    is_matrix = len(shape) == 2 and shape[1] == whole and matrix.dtype == ir.DataType.FLOAT
    return product if is_alike and is_turned and is_matrix else None


def _counts_no_columns(node: ir.Node) -> bool:
    """Whether a node reads the sizes of a state, without that of the last axis."""
    return is_op(node, "Shape") and 0 <= node.attributes.get_int("end", _COLUMNS + 1) <= _COLUMNS


def _columns(value: ir.Value, axis: int) -> Iterator[ir.Value | None]:
    """The values that lie one behind the other along an axis of a value; None for one with axes in another order.
    Exporters write them by Concat, or into rows of a tensor whose axes are turned."""
    for part, order in _ordered_columns(value, axis):
        yield part if list(order) == list(range(len(order))) else None


def _ordered_columns(value: ir.Value, axis: int) -> Iterator[tuple[ir.Value, Sequence[int]]]:
    """The same, with the order of axes that each part has in the value."""
    node, rank = value.producer(), len(known_shape(value) or [])
    if is_op(node, "Transpose") and node.inputs[0] is not None:
        turn = node.attributes.get_ints("perm", range(rank - 1, -1, -1))
        for part, order in _ordered_columns(node.inputs[0], turn[axis]):
            yield part, [order[place] for place in turn]
        return
    parts = list(_written_rows(node)) if axis == 0 else []
    if is_op(node, "Concat") and node.attributes.get_int("axis", 0) in (axis, axis - rank):
        parts = [operand for operand in node.inputs if operand is not None]
    if not parts:
        yield value, range(rank)
    for part in parts:
        yield from _ordered_columns(part, axis)


def _written_rows(node: ir.Node | None) -> Iterator[ir.Value]:
    """The values that ScatterND nodes write to successive rows of axis 0, if they write all of them once."""
    written: dict[int, tuple[int, ir.Value]] = {}
    total = (known_shape(node.outputs[0]) or [None])[0] if node is not None else None
    while is_op(node, "ScatterND") and node.attributes.get_string("reduction", "none") == "none":
        data, places, rows = node.inputs
        numbers = None if places is None or places.const_value is None else places.const_value.numpy()
        if numbers is None or rows is None or numbers.ndim != 2 or numbers.shape[1] != 1 or not numbers.size:
            return
        first = int(numbers[0, 0])
        if first in written or not np.array_equal(numbers[:, 0], np.arange(first, first + len(numbers))):
            return
        written[first] = len(numbers), rows
        node = data.producer() if data is not None else None
    end = 0
    for first, (count, _) in sorted(written.items(), key=lambda item: item[0]):
        if first != end:
            return
        end += count
    if end == total:
        yield from (written[first][1] for first in sorted(written))


@dataclasses.dataclass
class _AttentionEdits:
    """Nodes and constants beside an attention, with names that begin with ``label``."""

    graph: ir.Graph
    attention: ir.Node
    label: str
    count: int = 0

    def new(self, operator: str, *inputs: ir.Value, outputs: int = 1, **attributes: int) -> ir.Value:
        """Add a node, and return its first result."""
        name = self._name(operator.lower())
        node = ir.node(operator, inputs, attributes=attributes, num_outputs=outputs, name=name)
        for place, value in enumerate(node.outputs):
            value.name, value.type = f"{name}.{place}", inputs[0].type
        self.graph.insert_before(self.attention, node)
        return node.outputs[0]

    def split(self, value: ir.Value, *sizes: int) -> Sequence[ir.Value]:
        """Split the last axis."""
        numbers = add_constant(self.graph, ir.tensor(np.array(sizes, np.int64)), self._name("sizes"))
        node = self.new("Split", value, numbers, outputs=len(sizes), axis=-1).producer()
        assert node is not None
        return node.outputs

    def weight(self, name: str, read: Callable[[], np.ndarray[Any, Any]], shape: Sequence[int]) -> ir.Value:
        """Add a constant that is computed when it is read."""
        tensor = ir.LazyTensor(lambda: ir.tensor(read()), dtype=ir.DataType.FLOAT, shape=ir.Shape(shape))
        return add_constant(self.graph, tensor, self._name(name))

    def _name(self, name: str) -> str:
        self.count += 1
        return f"{self.label}.{name}{self.count}"
