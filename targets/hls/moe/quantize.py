"""Quantisation of a float MoE block: scales from calibration data, and all constants of the hardware.

Activations are int8 with one scale per tensor. Weights are int8 or int4 with one scale per output channel, or per group
of inputs if they are stored so. The router's weights and the results are int16. The scale of an activation is the best
of a few candidates on the calibration data: a smaller one clips rare large values, a larger one rounds all others more.
Scaling is by an integer multiplier of 16 bits and a shift, one shift per product, so that shifts are wires. Functions
of one number are tables.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from moec.common.errors import UnsupportedError
from moec.ir import semantics
from moec.targets.hls.design.experts import BlockShape, Scoring
from moec.targets.hls.design.normalization import QuantizedNorm, quantize_norm, stream_scale_for
from moec.targets.hls.design.projection import Multipliers, QuantizedProjection, project
from moec.targets.hls.moe.float_block import FloatBlock, FloatResults

Array = np.ndarray[Any, Any]

POWER_ENTRIES, SIGMOID_ENTRIES = 1024, 2048
SIGMOID_RANGE = 16.0
"""The sigmoid is constant beyond this, where it is 1.1e-7 from its limit."""
TERM_ONE, GATE_ONE = 1 << 17, 1 << 16
"""The integers that stand for 1 in the terms of a softmax, and in a gate."""
_CLIPPING = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5)
"""Candidates for the largest number of a scale, as parts of the largest one in the data."""
_HEADROOM = 1.25
"""The factor by which results may exceed those of the calibration data before they saturate."""
_MOST_ROUTER_BIAS = 1 << 30
"""The largest bias, in steps of the sums that it is added to."""
_MOST_CHOICE_BIAS = 1 << 14
_LOGIT_OF_NOTHING = 2.0**-24
"""The scale of the logits of a router without weights: small, since other layers may share the shift after it."""
_MOST_OFFSET = 384
"""The largest offset of the up projection, in its quantisation steps, with which the sum fits into 10 bits."""


@dataclasses.dataclass(frozen=True)
class QuantizedBlock:
    """A MoE block in integers: the scales of its tensors, and the constants that the hardware holds.

    - ``router`` int16 [E, d], ``router_bias`` int32 [E], ``choice_bias`` [E] in steps of 2^-17 or None.
    - ``up``: the first product, [E, 2 f, d] with rows of gate and up by turns if gated, else [E, f, d].
    - ``activation``: the table over int8, from -128 on; int16 if gated, else int8.
    - ``hidden_multiplier``: scales activated gate times up to int8.
    - ``up_offset`` and ``up_limit``: in steps of up.
    - ``shared_gate``: the gate of shared experts, where 2^16 stands for the scale of the routing.
    - ``score``: from logits to indices of the table of powers (softmax) or of the sigmoid; meaningless without routing.
    """

    shape: BlockShape
    input_scale: float
    logit_scale: float
    gate_scale: float
    up_scale: float
    hidden_scale: float
    result_scale: float
    output_scale: float
    router: Array
    router_bias: Array
    choice_bias: Array | None
    up: QuantizedProjection
    down: QuantizedProjection
    activation: Array
    hidden_multiplier: Multipliers
    up_offset: int
    up_limit: int
    shared_gate: int
    score: Multipliers
    norm: QuantizedNorm | None = None

    @property
    def token_scale(self) -> float:
        """The scale of tokens in memory: of the residual stream if they are normalised, else of the int8 inputs."""
        return self.input_scale if self.norm is None else self.norm.stream_scale

    @property
    def logit_bits(self) -> int:
        """Bits of a logit in the channel, in which the biases of the choice are sent first."""
        largest = np.abs(self.router.astype(np.int64)).sum(axis=1) * 128 + np.abs(self.router_bias)
        moved = 0 if self.choice_bias is None else np.abs(self.choice_bias)
        return int(np.maximum(largest, moved).max(initial=0)).bit_length() + 1

    def quantized(self, tokens: Array) -> Array:
        """Tokens [T, d] as memory holds them: int8, or int16 if they are normalised. Rounds half to even."""
        return rounded(tokens, self.token_scale, 8 if self.norm is None else 16)


def quantize(
    block: FloatBlock, tokens: Array, *, most_tokens: int, weight_bits: int = 8, stream_scale: float | None = None
) -> QuantizedBlock:
    """Quantise a block, calibrated with ``tokens`` [N, d]. ``stream_scale``: of the residual stream, if the blocks on
    it share one.

    Raises UnsupportedError for a block that the templates cannot compute, and for calibration data that is empty or not
    finite.
    """
    shape = shape_of(block, most_tokens, weight_bits)
    _check_finite(block, tokens)
    seen = block.run(tokens)
    input_scale = scale_for(seen.inputs, 8)
    router_scale = _router_scale(block, input_scale)
    logit_scale = input_scale * router_scale
    gate_scale = scale_for(seen.up if seen.gate is None else seen.gate, 8)
    offset = block.experts.up_offset
    up_scale = max(scale_for(seen.up, 8), abs(offset) / _MOST_OFFSET)
    activation, activation_scale = _activation_table(block, gate_scale)
    hidden_scale = scale_for(seen.hidden, 8) if block.gate is not None else activation_scale
    result_scale = _result_scale(seen, block.routing.scale)
    norm = None
    if block.norm is not None:
        stream_scale = stream_scale or stream_scale_for(tokens, seen.output, seen.results * block.routing.scale)
        result_scale = stream_scale / block.routing.scale
        norm = quantize_norm(block.name, block.norm, stream_scale, input_scale)
    limit = block.experts.limit
    return QuantizedBlock(
        shape=shape,
        input_scale=input_scale,
        logit_scale=logit_scale,
        gate_scale=gate_scale,
        up_scale=up_scale,
        hidden_scale=hidden_scale,
        result_scale=result_scale,
        output_scale=result_scale * block.routing.scale,
        router=np.round(block.router / router_scale).astype(np.int16),
        router_bias=np.round(block.router_bias / logit_scale).astype(np.int64),
        choice_bias=_choice_bias(block),
        up=_up(block, shape, input_scale, _per_row(block, gate_scale, up_scale)),
        down=_down(block, shape, hidden_scale, np.full(block.width, result_scale)),
        activation=activation,
        hidden_multiplier=Multipliers.of(np.array([activation_scale * up_scale / hidden_scale])),
        up_offset=round(offset / up_scale),
        up_limit=127 if limit <= 0 else min(127, round(limit / up_scale)),
        shared_gate=round(GATE_ONE / block.routing.scale),
        score=_score(block, logit_scale),
        norm=norm,
    )


def _check_finite(block: FloatBlock, tokens: Array) -> None:
    if not len(tokens) or not np.isfinite(tokens).all():
        raise UnsupportedError(
            f"{block.name}: calibration data has {len(tokens)} tokens; expected at least one, and all finite"
        )
    choice = 0.0 if block.correction_bias is None else block.correction_bias
    if not all(np.isfinite(numbers).all() for numbers in (block.router, block.router_bias, choice)):
        raise UnsupportedError(f"{block.name}: its router has numbers that are not finite; expected finite ones")


def _choice_bias(block: FloatBlock) -> Array | None:
    """The bias of the choice, in steps of the scores that it is added to."""
    bias = block.correction_bias
    return None if bias is None else np.round(bias * TERM_ONE).astype(np.int64)


def _up(block: FloatBlock, shape: BlockShape, input_scale: float, result_scales: Array) -> QuantizedProjection:
    """The first product, with rows of gate and up by turns."""
    stored = None if block.stored is None else block.stored.of
    return project(
        _interleaved(block.gate, block.up),
        _interleaved(block.gate_bias, block.up_bias),
        input_scale,
        result_scales,
        shape.weight_bits,
        group=shape.group,
        steps=None if stored is None else _interleaved(stored.get("gate"), stored["up"]),
    )


def _down(block: FloatBlock, shape: BlockShape, hidden_scale: float, result_scales: Array) -> QuantizedProjection:
    return project(
        block.down,
        block.down_bias,
        hidden_scale,
        result_scales,
        shape.weight_bits,
        group=shape.group,
        steps=None if block.stored is None else block.stored.of["down"],
    )


def _router_scale(block: FloatBlock, input_scale: float) -> float:
    """The scale of the router's int16 weights, large enough that biases fit into 32 bits."""
    largest = float(np.abs(block.router_bias).max(initial=0))
    of_weights = _step(np.abs(block.router).max(), 16) if block.router.any() else _LOGIT_OF_NOTHING / input_scale
    return max(of_weights, largest / (input_scale * _MOST_ROUTER_BIAS))


