"""Inputs and outputs of a language model as onnxruntime-genai names, sizes and fills them.

It finds keys and values by their names, and takes one shape [batch, heads, past, width] for both of a layer. States
that each run replaces come in pairs, ``conv_state`` and ``recurrent_state``; all of a kind have one shape, begin as
zeros, and input and output of a state are the same memory. Prompts of a batch are padded at their ends, in
``attention_mask``. Source: ``kv_cache.cpp``, ``recurrent_state.cpp`` and ``position_inputs.cpp`` of onnxruntime-genai.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from moec.common.errors import UnsupportedError
from moec.exporting.genai_checks import add_mask_and_checks
from moec.frontend.pytorch.text_cache import PAST, PRESENT
from moec.frontend.pytorch.text_inputs import SIZES
from moec.ir.graphs import add_constant
from moec.passes.graph.edits import fresh_name

IDS, LOGITS = "input_ids", "logits"
PAST_NAMES = {kind: f"past_key_values.%d.{kind}" for kind in ("key", "value", "conv_state", "recurrent_state")}
PRESENT_NAMES = {kind: f"present.%d.{kind}" for kind in PAST_NAMES}
_STATE = re.compile(rf"{PAST}_(?P<kind>[a-z]+)_(?P<layer>\d+)(?:_\d+)?")
_REPLACED = {"conv": "conv_state", "state": "recurrent_state"}
_MOST_AXES = {"conv_state": 3, "recurrent_state": 4}
"""With one axis more, genai takes the first for a window of earlier states."""
_INDEX = "index"
_HEADS, _WIDTH = 1, 3
"""Axes of keys and values."""
_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


@dataclasses.dataclass(frozen=True)
class Decoder:
    """Sizes of the graph that genai_config.json repeats. ``layers``, ``heads`` and ``width`` are those of keys; without
    keys they are 1."""

    vocabulary: int
    layers: int = 1
    heads: int = 1
    width: int = 1


@dataclasses.dataclass
class _GenaiState:
    """A state as input and output of the graph."""

    kind: str
    layer: int
    past: ir.Value
    present: ir.Value

    def sizes(self) -> tuple[int | None, ...]:
        """Sizes of the input; None for those that are dynamic."""
        shape = self.past.shape
        return () if shape is None else tuple(size if isinstance(size, int) else None for size in shape)


def name_for_genai(model: ir.Model, switches_after: int | None = None) -> Decoder:
    """Rename the states of a finished model, and add what genai needs beside them: copies, states that stay empty, and
    checks of padding and of texts that grow beyond ``switches_after`` tokens. Raises UnsupportedError for inputs,
    states and logits that genai has no place for."""
    graph = model.graph
    vocabulary = _vocabulary(graph)
    states = [_state(value, graph) for value in graph.inputs if value.name != IDS]
    keys = {state.layer: state for state in states if state.kind == "key"}
    values = {state.layer: state for state in states if state.kind == "value"}
    others = {name: [state for state in states if state.kind == kind] for kind, name in _REPLACED.items()}
    if not states:
        raise UnsupportedError("it keeps nothing from run to run, and onnxruntime-genai gives it each token once")
    values |= {layer: _doubled(graph, key) for layer, key in keys.items() if layer not in values}
    _check_pairs(keys, values)
    for layer, key in keys.items():
        _same_width(graph, key, values[layer])
    decoder = _decoder(vocabulary, keys)
    for index in [state for state in states if state.kind == _INDEX]:
        layer = max(keys, default=-1) + 1
        keys[layer], values[layer] = _halved(graph, index, layer)
    for kind, states_of_kind in (("key", keys), ("value", values)):
        for layer, state in states_of_kind.items():
            _rename(state, kind, layer)
    if any(others.values()):
        _place_replaced(graph, others)
    ids = next(value for value in graph.inputs if value.name == IDS)
    add_mask_and_checks(graph, ids, switches_after)
    return dataclasses.replace(decoder, layers=max(keys, default=0) + 1)


def _decoder(vocabulary: int, keys: dict[int, _GenaiState]) -> Decoder:
    if not keys:
        return Decoder(vocabulary)
    first = keys[min(keys)].sizes()
    return Decoder(vocabulary, max(keys) + 1, first[_HEADS] or 1, first[_WIDTH] or 1)


def _vocabulary(graph: ir.Graph) -> int:
    logits = next((value for value in graph.outputs if value.name == LOGITS), None)
    shape = () if logits is None or logits.shape is None else tuple(logits.shape)
    size = shape[-1] if len(shape) == 3 else None
    if logits is None or not isinstance(size, int) or logits.dtype not in _FLOATS:
        raise UnsupportedError("has no logits [batch, length, vocabulary] of floats, which onnxruntime-genai needs")
    if not any(value.name == IDS for value in graph.inputs):
        raise UnsupportedError(f"has no input {IDS}, which onnxruntime-genai needs")
    return size


def _state(past: ir.Value, graph: ir.Graph) -> _GenaiState:
    match = _STATE.fullmatch(past.name or "")
    name = (past.name or "").replace(PAST, PRESENT, 1)
    present = next((value for value in graph.outputs if value.name == name), None)
    if match is None or present is None or match["kind"] not in ("key", "value", _INDEX, *_REPLACED):
        raise UnsupportedError(
            f"onnxruntime-genai has no value for input {past.name}; it knows keys and values of attention, keys of "
            "indexers, and states of convolutions and recurrences"
        )
    return _GenaiState(match["kind"], int(match["layer"]), past, present)


def _check_pairs(keys: dict[int, _GenaiState], values: dict[int, _GenaiState]) -> None:
    """Check that keys and values are as genai makes them: [batch, heads, past, width], of one type in all layers."""
    if keys.keys() != values.keys():
        raise UnsupportedError("values without keys, which onnxruntime-genai does not know")
    types = {state.past.dtype for state in (*keys.values(), *values.values())}
    if len(types) > 1:
        raise UnsupportedError("keys and values of several types: onnxruntime-genai takes one for all layers")
    for layer, key in keys.items():
        key_sizes, value_sizes = key.sizes(), values[layer].sizes()
        fits = len(key_sizes) == len(value_sizes) == 4 and key_sizes[:3] == value_sizes[:3]
        if not fits or key_sizes[_HEADS] is None or None in (key_sizes[_WIDTH], value_sizes[_WIDTH]):
            raise UnsupportedError(
                f"{key.past.name}: keys {_shown(key)} and values {_shown(values[layer])}; onnxruntime-genai makes both "
                "[batch, heads, past, width]"
            )


def _doubled(graph: ir.Graph, key: _GenaiState) -> _GenaiState:
    """Values of a layer that keeps one tensor for both, as latent attention does: nothing reads them, and they are
    written as a copy of the keys."""
    past = ir.Value(name=fresh_name(graph, "unread"), type=key.past.type, shape=key.past.shape)
    node = ir.node("Identity", [key.present], name=f"copy_of_{key.present.name}")
    graph.append(node)
    present = node.outputs[0]
    present.type, present.shape, present.name = past.type, key.present.shape, fresh_name(graph, "copied")
    graph.inputs.append(past)
    graph.outputs.append(present)
    return _GenaiState("value", key.layer, past, present)


def _halved(graph: ir.Graph, index: _GenaiState, layer: int) -> tuple[_GenaiState, _GenaiState]:
    """Keep the keys of an indexer, [batch, past, width], as keys and values of a further layer with one head: the first
    and the second half of their elements."""
    old, new, sizes = index.past, index.present, index.sizes()
    if len(sizes) != 3 or not sizes[-1] or sizes[-1] % 2 or new.shape is None or old.shape is None:
        raise UnsupportedError(f"{old.name}: keys of an indexer {_shown(index)}; expected [batch, past, even width]")
    past, present = (
        [ir.Value(type=old.type, shape=ir.Shape([shape[0], 1, shape[1], sizes[-1] // 2])) for _ in range(2)]
        for shape in (old.shape, new.shape)
    )
    heads = _numbers(graph, _HEADS)
    joined = ir.node("Concat", past, {"axis": _WIDTH}, name=f"join_{old.name}")
    squeezed = ir.node("Squeeze", [joined.outputs[0], heads], outputs=[old], name=f"squeeze_{old.name}")
    column = ir.node("Unsqueeze", [new, heads], name=f"column_{new.name}")
    split = ir.node(
        "Split", column.outputs, {"axis": _WIDTH, "num_outputs": 2}, outputs=present, name=f"halve_{new.name}"
    )
    for node, name in ((joined, "joined"), (column, "column")):
        node.outputs[0].name = fresh_name(graph, f"{old.name}_{name}")
    graph.inputs[:] = [*(value for value in graph.inputs if value is not old), *past]
    graph.outputs[:] = [*(value for value in graph.outputs if value is not new), *present]
    graph.insert_before(graph[0], (joined, squeezed))
    graph.extend((column, split))
    first, second = (_GenaiState(_INDEX, layer, *pair) for pair in zip(past, present, strict=True))
    return first, second


def _shown(state: _GenaiState) -> str:
    return f"[{', '.join(map(str, state.past.shape or ()))}]"


def _same_width(graph: ir.Graph, key: _GenaiState, value: _GenaiState) -> None:
    """Append zeros to the narrower of a layer's keys and values, and take them off again."""
    widths = [state.sizes()[_WIDTH] or 0 for state in (key, value)]
    if widths[0] == widths[1]:
        return
    state, width, wide = (value, widths[1], widths[0]) if widths[0] > widths[1] else (key, widths[0], widths[1])
    bounds = [_numbers(graph, number) for number in (0, width, _WIDTH)]
    _feed(graph, state, "Slice", *bounds, shape=_with_width(state.past.shape, wide))
    padding = _numbers(graph, 0, 0, 0, 0, 0, 0, 0, wide - width)
    _send(graph, state, "Pad", padding, shape=_with_width(state.present.shape, wide))


