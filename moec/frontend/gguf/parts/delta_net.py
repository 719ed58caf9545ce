"""Gated delta net (arXiv 2412.06464): linear attention by the gated delta rule, behind a convolution.

Each head of values has a state [K,V], and shares its query and key with others: ``grouped`` heads with their
neighbours (Qwen3-Next), ``tiled`` ones with those that are a number of key heads away (Qwen3.5, whose heads of values
the converter of llama.cpp reorders).
"""

from __future__ import annotations

import dataclasses

import onnx_ir as ir

from moec.common.errors import UnsupportedError
from moec.frontend.gguf.graph.builder import Builder
from moec.frontend.gguf.parts.convolution import causal_convolution
from moec.frontend.gguf.parts.linear_attention import HeadOrder, linear_attention, shared_by_heads
from moec.ir.dialect import LinearSpec


@dataclasses.dataclass(frozen=True)
class DeltaSizes:
    """Sizes of a gated delta net: heads of keys, of ``key_size`` elements, heads of values, of ``value_size``, and the
    inputs that a convolution sees (``taps``)."""

    key_heads: int
    value_heads: int
    key_size: int
    value_size: int
    taps: int

    @property
    def keys(self) -> int:
        return self.key_heads * self.key_size

    @property
    def values(self) -> int:
        return self.value_heads * self.value_size

    @property
    def repeats(self) -> int:
        """Number of value heads that share a key."""
        return self.value_heads // self.key_heads

    @staticmethod
    def of(build: Builder) -> DeltaSizes:
        """Read the sizes from metadata. Raises UnsupportedError for heads that do not fit."""
        metadata = build.metadata
        key_heads, value_heads = metadata.whole("ssm.group_count"), metadata.whole("ssm.time_step_rank")
        inner = metadata.whole("ssm.inner_size")
        if value_heads % key_heads or inner % value_heads:
            raise UnsupportedError(
                f"{metadata.where}: ssm.time_step_rank is {value_heads}; expected a multiple of ssm.group_count "
                f"({key_heads}) that divides ssm.inner_size ({inner})"
            )
        size, taps = metadata.whole("ssm.state_size"), metadata.whole("ssm.conv_kernel", least=2)
        return DeltaSizes(key_heads, value_heads, size, inner // value_heads, taps)


def delta_net(build: Builder, x: ir.Value, layer: int, sizes: DeltaSizes, order: HeadOrder) -> ir.Value:
    """Compute what a layer's gated delta net adds to the residual stream, from its normalised input x [B,S,D]."""
    write, name = build.write, f"blk.{layer}"
    joined, gate = _inputs(build, x, name, sizes)
    beta, decay = _rates(build, x, name, sizes)
    mixed = causal_convolution(build, joined, layer, f"{name}.ssm_conv1d", 2 * sizes.keys + sizes.values, sizes.taps)
    mixed = write.op("Mul", mixed, write.op("Sigmoid", mixed), label=f"{name}.ssm_conv1d.activated")
    query, key, value = write.split(mixed, sizes.keys, sizes.keys, sizes.values, axis=-1, label=f"{name}.ssm")
    query, key = (_unit(build, part, sizes, order, f"{name}.ssm_{of}") for of, part in (("q", query), ("k", key)))
    shape = sizes.value_heads, sizes.key_size, sizes.value_size
    result = linear_attention(build, layer, (query, key, value), decay, beta, shape, sizes.key_size**-0.5)
    result = write.reshape(result, 0, 0, sizes.value_heads, sizes.value_size, label=f"{name}.ssm_attention.heads")
    result = build.rms_norm(result, f"{name}.ssm_norm", sizes.value_size)
    result = write.reshape(result, 0, 0, sizes.values, label=f"{name}.ssm_attention.joined")
    return build.linear(
        write.op("Mul", result, gate, label=f"{name}.ssm_gated"), f"{name}.ssm_out", sizes.values, build.width
    )


def _inputs(build: Builder, x: ir.Value, name: str, sizes: DeltaSizes) -> tuple[ir.Value, ir.Value]:
    """Project queries, keys and values [B,S,2*keys+values], and the activated gate of results [B,S,values]. Older files
    have one matrix, in the order of key heads."""
    write, sizes_of_all = build.write, 2 * sizes.keys + sizes.values
    if not build.has(f"{name}.ssm_in.weight"):
        joined = build.linear(x, f"{name}.attn_qkv", build.width, sizes_of_all)
        weight = build.matrix(f"{name}.attn_gate.weight", sizes.values, build.width)
        gate = write.moec("Linear", f"{name}.attn_gate", LinearSpec(activation="silu"), x=x, weight=weight)[0]
        return joined, gate
    all_inputs = build.linear(x, f"{name}.ssm_in", build.width, sizes_of_all + sizes.values)
    each = sizes.repeats * sizes.value_size
    heads = write.reshape(all_inputs, 0, 0, sizes.key_heads, -1, label=f"{name}.ssm_in.heads")
    parts = write.split(heads, sizes.key_size, sizes.key_size, each, each, axis=-1, label=f"{name}.ssm_in.parts")
    *first, gate = (write.reshape(part, 0, 0, -1) for part in parts)
    return write.op("Concat", *first, axis=-1, label=f"{name}.ssm_in.joined"), write.op(
        "Mul", gate, write.op("Sigmoid", gate), label=f"{name}.ssm_in.gate"
    )


def _rates(build: Builder, x: ir.Value, name: str, sizes: DeltaSizes) -> tuple[ir.Value, ir.Value]:
    """Compute how much each head writes, and the logarithm of how much of its state it keeps, [B,S,H] both. One matrix
    may hold both, in the order of key heads."""
    write, count = build.write, sizes.value_heads
    if build.has(f"{name}.ssm_ba.weight"):
        both = build.linear(x, f"{name}.ssm_ba", build.width, 2 * count)
        heads = write.reshape(both, 0, 0, sizes.key_heads, -1, label=f"{name}.ssm_ba.heads")
        parts = write.split(heads, sizes.repeats, sizes.repeats, axis=-1, label=f"{name}.ssm_ba.parts")
        beta, alpha = (write.reshape(part, 0, 0, count) for part in parts)
    else:
        beta, alpha = (build.linear(x, f"{name}.ssm_{part}", build.width, count) for part in ("beta", "alpha"))
    step = write.op("Softplus", write.op("Add", alpha, build.vector(f"{name}.ssm_dt.bias", count)))
    decay = write.op("Mul", step, build.vector(f"{name}.ssm_a", count), label=f"{name}.ssm_decay")
    return write.op("Sigmoid", beta, label=f"{name}.ssm_beta.rate"), decay


def _unit(build: Builder, rows: ir.Value, sizes: DeltaSizes, order: HeadOrder, label: str) -> ir.Value:
    """Divide each query or key of [B,S,keys] by its length, and repeat it for the value heads that share it."""
    write = build.write
    apart = write.reshape(rows, 0, 0, sizes.key_heads, sizes.key_size, label=f"{label}.heads")
    squares = write.op("ReduceSumSquare", apart, write.numbers(-1), keepdims=1, label=f"{label}.squares")
    epsilon = write.scalar(build.metadata.number("attention.layer_norm_rms_epsilon"))
    length = write.op("Sqrt", write.op("Add", squares, epsilon), label=f"{label}.length")
    apart = write.op("Div", apart, length, label=f"{label}.normalised")
    return shared_by_heads(build, apart, sizes.repeats, order, f"{label}.shared")
