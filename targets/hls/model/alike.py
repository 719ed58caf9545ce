"""Conversion of layers that need different hardware to layers that share one design.

The kernel of experts has one kind of hidden unit, one width of weights, and one size of groups. A simpler layer becomes
a special case: a unit that is not gated gets a constant up, a channel's multiplier becomes that of each of its groups,
and a router without biases of the choice gets zeros. Hidden units stay the same, bit for bit. Two results may change:
groups are rounded one by one where a channel had one multiplier, and a router with a bias compares sigmoids, which are
equal more often than logits.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from moec.targets.hls.attention.quantize import QuantizedAttention
from moec.targets.hls.design.numbers import FRACTION_BITS
from moec.targets.hls.design.projection import Multipliers, QuantizedProjection, in_totals
from moec.targets.hls.model.plan import Layer, QuantizedLinear
from moec.targets.hls.moe.quantize import QuantizedBlock

Array = np.ndarray[Any, Any]

_UP, _ACTIVATION = 1 << 8, 1 << 7
"""The constant up, in steps, and the factor of the table of an int8 activation, when a unit becomes gated."""
_WIDER = 4
"""The difference in bits between int8 and int4."""
_UNIT = Multipliers(np.array([1 << 15]), 30)
"""The multiplier that divides by both of these factors."""


def made_alike(layers: Sequence[Layer]) -> list[Layer]:
    """The layers with those of experts and linear ones converted to common hardware. Layers of attention stay, since
    they have a kernel of their own."""
    blocks = [layer for layer in layers if isinstance(layer, QuantizedBlock)]
    are_linear = any(isinstance(layer, QuantizedLinear) for layer in layers)  # in int8
    groups = [block.shape.group for block in blocks if block.shape.group]
    group = math.gcd(*groups) if groups else 0
    shared: dict[str, Any] = {
        "gated": any(block.shape.gated for block in blocks),
        "weight_bits": 8 if are_linear else max((block.shape.weight_bits for block in blocks), default=8),
        "group": group,
    }
    is_biased = any(block.shape.biased_choice for block in blocks)

    def alike(layer: Layer) -> Layer:
        if isinstance(layer, QuantizedAttention):
            return layer
        if isinstance(layer, QuantizedBlock) and layer.shape.weight_bits < shared["weight_bits"]:
            layer = dataclasses.replace(layer, up=_widened(layer.up), down=_widened(layer.down))
        layer = dataclasses.replace(layer, down=_in_groups(layer.down, group))
        if isinstance(layer, QuantizedLinear):
            return layer
        layer = dataclasses.replace(layer, up=_in_groups(layer.up, group))
        if shared["gated"] and not layer.shape.gated:
            layer = _gated(layer)
        if is_biased and layer.choice_bias is None:
            layer = dataclasses.replace(layer, choice_bias=np.zeros(layer.shape.experts, np.int64))
        return dataclasses.replace(layer, shape=dataclasses.replace(layer.shape, **shared, biased_choice=is_biased))

    return [alike(layer) for layer in layers]


def _gated(block: QuantizedBlock) -> QuantizedBlock:
    """The block with gated units: its first product becomes the gate, and up has zero weights and a constant offset."""
    up = block.up
    nothing = np.zeros_like(up.weights)
    weights = np.stack([up.weights, nothing], axis=2).reshape(len(nothing), -1, nothing.shape[2])
    biases = np.stack([up.biases, np.zeros_like(up.biases)], axis=2).reshape(len(nothing), -1)
    multipliers = dataclasses.replace(up.multipliers, values=np.repeat(up.multipliers.values, 2, axis=1))
    return dataclasses.replace(
        block,
        up=dataclasses.replace(up, weights=weights, biases=biases, multipliers=multipliers),
        activation=block.activation * _ACTIVATION,
        hidden_multiplier=_UNIT,
        up_offset=_UP,
        up_limit=127,
    )


def _widened(projection: QuantizedProjection) -> QuantizedProjection:
    """The int4 weights as int8, times 16, so that multipliers are about as large as those of other layers, whose shift
    they share."""
    multipliers = projection.multipliers
    return dataclasses.replace(
        projection,
        weights=projection.weights << _WIDER,
        biases=projection.biases if projection.group else projection.biases << _WIDER,
        multipliers=dataclasses.replace(multipliers, shift=multipliers.shift + _WIDER),
    )


def _in_groups(projection: QuantizedProjection, group: int) -> QuantizedProjection:
    """The projection with smaller groups, several of which have the same multiplier."""
    if projection.group == group:
        return projection
    inputs, own = projection.weights.shape[2], projection.multipliers
    copies = projection.group // group if projection.group else -(-inputs // group)
    if projection.group:
        values = np.repeat(own.values, copies, axis=2)[..., : -(-inputs // group)]
        return dataclasses.replace(projection, multipliers=dataclasses.replace(own, values=values), group=group)
    scales = own.values * 2.0 ** (FRACTION_BITS - own.shift)
    multipliers = Multipliers.of(np.repeat(scales[..., None], copies, axis=2), signed=True)
    return QuantizedProjection(projection.weights, in_totals(projection.biases * scales), multipliers, group)
