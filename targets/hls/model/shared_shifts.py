"""One shift per role for all layers of a design, since shifts are wires.

With the shift of its own layer, a multiplier has 16 bits. The layer with the largest scales has the smallest shift, and
all layers of its kernel take that shift: their multipliers lose as many bits as their shifts shrink.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeVar

import numpy as np

from moec.targets.hls.attention.quantize import QuantizedAttention
from moec.targets.hls.design.projection import QuantizedProjection, shifted
from moec.targets.hls.model.plan import Layer, QuantizedLinear, kernel_of, shifts_of

_Layer = TypeVar("_Layer", bound=Layer)


def smallest_shifts(layers: Sequence[Layer]) -> dict[str, int]:
    """The smallest shift of any layer, by role."""
    smallest: dict[str, int] = {}
    for layer in layers:
        for role, shift in shifts_of(layer):
            smallest[role] = min(shift, smallest.get(role, shift))
    return smallest


def with_shifts(layer: _Layer, shifts: Mapping[str, int]) -> _Layer:
    """The layer with these shifts, by role; none is larger than the layer's own."""
    kernel = kernel_of(layer)
    common = {
        "norm": None if layer.norm is None else layer.norm.lowered(shifts[f"{kernel}norm"]),
        "down": _lowered(layer.down, shifts[f"{kernel}down"]),
    }
    if isinstance(layer, QuantizedLinear):
        return dataclasses.replace(layer, **common)
    common["up"] = _lowered(layer.up, shifts[f"{kernel}up"])
    if isinstance(layer, QuantizedAttention):
        score = layer.score.lowered(shifts["score"])
        mixed_one = int(shifted(np.array(layer.mixed_one), layer.mixed_shift - shifts["mixed"]))
        turns = layer.turns and layer.turns.lowered(shifts.get("heads", 0))
        latents = layer.latents and layer.latents.lowered(shifts["latents"], shifts["latent_norm"])
        return dataclasses.replace(
            layer, **common, score=score, mixed_one=mixed_one, mixed_shift=shifts["mixed"], turns=turns, latents=latents
        )
    score = layer.score.lowered(shifts["route"]) if layer.shape.experts else layer.score
    hidden = layer.hidden_multiplier.lowered(shifts["hidden"]) if layer.shape.gated else layer.hidden_multiplier
    return dataclasses.replace(layer, **common, score=score, hidden_multiplier=hidden)


def least_bits(layers: Sequence[Layer]) -> int:
    """The least bits of the largest multiplier of any layer and role; 16 where no bit is lost. Smaller multipliers do
    not matter, since their channels hardly count; neither do channels that are always 0."""
    return min(bits for layer in layers for bits in _bits_of(layer))


def _bits_of(layer: Layer) -> Iterator[int]:
    """The bits of the largest multiplier of each role of a layer."""
    if layer.norm is not None and layer.norm.multipliers.any():
        yield int(np.abs(layer.norm.multipliers).max()).bit_length()
    yield _bits(layer.down)
    if isinstance(layer, QuantizedLinear):
        return
    yield _bits(layer.up)
    if isinstance(layer, QuantizedAttention) and layer.turns is not None:
        for norm in (layer.turns.key_norm, layer.turns.query_norm):
            if norm is not None:
                yield int(np.abs(norm.multipliers).max()).bit_length()
    if isinstance(layer, QuantizedAttention) and layer.latents is not None:
        yield _bits(layer.latents.down)
        for norm in layer.latents.norms:
            yield int(np.abs(norm.multipliers).max()).bit_length()
    if isinstance(layer, QuantizedAttention) or layer.shape.experts:
        yield int(layer.score.values[0]).bit_length()
    if not isinstance(layer, QuantizedAttention) and layer.shape.gated:
        yield int(layer.hidden_multiplier.values[0]).bit_length()


def _bits(projection: QuantizedProjection) -> int:
    used = (projection.weights != 0).any(axis=2) | (projection.biases != 0)
    values = projection.multipliers.values[used]
    return int(np.abs(values).max()).bit_length() if values.size else 16


def _lowered(projection: QuantizedProjection, shift: int) -> QuantizedProjection:
    return dataclasses.replace(projection, multipliers=projection.multipliers.lowered(shift))
