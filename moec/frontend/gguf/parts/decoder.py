"""The frame of a decoder's layers: norms, attention, MLP, and their additions to the residual stream."""

from __future__ import annotations

import dataclasses

import onnx_ir as ir

from moec.frontend.gguf.graph.builder import Builder
from moec.frontend.gguf.parts.feed_forward import Step


@dataclasses.dataclass(frozen=True)
class Norms:
    """Names of the norms before and after attention and MLP; None where there is none. ``layer``: whether they are
    layer norms, which subtract the mean, instead of RMS norms."""

    attention: str | None = "attn_norm"
    after_attention: str | None = None
    feed_forward: str | None = "ffn_norm"
    after_feed_forward: str | None = None
    layer: bool = False


def decoder(
    build: Builder, x: ir.Value, attend: Step, feed_forward: Step, norms: Norms = Norms(), residual: float = 1.0
) -> ir.Value:
    """Compute the residual stream [B,S,D] after all layers. ``residual``: factor of each addition to it."""
    for layer in range(build.layers):
        x = decoder_layer(build, x, layer, attend, feed_forward, norms, residual)
    return x


def decoder_layer(
    build: Builder,
    x: ir.Value,
    layer: int,
    attend: Step,
    feed_forward: Step,
    norms: Norms = Norms(),
    residual: float = 1.0,
) -> ir.Value:
    """Compute the residual stream [B,S,D] after one layer; see :func:`decoder`."""
    steps = (
        ("attended", norms.attention, attend, norms.after_attention),
        ("out", norms.feed_forward, feed_forward, norms.after_feed_forward),
    )
    for label, before, step, after in steps:
        y = step(_normal(build, x, layer, before, norms.layer), layer)
        y = _normal(build, y, layer, after, norms.layer)
        y = build.write.scaled(y, residual, f"blk.{layer}.{label}.scaled")
        x = build.write.op("Add", x, y, label=f"blk.{layer}.{label}")
    return x


def _normal(build: Builder, x: ir.Value, layer: int, name: str | None, is_layer_norm: bool) -> ir.Value:
    if name is None:
        return x
    norm = build.layer_norm if is_layer_norm else build.rms_norm
    return norm(x, f"blk.{layer}.{name}")
