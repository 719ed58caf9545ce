"""DeepSeek-V2, V3, R1 and GLM-5: latent attention (arXiv 2405.04434), leading dense layers, then experts next to shared
ones.

Newer files hold the matrices that turn the latent into keys and values by head (``attn_k_b``, ``attn_v_b``). Queries
then multiply the latent itself: all heads share one key, whose first part is the value, and nothing else is cached.
Older files hold both in one matrix (``attn_kv_b``), and every head has its own keys and values. In GLM-5 (``glm-dsa``)
an indexer selects the keys that a query sees (:mod:`moec.frontend.gguf.parts.indexer`).
"""

from __future__ import annotations

import dataclasses
import functools
import math

import onnx_ir as ir

from moec.frontend.gguf.graph.builder import Builder
from moec.frontend.gguf.parts.attention import AttentionForm, Heads, attend_heads, past_of, with_past
from moec.frontend.gguf.parts.feed_forward import RouterOptions, experts, gated, score_of, with_shared
from moec.frontend.gguf.parts.indexer import Indexer
from moec.frontend.gguf.parts.mtp import text_or_mtp
from moec.frontend.gguf.parts.rope import Rope

_SOFTMAX, _SIGMOID = 1, 2
_Pasts = list[ir.Value | None]


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


def build(build: Builder, gating: int = _SOFTMAX, is_sparse: bool = False) -> ir.Value:
    """Build the model. ``gating``: the score function where metadata names none. ``is_sparse``: whether there are
    indexers; they read the queries' latent, and the keys are latent."""
    metadata, sizes, inner = build.metadata, _sizes(build), build.metadata.whole("feed_forward_length")
    rope = Rope(build, sizes.rotated, interleaved=True)
    normalize, scale = metadata.flag("expert_weights_norm", False), metadata.number("expert_weights_scale", 0.0)
    router = RouterOptions.of(build, score_of(build, gating), normalize, correction="allowed").scaled(scale)
    own, shared = metadata.whole("expert_feed_forward_length"), metadata.whole("expert_shared_count", least=0)
    dense = metadata.whole("leading_dense_block_count", 0, least=0)
    form = AttentionForm(scale=_score_scale(rope, sizes))
    if is_sparse:
        metadata.whole("attention.key_length_mla"), metadata.whole("attention.q_lora_rank")
    indexer = Indexer.of(build, sizes.rotated) if is_sparse else None

    def attend(x: ir.Value, layer: int) -> ir.Value:
        return _attention(build, x, layer, sizes, rope, form, indexer)

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


def _attention(
    build: Builder,
    x: ir.Value,
    layer: int,
    sizes: _LatentSizes,
    rope: Rope,
    form: AttentionForm,
    indexer: Indexer | None,
) -> ir.Value:
    write, name = build.write, f"blk.{layer}"
    low = _low_query(build, x, name, sizes)
    query = _query(build, low, name, sizes)
    both = build.linear(x, f"{name}.attn_kv_a_mqa", build.width, sizes.rank + sizes.rotated)
    latent, position = write.split(both, sizes.rank, sizes.rotated, axis=-1, label=f"{name}.attn_kv_a")
    latent = build.rms_norm(latent, f"{name}.attn_kv_a_norm", sizes.rank)
    position = write.heads(position, 1, sizes.rotated, f"{name}.attn_k_pe")
    way = _with_latent_cache if sizes.absorbed else _with_keys_of_heads
    pasts = _pasts(build, layer, sizes)
    if indexer is not None:
        past = indexer.past(build, layer)
        seen = indexer.seen(build, x, (low, sizes.query_rank), layer, past, rope)
        form = dataclasses.replace(form, seen=seen)
    result = way(build, layer, query, latent, position, pasts, sizes, rope, form)
    joined = write.joined(result, sizes.heads * sizes.value, f"{name}.attention")
    return build.linear(joined, f"{name}.attn_output", sizes.heads * sizes.value, build.width)


def _pasts(build: Builder, layer: int, sizes: _LatentSizes) -> _Pasts:
    """Add inputs for the layer's past keys, and values where keys do not hold them; each is None without a cache."""
    if sizes.absorbed:
        return [past_of(build, "key", layer, 1, sizes.rank + sizes.rotated)]
    widths = {"key": sizes.plain + sizes.rotated, "value": sizes.value}
    return [past_of(build, kind, layer, sizes.heads, width) for kind, width in widths.items()]


