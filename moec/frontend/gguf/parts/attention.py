"""Attention of a decoder's layer: projections, heads, past keys and values, windows, sinks."""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np
import onnx_ir as ir

from moec.common.errors import UnsupportedError
from moec.frontend.gguf.graph.builder import BATCH, PAST_LENGTH, Builder
from moec.frontend.gguf.parts.rope import Rope

QueryNorm = Literal["", "head", "all", "rotated", "unit"]


@dataclasses.dataclass(frozen=True)
class Heads:
    """Heads of a layer: the numbers of query heads and of groups that share keys and values, and the sizes of a key and
    of a value."""

    queries: int
    groups: int
    size: int
    value_size: int

    @staticmethod
    def of(build: Builder) -> list[Heads]:
        """Heads of each layer; a layer without groups has no attention. Raises UnsupportedError for heads that do not
        fit."""
        metadata, layers = build.metadata, build.blocks
        queries = metadata.by_layer("attention.head_count", layers)
        groups = metadata.by_layer("attention.head_count_kv", layers, queries[0], least=0)
        size = metadata.whole("attention.key_length", build.width // queries[0])
        value_size = metadata.whole("attention.value_length", build.width // queries[0])
        for heads, shared in zip(queries, groups, strict=True):
            if shared and heads % shared:
                raise UnsupportedError(f"{metadata.where}: {heads} query heads cannot share {shared} heads of keys")
        return [Heads(*counts, size, value_size) for counts in zip(queries, groups, strict=True)]


@dataclasses.dataclass(frozen=True)
class AttentionForm:
    """Differences between the attention of architectures.

    ``window``: number of last tokens, its own included, that a token sees; 0 for all. ``chunk``: size of the parts of
    the text, of which a token sees its own; 0 for all. ``scale``: factor of the scores; None for 1 / sqrt(size).
    ``softcap``: bound of the scores, 0 for none. ``norm``: norm of queries and keys, by ``head`` or over ``all`` heads
    together, or by head behind the rotary embedding (``rotated``; ``unit`` without weights); empty for none. ``clamp``:
    bound of queries, keys and values, 0 for none. ``factors``: factors [S,1] of queries by position, if any.
    ``seen``: mask bool [B,1,S,P+S] of the keys that queries may see, if any.
    ``sinks``: whether each head has a logit that takes weight and has no value. ``gated``: whether the projection of
    queries also makes a gate for each head, behind its query; its sigmoid multiplies the head's result.
    """

    window: int = 0
    chunk: int = 0
    scale: float | None = None
    softcap: float = 0.0
    norm: QueryNorm = ""
    clamp: float = 0.0
    sinks: bool = False
    gated: bool = False
    factors: ir.Value | None = None
    seen: ir.Value | None = None


def attention(
    build: Builder, x: ir.Value, layer: int, heads: Heads, rope: Rope | None, form: AttentionForm = AttentionForm()
) -> ir.Value:
    """Compute what a layer's attention adds to the residual stream, from its normalised input x [B,S,D]."""
    name = f"blk.{layer}"
    query, key, value = _projections(build, x, name, heads, form)
    if form.norm == "all":
        query = build.rms_norm(query, f"{name}.attn_q_norm", heads.queries * heads.size)
        key = build.rms_norm(key, f"{name}.attn_k_norm", heads.groups * heads.size)
    write = build.write
    gate: ir.Value | None = None
    if form.gated:
        both = write.heads(query, heads.queries, heads.size + heads.value_size, f"{name}.attn_q")
        query, gate = write.split(both, heads.size, heads.value_size, axis=-1, label=f"{name}.attn_q.parts")
    else:
        query = write.heads(query, heads.queries, heads.size, f"{name}.attn_q")
    key = write.heads(key, heads.groups, heads.size, f"{name}.attn_k")
    value = write.heads(value, heads.groups, heads.value_size, f"{name}.attn_v")
    if form.norm == "head":
        query = build.rms_norm(query, f"{name}.attn_q_norm", heads.size)
        key = build.rms_norm(key, f"{name}.attn_k_norm", heads.size)
    past_key = past_of(build, "key", layer, heads.groups, heads.size)
    past_value = past_of(build, "value", layer, heads.groups, heads.value_size)
    if rope is not None:
        query, key = rope(query, f"{name}.attn_q.rotated"), rope(key, f"{name}.attn_k.rotated")
    if form.norm == "rotated":
        query = build.rms_norm(query, f"{name}.attn_q_norm", heads.size)
        key = build.rms_norm(key, f"{name}.attn_k_norm", heads.size)
    elif form.norm == "unit":
        query, key = (build.unit_norm(part, heads.size) for part in (query, key))
    if form.factors is not None:
        query = write.op("Mul", query, form.factors, label=f"{name}.attn_q.scaled")
    key, value = with_past(build, "key", layer, past_key, key), with_past(build, "value", layer, past_value, value)
    result = attend_heads(build, layer, query, key, value, heads, form)
    if gate is not None:
        result = write.op("Mul", result, write.op("Sigmoid", gate), label=f"{name}.attention.gated")
    result = write.joined(result, heads.queries * heads.value_size, f"{name}.attention")
    return build.linear(result, f"{name}.attn_output", heads.queries * heads.value_size, build.width)


def _projections(
    build: Builder, x: ir.Value, name: str, heads: Heads, form: AttentionForm
) -> tuple[ir.Value, ir.Value, ir.Value]:
    """Project queries, keys and values [B,S,heads*size], with one matrix or with three."""
    query_size = heads.size + (heads.value_size if form.gated else 0)
    sizes = heads.queries * query_size, heads.groups * heads.size, heads.groups * heads.value_size
    if build.has(f"{name}.attn_qkv.weight"):
        joined = build.linear(x, f"{name}.attn_qkv", build.width, sum(sizes))
        parts = build.write.split(_clamped(build, joined, form.clamp), *sizes, axis=-1, label=f"{name}.attn_qkv")
    else:
        names = ("attn_q", "attn_k", "attn_v")
        parts = [
            _clamped(build, build.linear(x, f"{name}.{part}", build.width, size), form.clamp)
            for part, size in zip(names, sizes, strict=True)
        ]
    return parts[0], parts[1], parts[2]


def _clamped(build: Builder, x: ir.Value, limit: float) -> ir.Value:
    return build.write.op("Clip", x, build.write.scalar(-limit), build.write.scalar(limit)) if limit else x


def past_of(build: Builder, kind: str, layer: int, groups: int, size: int) -> ir.Value | None:
    """Add an input for a layer's past keys or values [B,G,P,size]. Returns None without a cache."""
    if not build.with_cache:
        return None
    return build.past(kind, layer, (BATCH, groups, PAST_LENGTH, size))


def with_past(build: Builder, kind: str, layer: int, past: ir.Value | None, new: ir.Value) -> ir.Value:
    """Append new keys or values [B,G,S,h] to the past ones, and output the result as the layer's present ones."""
    if past is None:
        return new
    present = build.write.op("Concat", past, new, axis=2, label=f"blk.{layer}.{kind}s")
    build.keep(kind, layer, present)
    return present


def attend_heads(
    build: Builder, layer: int, query: ir.Value, key: ir.Value, value: ir.Value, heads: Heads, form: AttentionForm
) -> ir.Value:
    """Attend with queries [B,H,S,h], which belong to the last tokens of keys and values [B,G,P+S,h]. Returns
    [B,H,S,value_size]."""
    write, name = build.write, f"blk.{layer}"
    attributes = {"scale": heads.size**-0.5 if form.scale is None else form.scale}
    if form.softcap:
        attributes["softcap"] = form.softcap
    if form.sinks:
        padded = (
            write.op("Pad", tensor, write.numbers(1, 0), None, write.numbers(2), label=f"{name}.behind_sink")
            for tensor in (key, value)
        )
        mask = _order_and_sinks(build, layer, form.window, heads.queries)
        return write.op("Attention", query, *padded, mask, label=f"{name}.attention", **attributes)
    mask = _window_mask(build, form.window) if form.window else form.seen
    mask = _chunk_mask(build, form.chunk) if form.chunk else mask
    lengths = write.op("Expand", build.total, build.batch, label=f"{name}.visible") if build.with_cache else None
    inputs = [query, key, value, mask, None, None, lengths]
    while inputs[-1] is None:
        inputs.pop()
    return write.op("Attention", *inputs, is_causal=1, label=f"{name}.attention", **attributes)


def _window_mask(build: Builder, window: int) -> ir.Value:
    """Mask bool [S,P+S] of the keys that are not before each query's window. Attention itself masks the keys after a
    query."""
    if window not in build.windows:
        write = build.write
        first = write.op("Sub", build.positions, write.whole(window), label="before_window")
        build.windows[window] = write.op(
            "Greater", build.columns, write.op("Unsqueeze", first, write.numbers(1)), label="window"
        )
    return build.windows[window]


def _chunk_mask(build: Builder, size: int) -> ir.Value:
    """Mask bool [S,P+S] of the keys in the same part of the text as each query, where parts have ``size`` tokens."""
    if -size not in build.windows:
        write = build.write
        own, other = (write.op("Div", places, write.whole(size)) for places in (build.positions, build.columns))
        column = write.op("Unsqueeze", own, write.numbers(1))
        build.windows[-size] = write.op("Equal", other, column, label="chunk")
    return build.windows[-size]


def _order_and_sinks(build: Builder, layer: int, window: int, heads: int) -> ir.Value:
    """Additive mask [1,H,S,1+P+S] of the causal order, with a window unless that is 0, and of the sinks' logits, which
    are for the key of zeros before the others. :mod:`moec.ir.sinks` finds sinks in this form."""
    write, name = build.write, f"blk.{layer}.attn_sinks"
    own = write.op("Unsqueeze", build.positions, write.numbers(1))
    visible = write.op("LessOrEqual", build.columns, own, label=f"{name}.causal")
    if window:
        visible = write.op("And", visible, _window_mask(build, window), label=f"{name}.visible")
    order = write.op("Where", visible, write.scalar(0.0), write.scalar(-np.inf), label=f"{name}.order")
    logits = write.constant(build.numbers(f"{name}.weight", heads).reshape(1, heads, 1, 1), name)
    after = write.op("Concat", write.numbers(0), build.total, axis=0)
    padded = write.op("Pad", order, write.numbers(1, 0), None, write.numbers(1), label=f"{name}.order_behind_sink")
    sinks = write.op("Pad", logits, after, None, write.numbers(3), label=f"{name}.added")
    return write.op("Add", padded, sinks, label=f"{name}.mask")
