"""The integer reference of a whole model in numpy: bit for bit the results of the generated hardware."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from moec.targets.hls.attention import reference as attention_reference
from moec.targets.hls.attention.quantize import QuantizedAttention
from moec.targets.hls.design.projection import saturated, shifted
from moec.targets.hls.model.plan import Layer, ModelPlan, QuantizedLinear
from moec.targets.hls.moe import reference as moe_reference
from moec.targets.hls.moe.reference import projected

Array = np.ndarray[Any, Any]


@dataclasses.dataclass(frozen=True)
class ModelResults:
    """Results for one image: the ``streams`` int16 [T, d] after the embedding and after each block, and the ``output``
    int16 [1 or T, classes]."""

    streams: tuple[Array, ...]
    output: Array


def run(plan: ModelPlan, steps: Array) -> ModelResults:
    """Run all layers on the input of one image, from :meth:`ModelPlan.input_steps`."""
    streams: list[Array] = []
    stream = steps
    for layer in (*([] if plan.embedding is None else [plan.embedding]), *plan.blocks):
        stream = run_layer(layer, stream)
        streams.append(stream)
    if not plan.heads:
        return ModelResults(tuple(streams), stream)
    return ModelResults(tuple(streams), np.concatenate([run_layer(head, stream) for head in plan.heads], axis=1))


def run_layer(layer: Layer, rows: Array) -> Array:
    """Run a layer on int16 [T, d], or an embedding on int8 [T, in]. Returns int16 [T, out], or one row if it pools."""
    if isinstance(layer, QuantizedLinear):
        return run_linear(layer, rows)
    if isinstance(layer, QuantizedAttention):
        return attention_reference.run(layer, rows).output
    return moe_reference.run(layer, rows).output


def run_linear(layer: QuantizedLinear, rows: Array) -> Array:
    """Run a linear layer, as defined by :class:`QuantizedLinear`."""
    if layer.pool == "first":
        rows = rows[:1]
    inputs = rows.astype(np.int64) if layer.norm is None else layer.norm.run(rows)
    weighed = projected(inputs, layer.down, 0, 16) * layer.gate
    if layer.pool == "mean":
        weighed = weighed.sum(axis=0, keepdims=True)
    results = saturated(shifted(weighed, 16), 16)
    if layer.positions is not None:
        results = saturated(results + layer.positions, 16)
    return results.astype(np.int16)
