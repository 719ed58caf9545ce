"""Random layers and their projects."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from moec.ir.dialect import ExpertsSpec, RouteSpec
from moec.targets.hls.design.experts import Design
from moec.targets.hls.hardware.calibration import UNCORRECTED, Calibration
from moec.targets.hls.hardware.cycles import count_cycles
from moec.targets.hls.hardware.parts import FpgaPart
from moec.targets.hls.hardware.ports import connect, masters_of
from moec.targets.hls.model.design import ModelDesign
from moec.targets.hls.model.plan import block_plan
from moec.targets.hls.model.project import model_files
from moec.targets.hls.moe.exploration import MoeEstimate, assembled
from moec.targets.hls.moe.float_block import FloatBlock
from moec.targets.hls.moe.quantize import QuantizedBlock, quantize
from moec.targets.hls.moe.stored_steps import StoredSteps

Array = np.ndarray[Any, Any]

DEVICE = "xczu9eg-ffvb1156-2-e"


def float_block(
    routing: RouteSpec,
    experts: ExpertsSpec,
    count: int = 5,
    width: int = 40,
    hidden: int = 48,
    *,
    shared: int = 0,
    biased_choice: bool = False,
    seed: int = 0,
) -> FloatBlock:
    random, routed = np.random.default_rng(seed), count
    count += shared

    def normal(*shape: int, scale: float) -> Array:
        return random.normal(0, scale, shape).astype(np.float32)

    up, gate = (normal(count, hidden, width, scale=width**-0.5) for _ in range(2))
    up_bias, gate_bias = (normal(count, hidden, scale=0.1) for _ in range(2))
    return FloatBlock(
        "layer",
        routing,
        experts,
        router=normal(routed, width, scale=1.5 * width**-0.5),
        router_bias=normal(routed, scale=0.1),
        correction_bias=normal(routed, scale=0.1) if biased_choice else None,
        up=up,
        up_bias=up_bias,
        gate=gate if experts.gated else None,
        gate_bias=gate_bias if experts.gated else None,
        down=normal(count, width, hidden, scale=hidden**-0.5),
        down_bias=normal(count, width, scale=0.1),
        shared=shared,
    )


def in_groups(block: FloatBlock, bits: Literal[4, 8], group: int, floats: Sequence[int] = ()) -> FloatBlock:
    """The block with weights that are multiples of ``bits`` integers, except those of the experts ``floats``. ``group``
    inputs share a scale; 0: all inputs. In groups the weight of largest magnitude becomes the most negative integer,
    whatever its sign, as the pass quantize-experts rounds to int4."""
    rounded, steps = {}, {}
    for part in ("gate", "up", "down"):
        weights = getattr(block, part)
        if weights is None:
            continue
        size = group or weights.shape[2]
        starts = np.arange(0, weights.shape[2], size)
        most, least = np.maximum.reduceat(weights, starts, axis=2), np.minimum.reduceat(weights, starts, axis=2)
        if group:
            steps[part] = np.where(most > -least, most, least) / -(1 << (bits - 1))
        else:
            steps[part] = np.maximum(most, -least) / ((1 << (bits - 1)) - 1)
        of_input = np.repeat(steps[part], size, axis=2)[..., : weights.shape[2]]
        integers = np.round(weights / np.where(of_input == 0, 1, of_input))
        rounded[part] = np.minimum(integers, (1 << (bits - 1)) - 1).astype(np.float32) * of_input
        for expert in floats:
            rounded[part][expert], steps[part][expert] = weights[expert], 0
    return dataclasses.replace(block, **rounded, stored=StoredSteps(bits, group, not floats, steps))


def tokens_for(block: FloatBlock, count: int, seed: int = 1) -> Array:
    return np.random.default_rng(seed).normal(0, 1, (count, block.width)).astype(np.float32)


def quantized(block: FloatBlock, *, most_tokens: int = 16, weight_bits: int = 8) -> QuantizedBlock:
    return quantize(block, tokens_for(block, 64), most_tokens=most_tokens, weight_bits=weight_bits)


def project(block: QuantizedBlock, steps: Array, **design: Any) -> dict[str, bytes]:
    """The project of a block for tokens int8 [T, d]. ``design``: fields of :class:`Design`."""
    built = ModelDesign(Design(block.shape, **design))
    return model_files(built, block_plan("layer", block), steps, device=DEVICE, clock=300)


def estimated(
    design: Design,
    part: FpgaPart,
    loads: Sequence[int],
    clock_megahertz: float | None = None,
    memory_share: float = 1.0,
    calibration: Calibration = UNCORRECTED,
) -> MoeEstimate:
    """The estimate of a design. ``loads``: tokens of each expert in a call, shared ones last."""
    clock = clock_megahertz or part.clock_megahertz
    ports = connect(part, masters_of(design), clock, memory_share)
    cycles = count_cycles(design, loads, ports.loaders, calibration.stages)
    return assembled(design, part, clock, ports, cycles, calibration)
