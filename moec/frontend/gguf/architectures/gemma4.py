"""Gemma 4: layers with a window have heads and frequencies of their own, values are normalised, and keys may be values,
too. The last layers may attend to the keys and values of earlier ones, an embedding for each layer may be added, and
experts may stand next to the MLP, with a norm of each."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import onnx_ir as ir

from moec.common.errors import UnsupportedError
from moec.frontend.gguf.graph.builder import Builder
from moec.frontend.gguf.parts.attention import AttentionForm, Heads, attend_heads, past_of, with_past
from moec.frontend.gguf.parts.embedding import embed
from moec.frontend.gguf.parts.feed_forward import RouterOptions, experts, gated
from moec.frontend.gguf.parts.rope import Rope, Scaling
from moec.frontend.gguf.parts.windows import windows_of
from moec.ir.dialect import ExpertsSpec

_EXPERTS = ExpertsSpec("gelu_tanh")


def build(build: Builder) -> ir.Value:
    metadata, layers = build.metadata, _Layers(build)
    inner = metadata.by_layer("feed_forward_length", build.layers)
    router = RouterOptions.of(build) if metadata.whole("expert_count", 0, least=0) else None
    own = metadata.whole("expert_feed_forward_length") if router is not None else 0
    x = embed(build, math.sqrt(build.width))
    extra = _EmbeddingsOfLayers(build, x)
    for layer in range(build.layers):
        name = f"blk.{layer}"
        y = layers.attend(build.rms_norm(x, f"{name}.attn_norm"), layer)
        x = build.write.op("Add", x, build.rms_norm(y, f"{name}.post_attention_norm"), label=f"{name}.attended")
        y = gated(build, build.rms_norm(x, f"{name}.ffn_norm"), layer, inner[layer], activation="gelu_tanh")
        if router is not None and build.has(f"{name}.ffn_gate_inp.weight"):
            y = _with_experts(build, x, y, layer, router, own)
        x = build.write.op("Add", x, build.rms_norm(y, f"{name}.post_ffw_norm"), label=f"{name}.out")
        x = extra.added(x, layer)
        if build.has(f"{name}.layer_output_scale.weight"):
            x = build.write.op("Mul", x, build.vector(f"{name}.layer_output_scale.weight", 1), label=f"{name}.scaled")
    return _without_suppressed(build, build.head(x, softcap=metadata.number("final_logit_softcapping", 0.0)))


def _with_experts(build: Builder, x: ir.Value, mlp: ir.Value, layer: int, router: RouterOptions, own: int) -> ir.Value:
    """Add the experts' sum to the MLP's result ``mlp``, each with a norm of its own, from the residual stream x."""
    write, name = build.write, f"blk.{layer}"
    scale = write.scaled(build.vector(f"{name}.ffn_gate_inp.scale", build.width), build.width**-0.5, f"{name}.route.in")
    rows = write.op("Mul", build.unit_norm(x, build.width), scale, label=f"{name}.route.rows")
    inputs = build.rms_norm(x, f"{name}.pre_ffw_norm_2")
    routed = experts(build, rows, layer, router, own, _EXPERTS, inputs)
    parts = (build.rms_norm(y, f"{name}.post_ffw_norm_{place}") for place, y in ((1, mlp), (2, routed)))
    return write.op("Add", *parts, label=f"{name}.with_experts")


class _Layers:
    """Attention of all layers."""

    def __init__(self, build: Builder) -> None:
        """Raises UnsupportedError for layers that share keys and values with none."""
        metadata = build.metadata
        self._build, self._windows = build, windows_of(build, 6)
        self._far = Heads.of(build)
        near = (metadata.whole(f"attention.{part}_length_swa", self._far[0].size) for part in ("key", "value"))
        sizes = dict(zip(("size", "value_size"), near, strict=True))
        self._near = [dataclasses.replace(heads, **sizes) for heads in self._far]
        self._rope = Rope(build, self._far[0].size, interleaved=False)
        base = metadata.number("rope.freq_base_swa", 10_000.0)
        self._near_rope = Rope(
            build, sizes["size"], interleaved=False, base=base, scaling=Scaling(), label="rope.near", is_near=True
        )
        self._own = build.layers - metadata.whole("attention.shared_kv_layers", 0, least=0)
        if self._own < min(2, build.layers):
            raise UnsupportedError(
                f"{metadata.where}: attention.shared_kv_layers leaves {self._own} of {build.layers} layers with keys "
                "and values of their own; expected 2 or more"
            )
        self._kept: dict[int, tuple[ir.Value, ir.Value]] = {}

    def attend(self, x: ir.Value, layer: int) -> ir.Value:
        """Compute a layer's attention on its normalised input x [B,S,D]."""
        build, name, window = self._build, f"blk.{layer}", self._windows[layer]
        heads, rope = (self._near[layer], self._near_rope) if window else (self._far[layer], self._rope)
        source = layer if layer < self._own else self._own - (2 if window else 1)
        if source == layer:
            self._kept[layer] = self._keys_and_values(x, layer, heads, rope)
        query = build.linear(x, f"{name}.attn_q", build.width, heads.queries * heads.size)
        query = build.write.heads(query, heads.queries, heads.size, f"{name}.attn_q")
        query = rope(build.rms_norm(query, f"{name}.attn_q_norm", heads.size), f"{name}.attn_q.rotated")
        form = AttentionForm(window=window, scale=1.0)
        result = attend_heads(build, layer, query, *self._kept[source], heads, form)
        result = build.write.joined(result, heads.queries * heads.value_size, f"{name}.attention")
        return build.linear(result, f"{name}.attn_output", heads.queries * heads.value_size, build.width)

    def _keys_and_values(self, x: ir.Value, layer: int, heads: Heads, rope: Rope) -> tuple[ir.Value, ir.Value]:
        """Compute the keys and values [B,G,P+S,h] of a layer. Without a matrix for values, keys are values before their
        norm."""
        build, write, name = self._build, self._build.write, f"blk.{layer}"
        key = value = build.linear(x, f"{name}.attn_k", build.width, heads.groups * heads.size)
        if build.has(f"{name}.attn_v.weight"):
            value = build.linear(x, f"{name}.attn_v", build.width, heads.groups * heads.value_size)
        key = write.heads(key, heads.groups, heads.size, f"{name}.attn_k")
        value = write.heads(value, heads.groups, heads.value_size, f"{name}.attn_v")
        key = build.rms_norm(key, f"{name}.attn_k_norm", heads.size)
        past_key = past_of(build, "key", layer, heads.groups, heads.size)
        past_value = past_of(build, "value", layer, heads.groups, heads.value_size)
        key = with_past(build, "key", layer, past_key, rope(key, f"{name}.attn_k.rotated"))
        return key, with_past(build, "value", layer, past_value, build.unit_norm(value, heads.value_size))


