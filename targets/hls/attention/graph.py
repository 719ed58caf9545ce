"""The attention blocks of a graph: the values where each begins and ends, and its numbers.

A block is ``x + output(heads(norm(x)))`` around a standard Attention operator. Every token sees all others, or tokens
up to itself, or a window of these, and possibly an attention sink (a key of zeros before the others). The nodes between
the normalisation and the operator, and between the operator and the addition, may be written in any way: one product
for queries, keys and values or three, reshapes, transpositions, slices. They are run to find their numbers
(``rows.py``, ``mask.py``), and random vectors must agree with these. Keys and values that the graph takes as inputs
belong to earlier tokens of the same sequence; a cache holds them.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import onnx_ir as ir

from moec.common.errors import UnsupportedError
from moec.common.names import node_name
from moec.ir.masks.rules import elements
from moec.ir.masks.visibility import uses_all_keys
from moec.targets.hls.attention.float_block import FloatAttention, RotaryEmbedding
from moec.targets.hls.attention.latent_rows import find_latent_rows
from moec.targets.hls.attention.latents import FloatLatents
from moec.targets.hls.attention.mask import CausalMask, causal_mask, inputs_behind, masks_nothing
from moec.targets.hls.attention.rows import HeadRows, find_rows, norms_between, widened_rows
from moec.targets.hls.graph.affine import affine_maps
from moec.targets.hls.graph.dense_layer import origin
from moec.targets.hls.graph.residuals import NORMS, norm_of, only_use

Array = np.ndarray[Any, Any]

SOME_POSITIONS = 64
"""The assumed length of sequences while neither the graph nor the user fixes one."""
_MOST_NODES = 32
"""The most nodes between the operator and the normalisation, or the addition."""


@dataclasses.dataclass(frozen=True)
class GraphAttention:
    """An attention block between two values of a graph: ``tokens`` [B, T, d], the residual stream, and ``output`` of
    the same shape. ``past``: the graph's inputs that are keys and values of earlier tokens."""

    name: str
    tokens: ir.Value
    output: ir.Value
    numbers: FloatAttention
    past: tuple[ir.Value, ...] = ()

    def as_tokens(self, array: Array) -> Array:
        """An array of the graph as float32 sequences [B, T, d], the form that the block takes."""
        return array.astype(np.float32)


def find_attention(model: ir.Model, positions: int = SOME_POSITIONS) -> tuple[list[GraphAttention], list[str]]:
    """The attention blocks in the order of the graph, and the reasons why others stay outside, which name their nodes.
    ``positions``: of the longest sequence."""
    blocks, refused = [], []
    for node in model.graph:
        if node.op_type == "Attention" and node.domain == "":
            try:
                blocks.append(_block(model, node, positions))
            except UnsupportedError as error:
                refused.append(f"{node_name(node)}: {error}")
    return blocks, refused


def _block(model: ir.Model, node: ir.Node, positions: int) -> GraphAttention:
    _expect_plain(node)
    query, key, value, past, has_sinks = _operands(node)
    normalize, before, addition = _around(query, node.outputs[0])
    tokens, normalized = normalize.inputs[0], normalize.outputs[0]
    assert tokens is not None
    count, width = _token_sizes(tokens, normalized)
    positions = positions if count is None else count
    mask = _mask_of(model, node, tokens, positions, has_sinks)
    heads, key_heads = _heads(node, query, "q_num_heads"), _heads(node, key, "kv_num_heads")
    of_heads = (heads, key_heads)
    latents, queries, keys, values = _rows(model, normalized, (query, key, value), width, of_heads, positions)
    if latents is not None and not past:
        past = _caches_of(normalized, key, value)
    queries, keys, turns = _same_turns(queries, keys)
    if values.norm is not None or values.turns is not None:
        raise UnsupportedError(f"values {value.name!r} are normalised or rotated; expected a product of tokens")
    channels = queries.weights.shape[1]
    if heads % key_heads or keys.weights.shape[1] != channels:
        raise UnsupportedError(
            f"it has {heads} heads of queries and {key_heads} of keys, with {[channels, keys.weights.shape[1]]} "
            "channels; expected equally many channels, and as many query heads for each key head"
        )
    of_values = values.weights.shape[1]
    ((output, output_bias),) = affine_maps(model, node.outputs[0], [before], heads * of_values, heads=heads)
    row = channels if channels == of_values else max(channels, of_values) + max(channels, of_values) % 2
    queries, keys, values = (part.widened(row) for part in (queries, keys, values))
    output = widened_rows(output.reshape(width * heads, of_values), row).reshape(width, -1)
    scale = node.attributes.get("scale")
    numbers = FloatAttention(
        name=node_name(node),
        norm=norm_of(normalize),
        scale=channels**-0.5 if scale is None else float(scale.value),
        query=queries.weights,
        query_bias=queries.bias,
        key=keys.weights,
        key_bias=keys.bias,
        value=values.weights,
        value_bias=values.bias,
        output=output,
        output_bias=output_bias,
        causal=mask is not None,
        window=0 if mask is None else mask.window,
        sinks=None if mask is None or mask.sinks is None else np.broadcast_to(mask.sinks, heads),
        query_norm=queries.norm,
        key_norm=keys.norm,
        turns=turns and turns.widened(row),
        latents=latents,
    )
    return GraphAttention(numbers.name, tokens, addition.outputs[0], numbers, past)


