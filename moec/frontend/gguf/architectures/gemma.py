"""Gemma 1 to 3: embeddings times sqrt(D), GELU.

Gemma 2 and 3 add windows and norms after attention and MLP. Gemma 2 bounds scores and logits. Gemma 3 normalises
queries and keys, and its windowed layers have frequencies of their own.
"""

from __future__ import annotations

import math

import onnx_ir as ir

from moec.frontend.gguf.graph.builder import Builder
from moec.frontend.gguf.parts.attention import AttentionForm, Heads, attention
from moec.frontend.gguf.parts.decoder import Norms, decoder
from moec.frontend.gguf.parts.embedding import embed
from moec.frontend.gguf.parts.feed_forward import gated
from moec.frontend.gguf.parts.rope import Rope, Scaling
from moec.frontend.gguf.parts.windows import windows_of

_LARGEST = {"gemma2": 46, "gemma3": 62}
"""Layers of the 27B models, which scale scores by D / heads instead of the size of a head."""
_AFTER = Norms(after_attention="post_attention_norm", after_feed_forward="post_ffw_norm")


def build(build: Builder) -> ir.Value:
    metadata, name, heads = build.metadata, build.metadata.architecture, Heads.of(build)
    inner = metadata.whole("feed_forward_length")
    windows = [0] * build.layers
    if name != "gemma":
        windows = windows_of(build, 2, 4096) if name == "gemma2" else windows_of(build, 6)
    rope = near = Rope(build, heads[0].size, interleaved=False)
    if name == "gemma3":
        base = metadata.number("rope.freq_base_swa", 10_000.0)
        near = Rope(build, heads[0].size, interleaved=False, base=base, scaling=Scaling(), label="rope.near")
    softcap = metadata.number("attn_logit_softcapping", 50.0) if name == "gemma2" else 0.0
    is_largest = _LARGEST.get(name) == build.layers
    scale = (build.width // heads[0].queries if is_largest else heads[0].size) ** -0.5

    def attend(x: ir.Value, layer: int) -> ir.Value:
        norm = "head" if name == "gemma3" else ""
        form = AttentionForm(window=windows[layer], scale=scale, softcap=softcap, norm=norm)
        return attention(build, x, layer, heads[layer], near if windows[layer] else rope, form)

    def feed_forward(x: ir.Value, layer: int) -> ir.Value:
        return gated(build, x, layer, inner, activation="gelu_tanh")

    x = decoder(
        build, embed(build, math.sqrt(build.width)), attend, feed_forward, Norms() if name == "gemma" else _AFTER
    )
    default = 30.0 if name == "gemma2" else 0.0
    return build.head(x, softcap=metadata.number("final_logit_softcapping", default) if name != "gemma" else 0.0)


ARCHITECTURES = {"gemma": build, "gemma2": build, "gemma3": build}