def shape_of(block: FloatBlock, most_tokens: int, weight_bits: int = 8) -> BlockShape:
    """The shape of the block's hardware. Raises UnsupportedError for a block that no template computes."""
    reason = _why_not(block)
    if reason is not None:
        raise UnsupportedError(f"{block.name}: {reason}")
    stored = block.stored
    if stored is not None:
        weight_bits = stored.bits if stored.whole else max(stored.bits, weight_bits)
    scoring: Scoring = "sigmoid" if block.routing.score == "sigmoid" else "softmax"
    return BlockShape(
        tokens=most_tokens,
        width=block.width,
        hidden=block.hidden,
        experts=block.count,
        slots=block.routing.k,
        gated=block.gate is not None,
        shared=block.shared,
        scoring=scoring,
        normalized=block.routing.normalize or block.routing.score == "softmax_topk",
        groups=block.routing.groups,
        groups_kept=block.routing.groups_kept if block.routing.groups > 1 else 1,
        group_sum=block.routing.groups > 1 and block.routing.group_score == "sum_top2",
        biased_choice=block.correction_bias is not None,
        weight_bits=4 if weight_bits == 4 else 8,
        group=0 if stored is None else stored.group,
        norm="none" if block.norm is None else block.norm.kind,
    )


def _why_not(block: FloatBlock) -> str | None:
    return _why_no_router(block) or _why_no_experts(block)