def _token_sizes(tokens: ir.Value, normalized: ir.Value) -> tuple[int | None, int]:
    """Return the number of tokens, where it is known, and of their channels. Raises UnsupportedError for others than
    float32 of [batch, tokens, channels]."""
    sizes = tokens.shape
    if sizes is None or len(sizes) != 3 or not isinstance(sizes[2], int):
        raise UnsupportedError(f"its tokens have the shape {sizes}; expected [batch, tokens, channels]")
    if normalized.dtype != ir.DataType.FLOAT:
        raise UnsupportedError(f"its tokens are {normalized.dtype}; expected FLOAT")
    return sizes[1] if isinstance(sizes[1], int) else None, sizes[2]


def _rows(
    model: ir.Model,
    tokens: ir.Value,
    rows: tuple[ir.Value, ir.Value, ir.Value],
    width: int,
    heads: tuple[int, int],
    positions: int,
) -> tuple[FloatLatents | None, HeadRows, HeadRows, HeadRows]:
    """The latents, or None, and the rows of queries, keys and values, all computed from normalised ``tokens``.
    ``heads``: of queries, and of keys and values. There are latents if values pass through a second normalisation."""
    if norms_between(tokens, rows[2]):
        latent_rows = find_latent_rows(model, tokens, rows, width, heads, positions)
        return latent_rows.latents, latent_rows.queries, latent_rows.keys, latent_rows.values
    counts = (heads[0], heads[1], heads[1])
    queries, keys, values = (
        find_rows(model, tokens, value, width, count, positions) for value, count in zip(rows, counts, strict=True)
    )
    return None, queries, keys, values


def _expect_plain(node: ir.Node) -> None:
    attribute = node.attributes.get("softcap")
    if attribute is not None and attribute.value:
        raise UnsupportedError(f"softcap is {attribute.value}; expected 0")
    if not uses_all_keys(node, elements()):
        raise UnsupportedError("it takes lengths of sequences; expected none, or the number of keys")
    scores = node.outputs[3:]
    if any(output is not None and (output.uses() or output.is_graph_output()) for output in scores):
        raise UnsupportedError("its scores are used outside of the block; expected no use")


def _operands(node: ir.Node) -> tuple[ir.Value, ir.Value, ir.Value, tuple[ir.Value, ...], bool]:
    """The queries, keys and values of the call's tokens; the inputs that are keys and values of earlier ones; and
    whether a position of zeros comes before all of these, the key of sinks."""
    query, key, value = (operand for operand in node.inputs[:3] if operand is not None)
    padded = [_behind_zeros(operand) for operand in (key, value)]
    has_sinks = None not in padded
    if padded[0] is not None and padded[1] is not None:
        key, value = padded[0], padded[1]
    pasts = [operand for operand in node.inputs[4:6] if operand is not None]
    joined = [_joined(operand) for operand in (key, value)]
    if not pasts and all(joined):
        pasts, (key, value) = [pair[0] for pair in joined if pair], (pair[1] for pair in joined if pair)
    if any(not past.is_graph_input() for past in pasts) or len(pasts) not in (0, 2):
        raise UnsupportedError("keys or values of earlier tokens are computed; expected inputs of the graph")
    if not pasts and any(output is not None and output.uses() for output in node.outputs[1:3]):
        raise UnsupportedError("its keys or values are used outside of the block; expected no use")
    return query, key, value, tuple(pasts), has_sinks


def _behind_zeros(value: ir.Value) -> ir.Value | None:
    """The value [B, H, T, h] that a Pad puts one position of zeros before; None where another node makes the value."""
    node = value.producer()
    if node is None or node.op_type != "Pad" or node.attributes.get_string("mode", "constant") != "constant":
        return None
    pads, fill, axes = (
        None if tensor is None else tensor.numpy().ravel().tolist()
        for tensor in (_constant_operand(node, place) for place in (1, 2, 3))
    )
    is_front = (pads, axes) in [([1, 0], [2]), ([1, 0], [-2])] or pads == [0, 0, 1, 0, 0, 0, 0, 0]
    is_zero = len(node.inputs) < 3 or node.inputs[2] is None or fill == [0]
    return node.inputs[0] if is_front and is_zero else None


