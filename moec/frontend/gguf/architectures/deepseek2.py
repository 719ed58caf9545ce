"""DeepSeek-V2, V3 and R1: latent attention (arXiv 2405.04434), leading dense layers, then experts next to shared ones.

Newer files hold the matrices that turn the latent into keys and values by head (``attn_k_b``, ``attn_v_b``). Queries
then multiply the latent itself: all heads share one key, whose first part is the value, and nothing else is cached.
Older files hold both in one matrix (``attn_kv_b``), and every head has its own keys and values.
"""

from __future__ import annotations

import dataclasses
import math

import onnx_ir as ir

from moec.frontend.gguf.graph.builder import BATCH, PAST_LENGTH, Builder
from moec.frontend.gguf.parts.attention import AttentionForm, Heads, attend_heads, with_past
from moec.frontend.gguf.parts.feed_forward import RouterOptions, experts, gated, score_of, with_shared
from moec.frontend.gguf.parts.mtp import text_or_mtp
from moec.frontend.gguf.parts.rope import Rope

_SOFTMAX = 1


@dataclasses.dataclass(frozen=True)
class _LatentSizes:
    """Sizes of latent attention.

    ``plain``: elements of a head's key without rotary embedding. ``rotated``: those with it. ``value``: elements of a
    head's value. ``rank``: size of the latent. ``query_rank``: size of the queries' latent, 0 where they have none.
    ``absorbed``: whether queries multiply the latent itself.
    """

    heads: int
    plain: int
    rotated: int
    value: int
    rank: int
    query_rank: int
    absorbed: bool


def build(build: Builder) -> ir.Value:
    metadata, sizes, inner = build.metadata, _sizes(build), build.metadata.whole("feed_forward_length")
    rope = Rope(build, sizes.rotated, interleaved=True)
    normalize, scale = metadata.flag("expert_weights_norm", False), metadata.number("expert_weights_scale", 0.0)
    router = RouterOptions.of(build, score_of(build, _SOFTMAX), normalize, correction="allowed").scaled(scale)
    own, shared = metadata.whole("expert_feed_forward_length"), metadata.whole("expert_shared_count", least=0)
    dense = metadata.whole("leading_dense_block_count", 0, least=0)
    score_scale = _score_scale(rope, sizes)

    def attend(x: ir.Value, layer: int) -> ir.Value:
        return _attention(build, x, layer, sizes, rope, score_scale)

    def feed_forward(x: ir.Value, layer: int) -> ir.Value:
        if layer < dense:
            return gated(build, x, layer, inner)
        return with_shared(build, x, experts(build, x, layer, router, own), layer, own * shared)

    return text_or_mtp(build, attend, feed_forward)


def _sizes(build: Builder) -> _LatentSizes:
    metadata = build.metadata
    heads, rotated = metadata.whole("attention.head_count"), metadata.whole("rope.dimension_count")
    metadata.whole("attention.head_count_kv", heads)
    key, value = metadata.whole("attention.key_length"), metadata.whole("attention.value_length")
    absorbed = "attention.key_length_mla" in metadata
    if absorbed:
        key, value = metadata.whole("attention.key_length_mla"), metadata.whole("attention.value_length_mla")
    rank, query_rank = metadata.whole("attention.kv_lora_rank"), metadata.whole("attention.q_lora_rank", 0, least=0)
    query_rank = query_rank if build.has("blk.0.attn_q_a.weight") else 0
    return _LatentSizes(heads, key - rotated, rotated, value, rank, query_rank, absorbed)


def _score_scale(rope: Rope, sizes: _LatentSizes) -> float:
    """Factor of the scores: YaRN's stretch is taken off cosines and sines, and enters here squared."""
    scaling = rope.scaling
    longer = math.log(scaling.factor)
    stretch = scaling.attention_factor * (1 + 0.1 * longer) * (1 + 0.1 * scaling.log_factor * longer)
    return stretch * stretch / math.sqrt(sizes.plain + sizes.rotated)


def _attention(build: Builder, x: ir.Value, layer: int, sizes: _LatentSizes, rope: Rope, scale: float) -> ir.Value:
    write, name = build.write, f"blk.{layer}"
    query = _query(build, x, name, sizes)
    both = build.linear(x, f"{name}.attn_kv_a_mqa", build.width, sizes.rank + sizes.rotated)
    latent, position = write.split(both, sizes.rank, sizes.rotated, axis=-1, label=f"{name}.attn_kv_a")
    latent = build.rms_norm(latent, f"{name}.attn_kv_a_norm", sizes.rank)
    position = write.heads(position, 1, sizes.rotated, f"{name}.attn_k_pe")
    way = _with_latent_cache if sizes.absorbed else _with_keys_of_heads
    result = way(build, layer, query, latent, position, sizes, rope, scale)
    joined = write.joined(result, sizes.heads * sizes.value, f"{name}.attention")
    return build.linear(joined, f"{name}.attn_output", sizes.heads * sizes.value, build.width)


