"""The plan of a whole model in integers, from the patches of an image, or embedded tokens, to logits: the layers that
one design computes one after the other.

All layers share one residual stream, int16 [T, d] with one scale. They also share all that is wires in hardware: each
shift by its role, the kind of normalisation, whether experts are gated, the scoring of routers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np

from moec.targets.hls.attention.quantize import QuantizedAttention
from moec.targets.hls.design.normalization import QuantizedNorm
from moec.targets.hls.design.projection import QuantizedProjection
from moec.targets.hls.moe.quantize import GATE_ONE, QuantizedBlock, rounded

Array = np.ndarray[Any, Any]
Pool = Literal["none", "first", "mean"]


@dataclasses.dataclass(frozen=True)
class QuantizedLinear:
    """A dense product of every token, or of all tokens together: the patch embedding, or the head.

    - ``down`` [1, out, in]: ``out`` is the stream's width for an embedding, and at most that for a head.
    - ``norm``: of the inputs, which are the residual stream; None for inputs int8 [T, in] from memory.
    - ``gate`` (2^16 for 1): multiplies results after they are saturated to int16 as those of an expert; the products
      are summed, rounded and saturated again.
    - ``pool``: "none" keeps tokens apart; "first" computes the first token alone, with gate 1; "mean" sums all tokens
      into one row, with gate 1/T.
    - ``positions`` int16 [T, out]: added in place of a residual, or None.
    - ``input_scale``, ``output_scale``: of inputs and results.
    """

    down: QuantizedProjection
    input_scale: float
    output_scale: float
    norm: QuantizedNorm | None = None
    pool: Pool = "none"
    gate: int = GATE_ONE
    positions: Array | None = None

    @property
    def outputs(self) -> int:
        return int(self.down.weights.shape[1])

    @property
    def inputs(self) -> int:
        return int(self.down.weights.shape[2])


Layer = QuantizedBlock | QuantizedAttention | QuantizedLinear


@dataclasses.dataclass(frozen=True)
class Patches:
    """The conversion of an image [*shape] to rows int8 [T, in] of patches, which the host computes.

    ``places`` int32 [T, in] are indices into the image, flattened in C order; -1 is a zero (all of a class token's
    row). An element x becomes ``(x - offset) / scale``, rounded half to even and saturated.
    """

    shape: tuple[int, ...]
    places: Array
    scale: float
    offset: float

    def of(self, image: Array) -> Array:
        """The patches int8 [T, in] of an image [*shape]."""
        steps = np.clip(np.round((image.reshape(-1) - self.offset) / self.scale), -128, 127)
        return np.where(self.places >= 0, steps[self.places], 0).astype(np.int8)


@dataclasses.dataclass(frozen=True)
class Shifts:
    """The shift of each role, the same for all layers; None where no layer has the role.

    ``norm``: of normalisations; ``up`` and ``down``: of the products' multipliers; ``attention_*``: the same in the
    kernel of attention. ``hidden``: of gated hidden units; ``route``: from logits of routers to indices of a table;
    ``score``: from scores of attention to indices of a table; ``mixed``: of weighted values; ``heads``: of normalised
    keys and queries; ``latents``, ``latent_norm``: of the product of latents and their norms.
    """

    norm: int | None = None
    up: int | None = None
    down: int | None = None
    attention_norm: int | None = None
    attention_up: int | None = None
    attention_down: int | None = None
    hidden: int | None = None
    route: int | None = None
    score: int | None = None
    mixed: int | None = None
    heads: int | None = None
    latents: int | None = None
    latent_norm: int | None = None


@dataclasses.dataclass(frozen=True)
class ModelPlan:
    """The layers of a model: ``embedding``, then ``blocks`` in order, then ``heads``, each of which reads the last
    block's output. All blocks normalise their tokens, except one that is a model of its own.

    - ``tokens`` T: of one image, including the class token, or the most of a call; ``width`` d: of the stream.
    - ``stream_scale``: of the stream, or of the int8 tokens of a block that does not normalise them.
    - ``patches`` and ``embedding``: both None if the input is the stream itself.
    - ``blocks``: a dense feed-forward layer is one with no routed experts, no slots and 1 shared expert with gate 1.
    - ``heads``: the classes of one product in order, ``width`` of them in each head except the last. Without heads the
      stream is the output.
    - ``token_rows`` int16 [V, d]: for a decoder, the stream's rows by token id, or None.
    """

    name: str
    tokens: int
    width: int
    stream_scale: float
    patches: Patches | None
    embedding: QuantizedLinear | None
    blocks: tuple[QuantizedBlock | QuantizedAttention, ...]
    heads: tuple[QuantizedLinear, ...] = ()
    token_rows: Array | None = None

    @property
    def layers(self) -> tuple[Layer, ...]:
        """All layers, in the order of computation."""
        return (*([] if self.embedding is None else [self.embedding]), *self.blocks, *self.heads)

    @property
    def classes(self) -> int:
        """Channels of an output's row: the logits, or the width of the stream without a head."""
        return sum(head.outputs for head in self.heads) if self.heads else self.width

    @property
    def output_rows(self) -> int:
        return 1 if self.heads and self.heads[0].pool != "none" else self.tokens

    @property
    def output_scale(self) -> float:
        """The scale of the output."""
        return self.heads[0].output_scale if self.heads else self.blocks[-1].output_scale

    @property
    def shifts(self) -> Shifts:
        """The common shifts of all layers. Raises ValueError where layers differ in the shift of a role."""
        by_role: dict[str, set[int]] = {}
        for layer in self.layers:
            for role, shift in shifts_of(layer):
                by_role.setdefault(role, set()).add(shift)
        mixed = {role: sorted(shifts) for role, shifts in by_role.items() if len(shifts) > 1}
        if mixed:
            raise ValueError(f"layers of one design have different shifts: {mixed}")
        return Shifts(**{role: shifts.pop() for role, shifts in by_role.items()})

    def input_steps(self, image: Array) -> Array:
        """The input in memory for one image [*shape]: patches int8 [T, in], or, without an embedding, the stream int16
        [T, d]."""
        if self.patches is not None:
            return self.patches.of(image)
        return stream_steps(image.reshape(-1, self.width), self.stream_scale)


