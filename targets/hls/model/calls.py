"""Cycles of single calls of a decoder: those of its testbench, and of the last token that its caches have room for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from moec.targets.hls.attention.packing import calls_of
from moec.targets.hls.model.estimate import Loads, ModelCycles, ModelEstimate, layer_cycles, loads_of_calls
from moec.targets.hls.model.plan import ModelPlan, QuantizedLinear
from moec.targets.hls.moe.quantize import QuantizedBlock

Array = np.ndarray[Any, Any]


def call_cycles(
    estimate: ModelEstimate, plan: ModelPlan, loads: Loads, tokens: int, past: int, logits: int
) -> ModelCycles:
    """The cycles of a call with ``tokens`` tokens after ``past`` others. ``loads``: of its experts, by layer;
    ``logits``: rows that heads compute."""
    ports, stages, design = estimate.ports, estimate.calibration.stages, estimate.design
    rows = [logits if isinstance(layer, QuantizedLinear) else tokens for layer in plan.layers]
    layers = zip(plan.layers, loads, rows, strict=True)
    return ModelCycles(
        tuple(
            layer_cycles(design, plan, layer, layer_loads, ports, stages, count, past)
            for layer, layer_loads, count in layers
        )
    )


def reported_calls(estimate: ModelEstimate, plan: ModelPlan, steps: Array) -> dict[str, Any]:
    """Entries for the report of a decoder whose testbench runs the sequence ``steps``: the ``calls`` of the testbench
    and, with a cache, the ``last_token``. Empty for other models."""
    attention = estimate.design.attention
    if attention is None or not estimate.design.is_decoder:
        return {}
    calls = calls_of(attention.shape, len(steps))
    pasts = np.cumsum([0, *calls[:-1]]).tolist()
    loads = loads_of_calls(plan, steps[: sum(calls)], calls)
    entries = [
        {
            "tokens": tokens,
            "past": past,
            "logits": logits if plan.heads else 0,
            "cycles": call_cycles(estimate, plan, of_call, tokens, past, logits).total,
        }
        for tokens, past, of_call, logits in zip(calls, pasts, loads, estimate.design.head_rows(calls), strict=True)
    ]
    if not attention.shape.cached:
        return {"calls": entries}
    return {
        "calls": entries,
        "last_token": {"past": attention.shape.cached - 1, **estimate.call(token_cycles(estimate, plan))},
    }


def token_cycles(estimate: ModelEstimate, plan: ModelPlan) -> ModelCycles:
    """The cycles of the last token that the caches of a decoder have room for."""
    assert estimate.design.attention is not None
    return call_cycles(estimate, plan, _of_one_token(plan), 1, estimate.design.attention.shape.cached - 1, 1)


def _of_one_token(plan: ModelPlan) -> Loads:
    loads: list[Sequence[int]] = []
    for layer in plan.layers:
        if isinstance(layer, QuantizedBlock):
            shape = layer.shape
            loads.append([1] * shape.slots + [0] * (shape.experts - shape.slots) + [1] * shape.shared)
        else:
            loads.append([])
    return loads