def _place_replaced(graph: ir.Graph, kinds: dict[str, list[_GenaiState]]) -> None:
    """Give the states of convolutions and recurrences consecutive numbers, and each its own copy of the memory that
    its output will be written to. Where one of a pair is missing, an empty one takes its place."""
    for name, states in kinds.items():
        types, shapes = {state.past.dtype for state in states}, {state.sizes()[1:] for state in states}
        if len(types) > 1 or any(None in shape for shape in shapes):
            raise UnsupportedError(
                f"{states[0].past.name}: onnxruntime-genai keeps states of fixed shapes and of one type, and these "
                f"have {' and '.join(sorted({_shown(state) for state in states}))}"
            )
        if len(shapes) > 1 or any(len(shape) + 1 > _MOST_AXES[name] for shape in shapes):
            _flatten(graph, states)
    pairs = itertools.zip_longest(*kinds.values())
    for number, pair in enumerate(pairs):
        for (name, states), state in zip(kinds.items(), pair, strict=True):
            if state is None:
                state = _empty(graph, states, PAST_NAMES[name] % number)
            _feed(graph, state, "Max")  # onnxruntime keeps this copy, unlike those of Identity
            _rename(state, name, number)


def _flatten(graph: ir.Graph, states: Sequence[_GenaiState]) -> None:
    """Keep states of several shapes, or of more axes than genai takes, as rows [batch, 1, size], with zeros up to the
    size of the largest."""
    sizes = [math.prod(size or 0 for size in state.sizes()[1:]) for state in states]
    widest = ir.Shape([SIZES[0], 1, max(sizes)])
    for state, size in zip(states, sizes, strict=True):
        row, shape = ir.Shape([SIZES[0], 1, size]), [size or 0 for size in state.sizes()[1:]]
        bounds = [_numbers(graph, number) for number in (0, size, 2)]
        _feed(graph, state, "Reshape", _numbers(graph, -1, *shape), shape=row)
        _feed(graph, state, "Slice", *bounds, shape=widest)
        _send(graph, state, "Reshape", _numbers(graph, -1, 1, size), shape=row)
        _send(graph, state, "Pad", _numbers(graph, 0, 0, 0, 0, 0, max(sizes) - size), shape=widest)