def block_plan(name: str, layer: QuantizedBlock | QuantizedAttention) -> ModelPlan:
    """A block as a model of one layer."""
    return ModelPlan(name, layer.shape.tokens, layer.shape.width, layer.token_scale, None, None, (layer,))


def stream_steps(rows: Array, scale: float) -> Array:
    """Rows [..., d] of the residual stream as int16 with ``scale``."""
    return rounded(rows, scale, 16).astype(np.int16)


def kernel_of(layer: Layer) -> str:
    """The prefix of a layer's roles in :class:`Shifts`, for roles that both kernels have."""
    return "attention_" if isinstance(layer, QuantizedAttention) else ""


def shifts_of(layer: Layer) -> Iterator[tuple[str, int]]:
    """The roles of a layer, as named in :class:`Shifts`, with its shifts."""
    kernel = kernel_of(layer)
    if layer.norm is not None:
        yield f"{kernel}norm", layer.norm.shift
    yield f"{kernel}down", layer.down.multipliers.shift
    if isinstance(layer, QuantizedLinear):
        return
    yield f"{kernel}up", layer.up.multipliers.shift
    if isinstance(layer, QuantizedAttention):
        yield "score", layer.score.shift
        yield "mixed", layer.mixed_shift
        if layer.turns is not None and layer.turns.key_norm is not None:
            yield "heads", layer.turns.key_norm.shift
        if layer.latents is not None:
            yield "latents", layer.latents.down.multipliers.shift
            yield "latent_norm", layer.latents.key_norm.shift
        return
    if layer.shape.gated:
        yield "hidden", layer.hidden_multiplier.shift
    if layer.shape.experts:
        yield "route", layer.score.shift
