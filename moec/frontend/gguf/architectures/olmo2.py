"""OLMo 2 and 3: norms after attention and MLP, norms over all queries and keys.

OLMo 3 has windowed layers, which keep the plain frequencies; its other layers scale them.
"""

from __future__ import annotations

import onnx_ir as ir

from moec.frontend.gguf.graph.builder import Builder
from moec.frontend.gguf.parts.attention import AttentionForm, Heads, attention
from moec.frontend.gguf.parts.decoder import Norms, decoder
from moec.frontend.gguf.parts.embedding import embed
from moec.frontend.gguf.parts.feed_forward import gated
from moec.frontend.gguf.parts.rope import Rope, Scaling
from moec.frontend.gguf.parts.windows import windows_of


def build(build: Builder) -> ir.Value:
    heads, inner = Heads.of(build), build.metadata.whole("feed_forward_length")
    windows = windows_of(build, 4)
    rope = Rope(build, heads[0].size, interleaved=False)
    near = Rope(build, heads[0].size, interleaved=False, scaling=Scaling(), label="rope.near")
    norms = Norms(None, "post_attention_norm", None, "post_ffw_norm")

    def attend(x: ir.Value, layer: int) -> ir.Value:
        form = AttentionForm(window=windows[layer], norm="all")
        return attention(build, x, layer, heads[layer], near if windows[layer] else rope, form)

    def feed_forward(x: ir.Value, layer: int) -> ir.Value:
        return gated(build, x, layer, inner)

    return build.head(decoder(build, embed(build), attend, feed_forward, norms))


ARCHITECTURES = {"olmo2": build}