def _empty(graph: ir.Graph, states: Sequence[_GenaiState], label: str) -> _GenaiState:
    """Make a state that stays as it is, shaped like the others of its kind, with a node named by ``label``."""
    dtype, rest = (states[0].past.dtype, states[0].sizes()[1:]) if states else (ir.DataType.FLOAT, (1, 1))
    shape = ir.Shape([SIZES[0], *rest])
    past = ir.Value(name=fresh_name(graph, "empty"), type=ir.TensorType(dtype or ir.DataType.FLOAT), shape=shape)
    node = ir.node("Identity", [past], name=f"keep_{label}")
    graph.append(node)
    present = node.outputs[0]
    present.type, present.shape, present.name = past.type, shape, fresh_name(graph, "still_empty")
    graph.inputs.append(past)
    graph.outputs.append(present)
    return _GenaiState("", 0, past, present)


def _feed(
    graph: ir.Graph, state: _GenaiState, operator: str, *further: ir.Value, shape: ir.Shape | None = None
) -> None:
    """Compute a state by an operator from a new input, of its own shape or another."""
    old = state.past
    new = ir.Value(name=fresh_name(graph, f"{old.name}_given"), type=old.type, shape=shape or old.shape)
    at = next(place for place, value in enumerate(graph.inputs) if value is old)
    graph.inputs[at] = new
    node = ir.node(operator, [new, *further], outputs=[old], name=f"{operator}_{old.name}")
    graph.insert_before(graph[0], node)
    state.past = new


def _send(graph: ir.Graph, state: _GenaiState, operator: str, *further: ir.Value, shape: ir.Shape | None) -> None:
    """Compute a new output, of another shape, from a state."""
    old = state.present
    node = ir.node(operator, [old, *further], name=f"{operator}_{old.name}")
    graph.append(node)
    new = node.outputs[0]
    new.name, new.type, new.shape = fresh_name(graph, f"{old.name}_kept"), old.type, shape
    graph.outputs[:] = [new if value is old else value for value in graph.outputs]
    state.present = new


def _with_width(shape: ir.Shape | None, width: int) -> ir.Shape | None:
    return shape if shape is None else ir.Shape([*shape[:-1], width])


def _rename(state: _GenaiState, kind: str, layer: int) -> None:
    state.past.name, state.present.name = PAST_NAMES[kind] % layer, PRESENT_NAMES[kind] % layer


def _numbers(graph: ir.Graph, *numbers: int) -> ir.Value:
    return add_constant(graph, ir.tensor(np.array(numbers, np.int64)), fresh_name(graph, "numbers"))
