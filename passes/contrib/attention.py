"""Attention with grouped queries and a cache, in the form of onnxruntime-genai, and rotary embeddings."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir

from moec.passes.graph.writer import NotDecomposableError, Writer, dtype_of, rank_of, width_of

_INT64 = ir.DataType.INT64
_INPUTS = {"k_scale": 12, "v_scale": 13, "q_norm_weight": 14, "k_norm_weight": 15}


def rotary_embedding(write: Writer) -> list[ir.Value | None]:
    """Decompose RotaryEmbedding. ``position_ids`` is [B,S], or the one position that every sequence starts at."""
    write.refuse_attributes(scale=1.0, is_packed_batching=0)
    x, positions = write.required(0, "input"), write.required(1, "position_ids")
    cosine, sine = write.required(2, "cos_cache"), write.required(3, "sin_cache")
    attributes = {name: write.attribute(name, 0) for name in ("num_heads", "rotary_embedding_dim", "interleaved")}
    attributes["num_heads"] = _rotated_heads(write, x, cosine)
    if rank_of(positions, "position_ids") < 2:
        axis = {3: 1, 4: 2}[rank_of(x, "input")]
        batch, length = _size(write, x, 0), _size(write, x, axis)
        offsets = write.add("Expand", write.add("Cast", positions, to=_INT64), batch)
        positions = _positions(write, offsets, length)
    return [write.add("RotaryEmbedding", x, cosine, sine, positions, **attributes)]


def _rotated_heads(write: Writer, x: ir.Value, cosine: ir.Value) -> int:
    """Number of heads in a row of x [B,S,hidden]; the attribute's number for x [B,H,S,h].

    Without rotary_embedding_dim the whole head rotates, so a head is twice as wide as the caches. Raises
    NotDecomposableError for caches of other widths, which onnxruntime reads with wrong strides.
    """
    heads, rotated = write.attribute("num_heads", 0), write.attribute("rotary_embedding_dim", 0)
    width, columns = width_of(x, "input"), width_of(cosine, "cos_cache")
    in_rows = rank_of(x, "input") == 3
    if in_rows and not heads and not rotated:
        heads = width // (2 * columns) if columns else 0
    head = width // max(heads, 1) if in_rows else width
    if 2 * columns != (rotated or head):
        raise NotDecomposableError(
            f"cos_cache has {columns} columns; expected half of the {rotated or head} that rotate"
        )
    return heads


@dataclasses.dataclass(frozen=True)
class _TokenPositions:
    """Positions of the new tokens [B,S] of a call in their sequences; tensors of int64.

    ``length`` [1] is S, ``total`` [1] the length of the longest sequence, ``is_first`` [1] whether there are no past
    tokens, ``past`` [B] the number of past tokens of each sequence, ``positions`` [B,S] those of the new tokens.
    """

    length: ir.Value
    total: ir.Value
    is_first: ir.Value
    past: ir.Value
    positions: ir.Value


@dataclasses.dataclass(frozen=True)
class _AttentionHeads:
    """Query [B,H,S,h], key and value [B,G,S,h] of the new tokens."""

    query: ir.Value
    key: ir.Value
    value: ir.Value


def group_query_attention(write: Writer) -> list[ir.Value | None]:
    """Decompose GroupQueryAttention: rotate, scatter into the caches, and apply ``Attention`` to them.

    The new keys and values follow the past ones of their own sequence, which may be shorter than others because of
    padding. With a ``sliding_window_cache`` all tokens stay. Caches are then longer than onnxruntime's, which evicts
    tokens that have left the window; they are equal as long as no token has left. A window, and biases of the scores,
    become the mask. A sink is an additional key of zeros, for which the mask adds the sink's logit.
    """
    write.refuse_attributes(causal=1, qk_output=0, k_quant_type="NONE", v_quant_type="NONE")
    write.refuse_inputs(**_INPUTS, query_seqlens=16)
    write.refuse_outputs(3)
    H, G = write.attribute("num_heads", 0), write.attribute("kv_num_heads", 0)
    if not H or not G:
        raise NotDecomposableError(f"num_heads is {H} and kv_num_heads {G}; expected both to be positive")
    query = write.required(0, "query")
    h = width_of(query, "query") // (H if write.input(1) is not None else H + 2 * G)
    if write.attribute("sliding_window_cache", 0):
        write.remarks.append("its caches hold all tokens, where onnxruntime's hold a window; it takes none of those")
    step = _step(write, query)
    heads = _rotated(write, _split(write, query, H, G, h), step)
    keys, values = (_cached(write, position, new, step, (G, h)) for position, new in ((3, heads.key), (4, heads.value)))
    y = _attend(write, heads.query, keys, values, step)
    joined = write.add("Transpose", y, perm=[0, 2, 1, 3], label="joined")
    return [write.add("Reshape", joined, write.numbers(0, 0, H * h), label="output"), keys, values]


def _step(write: Writer, query: ir.Value) -> _TokenPositions:
    length = _size(write, query, 1)
    last = write.add("Cast", write.required(5, "seqlens_k"), to=_INT64, label="last_position")
    total = write.add("Cast", write.required(6, "total_sequence_length"), to=_INT64, label="total")
    total = write.add("Reshape", total, write.numbers(1), label="total")
    behind = write.add("Sub", write.add("Add", write.add("Reshape", last, write.numbers(-1)), write.numbers(1)), length)
    is_first = write.add("Equal", total, length, label="is_first")
    past = write.add("Where", is_first, write.numbers(0), behind, label="past")
    return _TokenPositions(length, total, is_first, past, _positions(write, past, length))


def _positions(write: Writer, offsets: ir.Value, length: ir.Value) -> ir.Value:
    """Positions [B,S] that start at the offsets [B]."""
    column = write.add("Unsqueeze", offsets, write.numbers(1))
    return write.add("Add", column, _range(write, length), label="positions")


def _range(write: Writer, length: ir.Value) -> ir.Value:
    """0 to length - 1, for a length [1]."""
    zero, step = (write.constant(np.array(number), "number") for number in (0, 1))
    return write.add("Range", zero, write.add("Squeeze", length, write.numbers(0)), step)


def _split(write: Writer, query: ir.Value, H: int, G: int, h: int) -> _AttentionHeads:
    """Split rows into heads: of three inputs, or of one input that holds query, key and value next to each other."""
    key, value = write.input(1), write.input(2)
    if key is not None and value is not None:
        return _AttentionHeads(*(_heads(write, rows, count, h) for rows, count in ((query, H), (key, G), (value, G))))
    heads = _heads(write, query, H + 2 * G, h)
    split = ir.node("Split", [heads, write.numbers(H, G, G)], attributes={"axis": 1}, num_outputs=3)
    write.insert(split, "query", "key", "value")
    return _AttentionHeads(*split.outputs)


def _heads(write: Writer, rows: ir.Value, count: int, h: int) -> ir.Value:
    """[B,S,count*h] → [B,count,S,h]."""
    split = write.add("Reshape", rows, write.numbers(0, 0, count, h))
    return write.add("Transpose", split, perm=[0, 2, 1, 3], label="heads")


def _rotated(write: Writer, heads: _AttentionHeads, step: _TokenPositions) -> _AttentionHeads:
    if not write.attribute("do_rotary", 0):
        return heads
    cosine, sine = write.required(7, "cos_cache"), write.required(8, "sin_cache")
    attributes = {
        "interleaved": write.attribute("rotary_interleaved", 0),
        "rotary_embedding_dim": 2 * width_of(cosine, "cos_cache"),
    }
    positions = _given_positions(write, step) or step.positions
    query, key = (
        write.add("RotaryEmbedding", rows, cosine, sine, positions, **attributes) for rows in (heads.query, heads.key)
    )
    return _AttentionHeads(query, key, heads.value)


def _given_positions(write: Writer, step: _TokenPositions) -> ir.Value | None:
    """Positions [B,S] from the input position_ids; at the first prompt only its very first one counts, as the start."""
    position_ids = write.input(9)
    if position_ids is None:
        return None
    first = write.add("Slice", position_ids, write.numbers(0, 0), write.numbers(1, 1), label="first_position")
    counted = write.add("Add", first, _range(write, step.length))
    return write.add("Where", step.is_first, counted, position_ids, label="given_positions")


def _cached(write: Writer, position: int, new: ir.Value, step: _TokenPositions, sizes: tuple[int, int]) -> ir.Value:
    """The cache [B,G,L,h]: ``new`` after the past of each sequence; L grows if necessary."""
    past = write.input(position)
    if past is None:
        return new
    if past.shape is not None and len(past.shape) == 4:
        G, h = sizes
        past.shape = ir.Shape([past.shape[0], G, past.shape[2], h])
    length = _size(write, past, 2)
    missing = write.add("Sub", write.add("Max", step.total, length), length, label="missing")
    pads = write.add("Concat", write.numbers(0), missing, axis=0, label="pads")
    room = write.add("Pad", past, pads, None, write.numbers(2), label="room")
    return write.add("TensorScatter", room, new, step.past, axis=2, label="cache")


def _attend(write: Writer, query: ir.Value, keys: ir.Value, values: ir.Value, step: _TokenPositions) -> ir.Value:
    visible = write.add("Add", step.past, step.length, label="visible")
    sink = _sink(write, dtype_of(write.required(0, "query"), "query"))
    mask = _mask(write, keys, step, sink)
    if sink is not None:
        visible = write.add("Add", visible, write.numbers(1), label="visible")
        keys, values = (
            write.add("Pad", value, write.numbers(1, 0), None, write.numbers(2), label="behind_sink")
            for value in (keys, values)
        )
    attributes = {name: write.attribute(name, 0.0) for name in ("scale", "softcap")}
    options = {name: number for name, number in attributes.items() if number}
    return write.add("Attention", query, keys, values, mask, None, None, visible, is_causal=1, **options)


def _has_sink(write: Writer) -> bool:
    return write.input(11) is not None or bool(write.attribute("smooth_softmax", 0))


def _sink(write: Writer, dtype: ir.DataType) -> ir.Value | None:
    """The logit [H] of the sink of each head; 0 for a smooth softmax. None without a sink."""
    if write.input(11) is not None or not _has_sink(write):
        return write.input(11)
    return write.constant(np.zeros(write.attribute("num_heads", 0), dtype.numpy()), "sink")


def _mask(write: Writer, keys: ir.Value, step: _TokenPositions, sink: ir.Value | None) -> ir.Value | None:
    """Mask of the scores. A window alone gives flags of the keys that a query sees, bool [B,1,S,L]. Biases and sinks
    give an additive mask [B|1,H|1,S|1,L]; with a sink it has one more column, in front."""
    added, window = write.input(10), write.attribute("local_window_size", -1)
    length = _size(write, keys, 2)
    if sink is not None:
        sinks = _sink_mask(write, sink, length)
        added = sinks if added is None else write.add("Add", _behind_sink(write, added), sinks, label="biases")
    if window <= 0:
        return added
    first, step_size = (write.constant(np.array(number), "number") for number in (0 if sink is None else -1, 1))
    columns = write.add("Range", first, write.add("Squeeze", length, write.numbers(0)), step_size, label="keys")
    before = write.add("Sub", step.positions, write.numbers(window), label="before_window")
    inside = write.add("Greater", columns, write.add("Unsqueeze", before, write.numbers(1, 3)), label="inside")
    if added is None:
        return inside
    if sink is not None:
        inside = write.add("Or", inside, write.add("Less", columns, write.numbers(0)), label="inside")
    hidden = write.add("CastLike", write.constant(np.array(-np.inf, np.float32), "hidden"), added)
    return write.add("Where", inside, added, hidden, label="mask")


def _behind_sink(write: Writer, bias: ir.Value) -> ir.Value:
    """Bias [B|1,H|1,S,1+L]: a zero for the sink, then the biases of the keys' scores."""
    return write.add("Pad", bias, write.numbers(1, 0), None, write.numbers(3), label="bias")


def _sink_mask(write: Writer, sink: ir.Value, length: ir.Value) -> ir.Value:
    """Additive mask [1,H,1,1+L]: the sinks, then zeros."""
    column = write.add("Unsqueeze", sink, write.numbers(0, 2, 3))
    pads = write.add("Concat", write.numbers(0), length, axis=0, label="pads")
    return write.add("Pad", column, pads, None, write.numbers(3), label="sinks")


def _size(write: Writer, value: ir.Value, axis: int) -> ir.Value:
    """The size along an axis as a tensor [1]."""
    return write.add("Shape", value, start=axis, end=axis + 1, label="size")
