"""Llama 4: most layers see their own part of the text, and every fourth all of it without rotary embedding, with
queries that grow with the position. Routing weights multiply the inputs of experts, next to a shared one."""

from __future__ import annotations

import onnx_ir as ir

from moec.frontend.gguf.graph.builder import FLOAT, Builder
from moec.frontend.gguf.parts.attention import AttentionForm, Heads, attention
from moec.frontend.gguf.parts.decoder import decoder
from moec.frontend.gguf.parts.embedding import embed
from moec.frontend.gguf.parts.feed_forward import RouterOptions, experts, gated, with_shared
from moec.frontend.gguf.parts.rope import Rope
from moec.ir.dialect import ExpertsSpec

CHUNK = 8192
"""Tokens of a part of the text, and those after which queries grow. Files do not hold it."""
_GROWTH = 0.1
_WITHOUT_ROPE = 4
"""Every layer of this number has no rotary embedding."""
_EXPERTS_WITHOUT_NORM = 128
"""Experts of the model (Maverick) whose queries and keys are not normalised."""
_EXPERTS = ExpertsSpec(weight_on_input=True)


def build(build: Builder) -> ir.Value:
    metadata, heads = build.metadata, Heads.of(build)
    metadata.refuse("attention.sliding_window", CHUNK)
    metadata.refuse("attention.sliding_window_pattern", _WITHOUT_ROPE)
    metadata.refuse("leading_dense_block_count", 0)
    base = metadata.number("rope.freq_base", 10_000.0)
    rope = Rope(build, heads[0].size, interleaved=True, base=metadata.number("rope.freq_base_swa", base))
    router = RouterOptions.of(build, "sigmoid_topk", normalize=False)
    router = router.scaled(metadata.number("expert_weights_scale", 0.0))
    inner, own = metadata.whole("feed_forward_length"), metadata.whole("expert_feed_forward_length")
    step = metadata.whole("interleave_moe_layer_step")
    near = AttentionForm(norm="" if router.experts == _EXPERTS_WITHOUT_NORM else "unit", chunk=CHUNK)

    def attend(x: ir.Value, layer: int) -> ir.Value:
        if (layer + 1) % _WITHOUT_ROPE == 0:
            return attention(build, x, layer, heads[layer], None, AttentionForm(factors=_growing(build)))
        return attention(build, x, layer, heads[layer], rope, near)

    def feed_forward(x: ir.Value, layer: int) -> ir.Value:
        if (layer + 1) % step:
            return gated(build, x, layer, inner)
        routed = experts(build, x, layer, router, own, _EXPERTS)
        return with_shared(build, x, routed, layer, own)

    return build.head(decoder(build, embed(build), attend, feed_forward))


def _growing(build: Builder) -> ir.Value:
    """Factors [S,1] of queries: ``1 + 0.1 log(1 + floor((position + 1) / 8192))``."""
    write = build.write
    parts = write.op("Div", write.op("Add", build.positions, write.whole(1)), write.whole(CHUNK))
    parts = write.op("Cast", write.op("Add", parts, write.whole(1)), to=int(FLOAT))
    growth = write.op("Mul", write.op("Log", parts), write.scalar(_GROWTH))
    return write.op("Unsqueeze", write.op("Add", growth, write.scalar(1.0)), write.numbers(1), label="query_growth")


ARCHITECTURES = {"llama4": build}