def _why_no_router(block: FloatBlock) -> str | None:
    routing = block.routing
    if routing.score not in ("softmax", "softmax_topk", "sigmoid"):
        return f"routers with score {routing.score!r}; the templates have softmax, softmax_topk and sigmoid"
    if routing.selection != "topk" or routing.k > 8:
        return f"selection {routing.selection!r} of {routing.k}; the templates have the largest 1 to 8"
    if routing.threshold is not None or routing.relative_threshold > 0 or routing.capacity > 0:
        return "thresholds and capacities of a router have no template"
    if routing.groups > 1 and routing.group_score == "sum_top2" and routing.score != "sigmoid":
        return f"groups by the sum of two scores with score {routing.score!r}; the templates have them for sigmoid"
    if block.correction_bias is not None and routing.score != "sigmoid":
        return f"a bias on the choice with score {routing.score!r}; the templates have it for sigmoid"
    if block.correction_bias is not None and np.abs(block.correction_bias).max(initial=0) >= _MOST_CHOICE_BIAS:
        return f"a bias on the choice of {_MOST_CHOICE_BIAS} or more; there are 32 bits for it"
    for name in ("normalize_epsilon", "normalize_floor"):
        if getattr(routing, name) > 1e-5:
            return f"{name} {getattr(routing, name)}; the templates divide by the sum itself"
    if block.shared and not 0 < round(GATE_ONE / routing.scale) < 2 * GATE_ONE:
        return (
            f"shared experts beside routed ones that are scaled by {routing.scale}; the gate 1 / scale must be below 2"
        )
    return None