def _constant_operand(node: ir.Node, place: int) -> ir.TensorProtocol | None:
    operand = node.inputs[place] if len(node.inputs) > place else None
    return None if operand is None else ir.convenience.get_const_tensor(operand)


def _joined(value: ir.Value) -> tuple[ir.Value, ir.Value] | None:
    """The two operands of a Concat along positions, of earlier tokens and of the call's; None for another value."""
    node = value.producer()
    axis = None if node is None or node.op_type != "Concat" else node.attributes.get_int("axis", 0)
    if node is None or axis not in (-2, 2) or len(node.inputs) != 2:
        return None
    past, new = node.inputs
    return None if past is None or new is None else (past, new)


def _caches_of(tokens: ir.Value, *rows: ir.Value) -> tuple[ir.Value, ...]:
    """The graph's inputs [B, 1, P, r] that are latents of earlier tokens, which precede those of ``tokens`` in
    ``rows``."""
    behind = [value for operand in rows for value in inputs_behind(operand, [tokens]) if value.is_graph_input()]
    caches = {value.name: value for value in behind if value.shape is not None and len(value.shape) == 4}
    return tuple(caches[name] for name in sorted(caches, key=str))


def _mask_of(model: ir.Model, node: ir.Node, tokens: ir.Value, positions: int, has_sinks: bool) -> CausalMask | None:
    """The causal mask of an Attention node; None where every token sees all others."""
    is_causal = node.attributes.get_int("is_causal", 0) != 0
    mask = node.inputs[3] if len(node.inputs) > 3 else None
    if mask is None or masks_nothing(model, mask):
        if has_sinks:
            raise UnsupportedError("zeros precede its keys; expected a mask with their scores")
        return CausalMask(0, None) if is_causal else None
    return causal_mask(model, mask, tokens, positions, has_sinks, is_causal)


def _same_turns(queries: HeadRows, keys: HeadRows) -> tuple[HeadRows, HeadRows, RotaryEmbedding | None]:
    """Queries, keys and their common rotary embedding, or None without one.

    Raises UnsupportedError where only one of them has an embedding, or both have different ones.
    """
    if (queries.turns is None) != (keys.turns is None):
        raise UnsupportedError("only one of its queries and keys has a rotary embedding; expected both or neither")
    if queries.turns is None or keys.turns is None:
        return queries, keys, None
    pairs = [(queries.turns.cosines, keys.turns.cosines), (queries.turns.sines, keys.turns.sines)]
    is_same = queries.order == keys.order and all(np.allclose(*pair, atol=1e-6) for pair in pairs)
    if not is_same:
        raise UnsupportedError(
            "its queries and keys have different rotary embeddings; expected the same pairs and angles"
        )
    return queries, keys, queries.turns


def _around(query: ir.Value, result: ir.Value) -> tuple[ir.Node, ir.Value, ir.Node]:
    """The normalisation of the tokens that a query is computed from, the value that is added to these tokens, and the
    addition."""
    reasons = []
    for normalize in _normalizations_of(query):
        tokens = normalize.inputs[0]
        assert tokens is not None
        try:
            return normalize, *_addition_of(result, tokens)
        except UnsupportedError as error:
            reasons.append(error)
    raise (
        reasons[-1]
        if reasons
        else UnsupportedError("its queries come from no normalisation; expected LayerNormalization or RMSNormalization")
    )


def _normalizations_of(value: ir.Value) -> list[ir.Node]:
    """Normalisations that a value is computed from, from near to far."""
    nodes: list[ir.Node] = []
    pending = [value]
    for _ in range(_MOST_NODES):
        producers = [producer for needed in pending if (producer := needed.producer()) is not None]
        nodes += [node for node in producers if node.op_type in NORMS and node.domain == "" and node not in nodes]
        pending = [operand for producer in producers for operand in producer.inputs if operand is not None]
    return nodes


def _addition_of(result: ir.Value, tokens: ir.Value) -> tuple[ir.Value, ir.Node]:
    """The value that is added to the tokens, and the addition. Values between the result and the addition must have no
    other use."""
    value = result
    for _ in range(_MOST_NODES):
        user = only_use(value)
        if user is None:
            break
        others = [operand for operand in user.inputs if operand is not value and operand is not None]
        if user.op_type == "Add" and len(others) == 1 and origin(others[0]) is origin(tokens):
            return value, user
        value = user.outputs[0]
    raise UnsupportedError("its result is not added to its input tokens; expected a residual connection")


def _heads(node: ir.Node, rows: ir.Value, name: str) -> int:
    count = None if rows.shape is None or len(rows.shape) != 4 else rows.shape[1]
    if isinstance(count, int):
        return count
    attribute = node.attributes.get(name)
    if attribute is None:
        raise UnsupportedError(
            f"{rows.name!r} has the shape {rows.shape}; expected [batch, heads, tokens, channels] or the attribute "
            f"{name}"
        )
    return int(attribute.value)
