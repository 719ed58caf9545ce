"""A vision transformer in integers, from the patches of an image to logits: what one design computes layer by layer.

All layers pass one residual stream on, int16 [T, d] with one scale. What is wires in hardware is one for all layers of
a plan: each shift by its role, the kind of normalisation, whether experts are gated, how routers score.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np

from moec.targets.hls.attention.quantize import QuantizedAttention
from moec.targets.hls.moe.projection import QuantizedProjection
from moec.targets.hls.moe.quantize import GATE_ONE, QuantizedBlock, rounded
from moec.targets.hls.normalization import QuantizedNorm

Array = np.ndarray[Any, Any]
Pool = Literal["none", "first", "mean"]


@dataclasses.dataclass(frozen=True)
class QuantizedLinear:
    """A dense product of every token, or of all of them together: the patch embedding, and the head.

    ``down`` [1, out, in], of which ``out`` is the stream's width for an embedding, and at most that for a head. Inputs
    are the residual stream through ``norm``, or, where that is None, int8 [T, in] from memory. Results are int16:
    saturated first as results of an expert are, then times ``gate`` (2^16 for 1), summed, rounded, saturated again.

    ``pool`` says what is summed: "none" keeps the tokens apart, "first" computes the first alone, with gate 1, "mean"
    adds all tokens into one row, with the gate 1/T. ``positions`` int16 [T, out] are added to the sums, in the place
    of a residual; None adds nothing. A step of an input stands for ``input_scale``, of a result for ``output_scale``.
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
    """How the host makes rows int8 [T, in] of one image: it takes elements and rounds them.

    ``places`` int32 [T, in] are elements of the image, flattened in C order; -1 is a zero (all of a class token's row).
    An element x becomes ``(x - offset) / scale``, rounded half to even and saturated. ``shape``: of one image.
    """

    shape: tuple[int, ...]
    places: Array
    scale: float
    offset: float

    def of(self, image: Array) -> Array:
        """Image [*shape] → int8 [T, in]."""
        steps = np.clip(np.round((image.reshape(-1) - self.offset) / self.scale), -128, 127)
        return np.where(self.places >= 0, steps[self.places], 0).astype(np.int8)


@dataclasses.dataclass(frozen=True)
class Shifts:
    """One shift by role for all layers; None where no layer has the role. ``norm``: of normalisations; ``up`` and
    ``down``: of both products' multipliers; ``hidden``: of gated hidden units; ``route``: from logits of routers to
    places in a table. Attention, whose kernel is another, has its own of the first three; ``score``: from scores of
    attention to places in a table; ``mixed``: of what heads attend to; ``heads``: of normalised keys and queries;
    ``latents`` and ``latent_norm``: of the product of latents, and of what normalises them."""

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
    """``embedding`` → ``blocks`` in order → ``heads``, each of which reads the last block's output.

    Without an embedding the input is the stream itself; ``patches`` is None, too. Without heads the stream is the
    output. Several heads have the classes of one product in order, as many as the stream is wide in each but the last.
    A dense feed-forward layer is a block with 0 routed experts, 0 slots and 1 shared expert, whose gate is 1.
    ``tokens`` T are those of one image, the class token included; ``width`` d. All blocks normalise.
    ``token_rows`` int16 [V, d]: of a decoder whose stream has these rows, by id.
    """

    name: str
    tokens: int
    width: int
    stream_scale: float
    patches: Patches | None
    embedding: QuantizedLinear | None
    blocks: tuple[QuantizedBlock | QuantizedAttention, ...]
    heads: tuple[QuantizedLinear, ...]
    token_rows: Array | None = None

    @property
    def layers(self) -> tuple[Layer, ...]:
        """All, in the order of the computation."""
        return (*([] if self.embedding is None else [self.embedding]), *self.blocks, *self.heads)

    @property
    def classes(self) -> int:
        """Channels of an output's row: logits, or the width of the stream where there is no head."""
        return sum(head.outputs for head in self.heads) if self.heads else self.width

    @property
    def output_rows(self) -> int:
        return 1 if self.heads and self.heads[0].pool != "none" else self.tokens

    @property
    def output_scale(self) -> float:
        """What a step of an output stands for."""
        return self.heads[0].output_scale if self.heads else self.stream_scale

    @property
    def shifts(self) -> Shifts:
        """Raises ValueError where layers have different ones in one role."""
        found: dict[str, set[int]] = {}
        for layer in self.layers:
            for role, shift in shifts_of(layer):
                found.setdefault(role, set()).add(shift)
        mixed = {role: sorted(shifts) for role, shifts in found.items() if len(shifts) > 1}
        if mixed:
            raise ValueError(f"layers of one design have different shifts: {mixed}")
        return Shifts(**{role: shifts.pop() for role, shifts in found.items()})

    def input_steps(self, image: Array) -> Array:
        """What memory holds of one image [*shape]: patches int8 [T, in], or, without an embedding, the stream int16
        [T, d]."""
        if self.patches is not None:
            return self.patches.of(image)
        return stream_steps(image.reshape(-1, self.width), self.stream_scale)


def stream_steps(rows: Array, scale: float) -> Array:
    """Rows [..., d] of the residual stream → int16, in steps of ``scale``."""
    return rounded(rows, scale, 16).astype(np.int16)


def kernel_of(layer: Layer) -> str:
    """What roles that both kernels have begin with."""
    return "attention_" if isinstance(layer, QuantizedAttention) else ""


def shifts_of(layer: Layer) -> Iterator[tuple[str, int]]:
    """Roles, as :class:`Shifts` has them, and the layer's shifts."""
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