def _why_no_experts(block: FloatBlock) -> str | None:
    experts = block.experts
    if experts.weight_on_input or experts.identity_experts:
        return "weights on the input and identity experts have no template"
    if experts.output_limit > 0:
        return f"output_limit {experts.output_limit}; no template clamps what an expert returns"
    if block.gate is None and experts.up_offset:
        return "an offset without a gate has no template"
    return None


def rounded(numbers: Array, scale: float, bits: int) -> Array:
    """``numbers / scale`` as integers, half to even, saturated."""
    most = (1 << (bits - 1)) - 1
    return np.clip(np.round(numbers / scale), -most, most).astype(np.int64)


def scale_for(numbers: Array, bits: int) -> float:
    """The scale of one tensor with the smallest squared error on ``numbers``."""
    largest = float(np.abs(numbers).max(initial=0.0))
    if largest == 0:
        return 1.0

    def loss(scale: float) -> float:
        return float(np.square(rounded(numbers, scale, bits) * scale - numbers).mean())

    return min((_step(largest * part, bits) for part in _CLIPPING), key=loss)


def _step(largest: Any, bits: int) -> float:
    return float(largest) / ((1 << (bits - 1)) - 1) if largest > 0 else 1.0


def _interleaved(gate: Array | None, up: Array) -> Array:
    """Rows of gate and up by turns; of up alone without a gate."""
    return up if gate is None else np.stack([gate, up], axis=2).reshape(len(up), -1, *up.shape[2:])


def _per_row(block: FloatBlock, gate_scale: float, up_scale: float) -> Array:
    """The scale of each row of the first product's results."""
    return np.resize([gate_scale] if block.gate is None else [gate_scale, up_scale], 2 * block.hidden)[: _rows(block)]


def _rows(block: FloatBlock) -> int:
    return block.hidden * (1 if block.gate is None else 2)


def _activation_table(block: FloatBlock, scale: float) -> tuple[Array, float]:
    """The table of the activation over int8, from -128 on, and its scale. Entries are int16 if a gate multiplies them
    by up, else int8."""
    places = ((np.arange(256) - 128) * scale).astype(np.float32)
    spec = block.experts
    if block.gate is not None and spec.limit > 0:
        places = np.minimum(places, np.float32(spec.limit))
    values = semantics.activated(dataclasses.replace(spec, limit=0.0), None, places)
    bits = 8 if block.gate is None else 16
    step = _step(np.abs(values).max(), bits)
    return rounded(values, step, bits), step


def _result_scale(seen: FloatResults, scale: float) -> float:
    largest = max(float(np.abs(seen.results).max(initial=0.0)), float(np.abs(seen.output).max(initial=0.0)) / scale)
    return _step(largest * _HEADROOM, 16)


def _score(block: FloatBlock, logit_scale: float) -> Multipliers:
    if not block.count:
        return Multipliers.of(np.ones(1))
    if block.routing.score == "sigmoid":
        return Multipliers.of(np.array([logit_scale * SIGMOID_ENTRIES / SIGMOID_RANGE]))
    return Multipliers.of(np.array([logit_scale * math.log2(math.e) * POWER_ENTRIES]))


def power_table() -> Array:
    """The table of 2^(-i / 1024), where 2^17 stands for 1."""
    return np.round(2.0 ** (-np.arange(POWER_ENTRIES) / POWER_ENTRIES) * TERM_ONE).astype(np.int64)


def sigmoid_table() -> Array:
    """The table of the sigmoid of i / 128, where 2^17 stands for 1. Entries stay below 1, so that the sigmoid of -x,
    1 - sigmoid(x), is never 0."""
    places = np.arange(SIGMOID_ENTRIES) * (SIGMOID_RANGE / SIGMOID_ENTRIES)
    return np.minimum(np.round(TERM_ONE / (1 + np.exp(-places))), TERM_ONE - 1).astype(np.int64)
