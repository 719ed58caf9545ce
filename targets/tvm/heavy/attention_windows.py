"""The windows of attention: what a node's mask leaves to kernels, and the caches of which it reads the last keys alone.

A query of a window of W keys sees its own key and the W - 1 before it. If all that reads a cache has such a window, and
the same one, no later run reads an entry before the window of its first query, and the runtime may release it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import onnx_ir as ir

from moec.common.names import operator_name
from moec.ir.batches import WINDOW
from moec.ir.masks.visibility import Window, read_window, uses_all_keys
from moec.ir.sinks import SinkOperands, sinks_of
from moec.targets.tvm.heavy.attention_sinks import order_beside, without_sinks
from moec.targets.tvm.lowering.attributes import attribute, optional_input
from moec.targets.tvm.lowering.context import LoweringContext
from moec.targets.tvm.lowering.held_states import Held

_KEY, _PAST, _LENGTHS = 1, 4, 6


class ReadMask(NamedTuple):
    """Parts of a mask that kernels take from it: ``sinks``, a ``window``, and whether it ``orders`` keys beside sinks,
    where the node says nothing of an order. ``node``: the attention without sinks."""

    node: ir.Node
    sinks: SinkOperands | None
    window: Window
    orders: bool


@contextlib.contextmanager
def reading_mask(
    lowering: LoweringContext, node: ir.Node, *, takes_sinks: bool, takes_windows: bool
) -> Iterator[ReadMask]:
    """Context with what is read from the mask of an Attention, for kernels that take sinks and windows or not."""
    if lowering.batch is not None:
        yield ReadMask(node, None, Window(attribute(node, WINDOW, 0)), False)
        return
    sinks = sinks_of(node) if takes_sinks else None
    if sinks is None:
        yield ReadMask(node, None, read_window(node, lowering.elements) if takes_windows else Window(), False)
        return
    with without_sinks(node, sinks) as rest:
        order = order_beside(lowering, sinks, rest) if takes_windows else None
        yield ReadMask(rest, sinks, order or Window(), order is not None)


def state_windows(lowering: LoweringContext, graph: ir.Graph, states: Mapping[ir.Value, Held]) -> dict[ir.Value, int]:
    """The number of last keys that all readers of a state see, by graph input, for kernels that take sinks and windows.
    States with another reader are left out."""
    inputs = {info.output: state for state, info in states.items() if not info.state.at_places}
    candidates = [_reader_of(lowering, node) for node in graph if operator_name(node) == "Attention"]
    readers = [reader for reader in candidates if reader is not None and {reader.key, reader.value} <= inputs.keys()]
    while True:
        windows = {state: size for state in inputs.values() if (size := _window(states[state], readers))}
        left = [reader for reader in readers if {inputs[reader.key], inputs[reader.value]} <= windows.keys()]
        if len(left) == len(readers):
            return windows
        readers = left


class _WindowReader(NamedTuple):
    """An Attention with a window over states, its ``key`` and ``value``, and the ``nodes`` by which it reads them:
    itself, or those that put a sink's key before all others, which kernels need not."""

    key: ir.Value
    value: ir.Value
    window: int
    nodes: frozenset[ir.Node]


def _reader_of(lowering: LoweringContext, node: ir.Node) -> _WindowReader | None:
    """The reader that an Attention is; None for one without a window that ends with its last key in use."""
    with reading_mask(lowering, node, takes_sinks=True, takes_windows=True) as mask:
        sinks, window, is_ordered = mask.sinks, mask.window.size, mask.orders or lowering.batch is not None
    lengths, past = (optional_input(node, position) for position in (_LENGTHS, _PAST))
    is_whole = past is not None or (lengths is not None and uses_all_keys(node, lowering.elements))
    if not window or not (is_ordered or is_whole):
        return None
    if sinks is None:
        key, value = node.outputs[1:3] if past is not None else node.inputs[_KEY : _KEY + 2]
        return None if key is None or value is None else _WindowReader(key, value, window, frozenset([node]))
    padded = [value for value in node.inputs[_KEY : _KEY + 2] if value is not None]
    nodes = frozenset(pad for value in padded if _users(value) == [node] and (pad := value.producer()) is not None)
    return _WindowReader(sinks.key, sinks.value, window, nodes)


def _window(state: Held, readers: Sequence[_WindowReader]) -> int:
    """The window of a state; 0 if readers have several, or another node reads the state or its output."""
    own = [reader for reader in readers if state.output in (reader.key, reader.value)]
    nodes = {node for reader in own for node in reader.nodes}
    sizes = {reader.window for reader in own}
    is_read_alone = all(user in nodes for user in _users(state.output)) and len(_users(state.past)) == 1
    return sizes.pop() if len(sizes) == 1 and is_read_alone else 0


def _users(value: ir.Value) -> list[ir.Node]:
    """The nodes that read the elements of a value, not only its sizes."""
    return [user for user, _ in value.uses() if operator_name(user) != "Shape"]
