"""The hardware of a whole model in numbers: one kernel for layers of experts and linear layers, one for attention.

Each kernel is as large as its largest layer requires. Layers may differ in data: the number of experts and of those
that a token chooses, hidden units, multipliers, epsilons, tables of activations. They must agree in all that is wires.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import TypeVar

from moec.common.errors import UnsupportedError
from moec.targets.hls.attention.quantize import QuantizedAttention
from moec.targets.hls.design.attention import AttentionDesign, AttentionShape
from moec.targets.hls.design.experts import BlockShape, Design
from moec.targets.hls.design.numbers import BEAT_BYTES, RESULT_BITS
from moec.targets.hls.model.plan import ModelPlan, QuantizedLinear
from moec.targets.hls.moe.quantize import QuantizedBlock

T = TypeVar("T")

_SAME = ("gated", "weight_bits", "group")
_SAME_OF_ROUTED = ("groups", "groups_kept", "group_sum", "scoring", "normalized", "biased_choice")
"""Fields of layers of experts that are wires; the second ones only of layers with a router."""


@dataclasses.dataclass(frozen=True)
class ModelDesign:
    """One way to build a whole model, or a block, which is a model of one layer.

    ``moe``: the kernel of experts and linear layers; ``attention``: the other kernel; each None for a model without
    such layers. ``layers``: the number of layers; ``patch_width``: channels of a row of the embedding's inputs, 0
    without an embedding.
    """

    moe: Design | None
    attention: AttentionDesign | None = None
    layers: int = 1
    patch_width: int = 0

    @property
    def experts(self) -> Design:
        """The kernel of experts of a design that has one."""
        assert self.moe is not None
        return self.moe

    @property
    def is_block(self) -> bool:
        """Whether this is a block: its only layer is known to the kernel, and its streams are buffers of their own."""
        return self.layers == 1

    @property
    def is_normalized(self) -> bool:
        """Whether inputs are a residual stream of int16, instead of int8."""
        return self.moe is None or self.moe.shape.norm != "none"

    @property
    def width(self) -> int:
        """Channels of the residual stream in memory."""
        return self.experts.width if self.attention is None else self.attention.width

    @property
    def is_decoder(self) -> bool:
        """Whether a call has tokens that continue a sequence, instead of a whole image."""
        return self.attention is not None and self.attention.shape.causal and not self.patch_width

    @property
    def patch_chunks(self) -> int:
        """Steps of ``lanes`` through all inputs of an embedding, padded to whole tiles."""
        tile = self.experts.hidden_tile
        return self.experts.shape.tokens * -(-self.patch_width // tile) * self.experts.hidden_in_chunks

    @property
    def patch_beats(self) -> int:
        return -(-self.patch_chunks * self.experts.lanes_in // BEAT_BYTES)

    def rows_of_last(self, tokens: int) -> int:
        """Rows that the head computes to get the logits of the last of ``tokens``: it starts reading at a beat, which
        may begin with earlier tokens."""
        row = self.width * RESULT_BITS // 8
        return (tokens - 1) % (BEAT_BYTES // math.gcd(BEAT_BYTES, row)) + 1

    def head_rows(self, calls: Sequence[int]) -> list[int]:
        """Rows that the head computes in each of the testbench's calls: those for the last token, but all in the second
        call."""
        return [tokens if place == 1 else self.rows_of_last(tokens) for place, tokens in enumerate(calls)]

    def of(self, layer: QuantizedBlock | QuantizedLinear) -> Design:
        """The kernel of experts as one layer uses it, with the layer's number of experts and of hidden units; these are
        a linear layer's inputs."""
        shape = self.experts.shape
        if isinstance(layer, QuantizedLinear):
            own = dataclasses.replace(shape, hidden=layer.inputs, experts=0, slots=0, shared=1)
        else:
            names = ("hidden", "experts", "slots", "shared")
            own = dataclasses.replace(shape, **{name: getattr(layer.shape, name) for name in names})
        return dataclasses.replace(self.experts, shape=own)

    def why_not(self) -> str | None:
        """The reason why the templates cannot be instantiated with these numbers; None if they can."""
        if (reason := self.experts.why_not()) is not None or self.attention is None:
            return reason
        if self.attention.width != self.experts.width:
            return f"kernels that pad tokens to {self.experts.width} and {self.attention.width} channels"
        return self.attention.why_not()