def _low_query(build: Builder, x: ir.Value, name: str, sizes: _LatentSizes) -> ir.Value:
    """Project the queries' latent [B,S,query_rank]; x itself where they have none."""
    if not sizes.query_rank:
        return x
    low = build.linear(x, f"{name}.attn_q_a", build.width, sizes.query_rank)
    return build.rms_norm(low, f"{name}.attn_q_a_norm", sizes.query_rank)


def _query(build: Builder, low: ir.Value, name: str, sizes: _LatentSizes) -> ir.Value:
    """Project queries [B,H,S,plain+rotated], before the rotary embedding, from their latent."""
    size = sizes.plain + sizes.rotated
    part, inputs = ("attn_q_b", sizes.query_rank) if sizes.query_rank else ("attn_q", build.width)
    query = build.linear(low, f"{name}.{part}", inputs, sizes.heads * size)
    return build.write.heads(query, sizes.heads, size, f"{name}.attn_q")


def _with_latent_cache(
    build: Builder,
    layer: int,
    query: ir.Value,
    latent: ir.Value,
    position: ir.Value,
    pasts: _Pasts,
    sizes: _LatentSizes,
    rope: Rope,
    form: AttentionForm,
) -> ir.Value:
    """Attend over the latent itself: one key [B,1,S,rank+rotated] for all heads. Returns [B,H,S,value]."""
    write, name, width = build.write, f"blk.{layer}", sizes.rank + sizes.rotated
    plain, turning = write.split(query, sizes.plain, sizes.rotated, axis=-1, label=f"{name}.attn_q")
    into = _by_head(build, f"{name}.attn_k_b.weight", (sizes.heads, sizes.rank, sizes.plain))
    met = write.op("MatMul", plain, into, label=f"{name}.attn_q.met")
    query = write.op("Concat", met, rope(turning, f"{name}.attn_q_pe"), axis=-1, label=f"{name}.attn_q.latent")
    row = write.op("Unsqueeze", latent, write.numbers(1))
    key = write.op("Concat", row, rope(position, f"{name}.attn_k_pe"), axis=-1, label=f"{name}.attn_k.latent")
    key = with_past(build, "key", layer, pasts[0], key)
    value = write.split(key, sizes.rank, sizes.rotated, axis=-1, label=f"{name}.attn_v.latent")[0]
    heads = Heads(sizes.heads, 1, width, sizes.rank)
    attended = attend_heads(build, layer, query, key, value, heads, form)
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
    pasts: _Pasts,
    sizes: _LatentSizes,
    rope: Rope,
    form: AttentionForm,
) -> ir.Value:
    """Attend over keys and values that the latent is expanded to, for every head. Returns [B,H,S,value]."""
    write, name, size = build.write, f"blk.{layer}", sizes.plain + sizes.rotated
    both = build.linear(latent, f"{name}.attn_kv_b", sizes.rank, sizes.heads * (sizes.plain + sizes.value))
    both = write.heads(both, sizes.heads, sizes.plain + sizes.value, f"{name}.attn_kv_b")
    plain_key, value = write.split(both, sizes.plain, sizes.value, axis=-1, label=f"{name}.attn_kv_b")
    plain, turning = write.split(query, sizes.plain, sizes.rotated, axis=-1, label=f"{name}.attn_q")
    query = write.op("Concat", plain, rope(turning, f"{name}.attn_q_pe"), axis=-1, label=f"{name}.attn_q.whole")
    ones = write.numbers(1, sizes.heads, 1, 1)
    turned = write.op("Expand", rope(position, f"{name}.attn_k_pe"), ones)
    key = write.op("Concat", plain_key, turned, axis=-1, label=f"{name}.attn_k.whole")
    key, value = with_past(build, "key", layer, pasts[0], key), with_past(build, "value", layer, pasts[1], value)
    heads = Heads(sizes.heads, sizes.heads, size, sizes.value)
    return attend_heads(build, layer, query, key, value, heads, form)


ARCHITECTURES = {"deepseek2": build, "glm-dsa": functools.partial(build, gating=_SIGMOID, is_sparse=True)}