class _EmbeddingsOfLayers:
    """An embedding [B,S,L,P] that each of the L layers adds a part of to the residual stream; P may be 0."""

    def __init__(self, build: Builder, x: ir.Value) -> None:
        """``x``: the scaled embedding [B,S,D] of all layers together."""
        write, layers = build.write, build.layers
        self._build = build
        self._size = size = build.metadata.whole("embedding_length_per_layer_input", 0, least=0)
        if not size:
            return
        rows = embed(build, math.sqrt(size), "per_layer_token_embd.weight", layers * size)
        projected = build.linear(x, "per_layer_model_proj", build.width, layers * size)
        projected = write.scaled(projected, build.width**-0.5, "per_layer_model_proj.scaled")
        projected = write.reshape(projected, 0, 0, layers, size, label="per_layer_model_proj.layers")
        projected = build.rms_norm(projected, "per_layer_proj_norm", size)
        both = write.op("Add", projected, write.reshape(rows, 0, 0, layers, size))
        self._rows = write.scaled(both, 0.5**0.5, "per_layer_inputs")

    def added(self, x: ir.Value, layer: int) -> ir.Value:
        """Add a layer's part to the residual stream x."""
        if not self._size:
            return x
        build, write, name = self._build, self._build.write, f"blk.{layer}"
        gate = build.linear(x, f"{name}.inp_gate", build.width, self._size)
        gate = write.op("Gelu", gate, approximate="tanh", label=f"{name}.inp_gate.activated")
        own = write.op("Gather", self._rows, write.whole(layer), axis=2, label=f"{name}.per_layer_input")
        y = build.linear(write.op("Mul", gate, own), f"{name}.proj", self._size, build.width)
        return write.op("Add", x, build.rms_norm(y, f"{name}.post_norm"), label=f"{name}.with_input")


def _without_suppressed(build: Builder, logits: ir.Value) -> ir.Value:
    """Make the logits of tokens that a model must not write -inf; the tokenizer's metadata lists them."""
    ids = build.file.metadata.get("tokenizer.ggml.suppress_tokens")
    if not isinstance(ids, np.ndarray) or ids.dtype.kind not in "iu":
        return logits
    bias = np.where(np.isin(np.arange(build.vocabulary), ids), -np.inf, 0.0).astype(np.float32)
    return build.write.op("Add", logits, build.write.constant(bias, "suppressed"), label="logits.allowed")


ARCHITECTURES = {"gemma4": build}