def experts_shape(plan: ModelPlan) -> BlockShape:
    """The shape of the kernel of experts: the largest size of any layer, and the properties that all layers share.

    Raises UnsupportedError where layers differ in properties that are wires, or need something that a shared design
    does not have.
    """
    blocks = [block for block in plan.blocks if isinstance(block, QuantizedBlock)]
    if not blocks:
        raise UnsupportedError(f"{plan.name}: has no layer of experts; expected at least one")
    shapes = [block.shape for block in blocks]
    routed = [shape for shape in shapes if shape.experts] or shapes
    for name in (*_SAME, *_SAME_OF_ROUTED):
        differing = (getattr(shape_of_layer, name) for shape_of_layer in (shapes if name in _SAME else routed))
        _only(f"layers of experts differ in {name}", differing)
    _only("layers differ in their normalisation", (layer.norm.kind for layer in plan.layers if layer.norm is not None))
    downs = [layer.down for layer in plan.layers if not isinstance(layer, QuantizedAttention)]
    _only("layers differ in the groups of their weights", (down.group for down in downs))
    if shapes[0].weight_bits != 8 and len(downs) > len(blocks):
        raise UnsupportedError("linear layers have int8 weights and layers of experts int4; expected one width")
    if routed[0].groups > 1:
        _only("layers of experts in groups differ in their number", (shape.experts for shape in routed))
    widths = experts_widths(plan)
    linear = [layer.inputs for layer in plan.layers if isinstance(layer, QuantizedLinear)]
    return dataclasses.replace(
        routed[0],
        tokens=plan.tokens,
        width=plan.width,
        hidden=max(*(shape.hidden for shape in shapes), *linear, 1),
        experts=max(1, *(shape.experts for shape in shapes)),
        slots=max(1, *(shape.slots for shape in shapes)),
        shared=max(1, *(shape.shared for shape in shapes)),
        up_sum_bits=widths.up_sum,
        down_sum_bits=widths.down_sum,
        up_total_bits=widths.up_total,
        down_total_bits=widths.down_total,
    )


def attention_shape(plan: ModelPlan) -> AttentionShape | None:
    """The shape of the kernel of attention, or None without such layers. Windows and sinks are data: layers without
    them get a window of all positions, and sinks that weigh nothing. Raises UnsupportedError where layers differ in
    their heads."""
    own_shapes = [layer.shape for layer in _attention(plan)]
    windowed, sinks = any(shape.windowed for shape in own_shapes), any(shape.sinks for shape in own_shapes)
    shapes = [dataclasses.replace(shape, tokens=plan.tokens, windowed=windowed, sinks=sinks) for shape in own_shapes]
    return _only("layers of attention differ in their heads", shapes) if shapes else None


@dataclasses.dataclass(frozen=True)
class Widths:
    """Bits of the widest sums of all layers of a kernel: of both products, of the totals of their groups, of logits,
    and of the product that makes latents."""

    up_sum: int
    down_sum: int
    up_total: int = 1
    down_total: int = 1
    logit: int = 1
    latent_sum: int = 1


def experts_widths(plan: ModelPlan) -> Widths:
    """The widths of the kernel of experts of a plan that has such layers."""
    blocks = [block for block in plan.blocks if isinstance(block, QuantizedBlock)]
    downs = [layer.down for layer in plan.layers if not isinstance(layer, QuantizedAttention)]
    return Widths(
        up_sum=max(block.up.sum_bits for block in blocks),
        up_total=max(block.up.total_bits for block in blocks),
        down_sum=max(down.sum_bits for down in downs),
        down_total=max(down.total_bits for down in downs),
        logit=max((block.logit_bits for block in blocks if block.shape.experts), default=1),
    )


def attention_widths(plan: ModelPlan) -> Widths | None:
    layers = _attention(plan)
    if not layers:
        return None
    return Widths(
        up_sum=max(layer.up.sum_bits for layer in layers),
        down_sum=max(layer.down.sum_bits for layer in layers),
        latent_sum=max((layer.latents.down.sum_bits for layer in layers if layer.latents), default=1),
    )


def patch_width(plan: ModelPlan) -> int:
    return 0 if plan.embedding is None else plan.embedding.inputs


def model_design(
    plan: ModelPlan,
    lanes: int,
    hidden_tile: int,
    router_lanes: int,
    attention_lanes: int | None = None,
    masters: tuple[int, int] = (1, 1),
) -> ModelDesign:
    """The design of a plan with arrays of ``lanes`` x ``lanes``, or ``attention_lanes`` in the kernel of attention.
    ``masters``: that bring the weights of experts, for each matrix.

    Raises UnsupportedError as :func:`experts_shape` and :func:`attention_shape` do.
    """
    attention = attention_shape(plan)
    return ModelDesign(
        Design(experts_shape(plan), lanes, lanes, hidden_tile, router_lanes, *masters, linear=True),
        None if attention is None else AttentionDesign(attention, attention_lanes or lanes, attention_lanes or lanes),
        len(plan.layers),
        patch_width(plan),
    )


def _attention(plan: ModelPlan) -> list[QuantizedAttention]:
    return [layer for layer in plan.layers if isinstance(layer, QuantizedAttention)]


def _only(problem: str, values: Iterable[T]) -> T:
    """The common value of all. Raises UnsupportedError where they differ."""
    items: Sequence[T] = list(values)
    if any(value != items[0] for value in items):
        raise UnsupportedError(
            f"{problem}: {', '.join(map(str, dict.fromkeys(items)))}; expected the same in all layers"
        )
    return items[0]
