"""The scales of experts whose weights are stored as integers, regrouped as the hardware takes them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from moec.common.errors import UnsupportedError
from moec.ir.expert_weights import ExpertWeights, Part
from moec.ir.weights.format import WeightFormat

Array = np.ndarray[Any, Any]

_SMALLEST_GROUP, _LARGEST_GROUP = 32, 128


@dataclasses.dataclass(frozen=True)
class StoredSteps:
    """Scales of stored integers.

    - ``bits``: enough for all integers.
    - ``group``: the number of inputs that share a scale in all matrices, 0 for all inputs. A larger stored group is
      several of these.
    - ``whole``: whether all experts are stored as integers.
    - ``of``: scales [E, out, groups] by part, 0 for an expert stored as floats. With groups, scales may be negative,
      since the multipliers of groups are signed.
    """

    bits: Literal[4, 8]
    group: int
    whole: bool
    of: Mapping[str, Array]


def stored_steps(weights: ExpertWeights) -> StoredSteps | None:
    """The scales of the weights' integers; None where all weights are floats. Raises UnsupportedError for a format that
    the templates do not have."""
    formats = {part: weights.operand(part).formats for part in weights.parts}
    for part, of_experts in formats.items():
        for expert, form in enumerate(of_experts):
            if not _is_taken(form):
                raise UnsupportedError(
                    f"the {part} weights of expert {expert} are {form}; expected floats, int8, iq4 or int4, without "
                    "zero points or minima, per channel or in groups of 32, 64 or 128"
                )
    integers = [form for of_experts in formats.values() for form in of_experts if form.quantized]
    if not integers:
        return None
    sizes = [form.group for form in integers if form.group]
    group = math.gcd(_LARGEST_GROUP, *sizes) if sizes or _some_below_zero(weights) else 0
    return StoredSteps(
        bits=8 if any(form.elements.signed.bitwidth == 8 for form in integers) else 4,
        group=group,
        whole=all(form.quantized for of_experts in formats.values() for form in of_experts),
        of={part: _steps(weights, part, group) for part in weights.parts},
    )


def _is_taken(form: WeightFormat) -> bool:
    if not form.quantized:
        return True
    is_offset = form.zero_points or form.minima
    return form.name in ("int8", "iq4", "int4") and not is_offset and form.group % _SMALLEST_GROUP == 0


def _some_below_zero(weights: ExpertWeights) -> bool:
    """Whether a scale is negative. If so, groups are needed, since only multipliers of groups are signed."""
    return any(
        form.quantized and (scale := weights.encoded(part, expert).scale) is not None and bool((scale < 0).any())
        for part in weights.parts
        for expert, form in enumerate(weights.operand(part).formats)
    )


def _steps(weights: ExpertWeights, part: Part, group: int) -> Array:
    outputs, inputs = (weights.width, weights.hidden) if part == "down" else (weights.hidden, weights.inner)
    groups = -(-inputs // group) if group else 1
    steps = np.zeros((weights.experts, outputs, groups), np.float32)
    for expert, form in enumerate(weights.operand(part).formats):
        scale = weights.encoded(part, expert).scale if form.quantized else None
        if scale is not None:
            copies = form.group // group if form.group else groups
            steps[expert] = np.repeat(scale.T.astype(np.float32), copies, axis=1)[:, :groups]
    return steps
