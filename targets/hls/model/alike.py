"""Layers that ask for different hardware, said in terms of hardware that all of a design can share.

The kernel of experts has one kind of unit, one width of weights, one size of groups. What a layer asks for less than
another is a special case of that: a unit that is not gated has a gate and an up that is constant, a multiplier of a
channel is one of each of its groups, a router without biases on the choice has zeros. A unit stays what it was, bit
for bit. Where a channel had a multiplier, groups are rounded one by one; and a router that adds a bias compares
sigmoids, of which more are equal than of logits.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from moec.targets.hls.attention.quantize import QuantizedAttention
from moec.targets.hls.model.plan import Layer, QuantizedLinear
from moec.targets.hls.moe.design import FRACTION_BITS
from moec.targets.hls.moe.projection import Multipliers, QuantizedProjection, in_totals
from moec.targets.hls.moe.quantize import QuantizedBlock

Array = np.ndarray[Any, Any]

_UP, _ACTIVATION = 1 << 8, 1 << 7
"""A constant up, in steps; what the table of an activation of int8 is multiplied with."""
_WIDER = 4
"""Bits between int4 and int8."""
_UNIT = Multipliers(np.array([1 << 15]), 30)
"""Makes of a hidden unit times both what it was."""


def made_alike(layers: Sequence[Layer]) -> list[Layer]:
    """Those of experts and linear ones; layers of attention have a kernel of their own."""
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
    """What was activated is the gate; up has weights of zero and a constant added."""
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
    """Int4 as int8, 16 times as large, so that multipliers are about those of other layers, whose shift they share."""
    found = projection.multipliers
    return dataclasses.replace(
        projection,
        weights=projection.weights << _WIDER,
        biases=projection.biases if projection.group else projection.biases << _WIDER,
        multipliers=dataclasses.replace(found, shift=found.shift + _WIDER),
    )


def _in_groups(projection: QuantizedProjection, group: int) -> QuantizedProjection:
    """With multipliers of smaller groups, several of which have the same."""
    if projection.group == group:
        return projection
    inputs, found = projection.weights.shape[2], projection.multipliers
    copies = projection.group // group if projection.group else -(-inputs // group)
    if projection.group:
        values = np.repeat(found.values, copies, axis=2)[..., : -(-inputs // group)]
        return dataclasses.replace(projection, multipliers=dataclasses.replace(found, values=values), group=group)
    scales = found.values * 2.0 ** (FRACTION_BITS - found.shift)
    multipliers = Multipliers.of(np.repeat(scales[..., None], copies, axis=2), signed=True)
    return QuantizedProjection(projection.weights, in_totals(projection.biases * scales), multipliers, group)