def _query(build: Builder, x: ir.Value, name: str, sizes: _LatentSizes) -> ir.Value:
    """Project queries [B,H,S,plain+rotated], before the rotary embedding."""
    size = sizes.plain + sizes.rotated
    if not sizes.query_rank:
        query = build.linear(x, f"{name}.attn_q", build.width, sizes.heads * size)
    else:
        low = build.linear(x, f"{name}.attn_q_a", build.width, sizes.query_rank)
        low = build.rms_norm(low, f"{name}.attn_q_a_norm", sizes.query_rank)
        query = build.linear(low, f"{name}.attn_q_b", sizes.query_rank, sizes.heads * size)
    return build.write.heads(query, sizes.heads, size, f"{name}.attn_q")


def _with_latent_cache(
    build: Builder,
    layer: int,
    query: ir.Value,
    latent: ir.Value,
    position: ir.Value,
    sizes: _LatentSizes,
    rope: Rope,
    scale: float,
) -> ir.Value:
    """Attend over the latent itself: one key [B,1,S,rank+rotated] for all heads. Returns [B,H,S,value]."""
    write, name, width = build.write, f"blk.{layer}", sizes.rank + sizes.rotated
    past = build.past("key", layer, (BATCH, 1, PAST_LENGTH, width)) if build.with_cache else None
    plain, turning = write.split(query, sizes.plain, sizes.rotated, axis=-1, label=f"{name}.attn_q")
    into = _by_head(build, f"{name}.attn_k_b.weight", (sizes.heads, sizes.rank, sizes.plain))
    met = write.op("MatMul", plain, into, label=f"{name}.attn_q.met")
    query = write.op("Concat", met, rope(turning, f"{name}.attn_q_pe"), axis=-1, label=f"{name}.attn_q.latent")
    row = write.op("Unsqueeze", latent, write.numbers(1))
    key = write.op("Concat", row, rope(position, f"{name}.attn_k_pe"), axis=-1, label=f"{name}.attn_k.latent")
    key = with_past(build, "key", layer, past, key)
    value = write.split(key, sizes.rank, sizes.rotated, axis=-1, label=f"{name}.attn_v.latent")[0]
    heads = Heads(sizes.heads, 1, width, sizes.rank)
    attended = attend_heads(build, layer, query, key, value, heads, AttentionForm(scale=scale))
    out = _by_head(build, f"{name}.attn_v_b.weight", (sizes.heads, sizes.value, sizes.rank))
    return write.op("MatMul", attended, out, label=f"{name}.attn_v_b")


def _by_head(build: Builder, name: str, shape: tuple[int, int, int]) -> ir.Value:
    """Load matrices [H,out,in] as [H,in,out] in float32, because batched products read no stored weights."""
    return build.float_table(name, *shape, order=(0, 2, 1))


def _with_keys_of_heads(
    build: Builder,
    layer: int,
    query: ir.Value,
    latent: ir.Value,
    position: ir.Value,
    sizes: _LatentSizes,
    rope: Rope,
    scale: float,
) -> ir.Value:
    """Attend over keys and values that the latent is expanded to, for every head. Returns [B,H,S,value]."""
    write, name, size = build.write, f"blk.{layer}", sizes.plain + sizes.rotated
    past = [
        build.past(kind, layer, (BATCH, sizes.heads, PAST_LENGTH, width)) if build.with_cache else None
        for kind, width in (("key", size), ("value", sizes.value))
    ]
    both = build.linear(latent, f"{name}.attn_kv_b", sizes.rank, sizes.heads * (sizes.plain + sizes.value))
    both = write.heads(both, sizes.heads, sizes.plain + sizes.value, f"{name}.attn_kv_b")
    plain_key, value = write.split(both, sizes.plain, sizes.value, axis=-1, label=f"{name}.attn_kv_b")
    plain, turning = write.split(query, sizes.plain, sizes.rotated, axis=-1, label=f"{name}.attn_q")
    query = write.op("Concat", plain, rope(turning, f"{name}.attn_q_pe"), axis=-1, label=f"{name}.attn_q.whole")
    ones = write.numbers(1, sizes.heads, 1, 1)
    turned = write.op("Expand", rope(position, f"{name}.attn_k_pe"), ones)
    key = write.op("Concat", plain_key, turned, axis=-1, label=f"{name}.attn_k.whole")
    key, value = with_past(build, "key", layer, past[0], key), with_past(build, "value", layer, past[1], value)
    heads = Heads(sizes.heads, sizes.heads, size, sizes.value)
    return attend_heads(build, layer, query, key, value, heads, AttentionForm(scale=scale))


ARCHITECTURES = {"deepseek2": build}
