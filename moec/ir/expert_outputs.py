"""The output of one expert for given rows, whatever the format and the layout of its weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from moec.ir.expert_weights import ExpertWeights, Part
from moec.ir.semantics import activated, limited

Array = np.ndarray[Any, Any]


def expert_output(
    weights: ExpertWeights, expert: int, rows: Array, parts: Mapping[Part, Array] | None = None
) -> tuple[Array, Array]:
    """Hidden units [n,f] and output [n,width] of rows [n,d]; ``parts`` replace the expert's own matrices."""
    if parts is None:
        parts = {part: weights.decoded(part, expert) for part in weights.parts}
    before: dict[Part, Array] = {part: projected(weights, expert, part, rows, parts[part]) for part in weights.before}
    hidden = hidden_units(weights, expert, before)
    return hidden, down_projected(weights, expert, hidden, parts["down"])


def projected(weights: ExpertWeights, expert: int, part: Part, inputs: Array, matrix: Array) -> Array:
    """Inputs [n,in] times the matrix [in,out] of a part, with the expert's bias."""
    bias = weights.bias(part)
    with np.errstate(all="ignore"):
        product = inputs @ matrix
        return product if bias is None else product + bias[expert].astype(np.float32)


def hidden_units(weights: ExpertWeights, expert: int, before: Mapping[Part, Array]) -> Array:
    """The hidden units [n,f] from the results of the parts before the activation."""
    with np.errstate(all="ignore"):
        hidden = activated(weights.spec, before.get("gate"), before["up"])
        hidden[:, weights.sizes[expert] :] = 0
        return hidden


def down_projected(weights: ExpertWeights, expert: int, hidden: Array, matrix: Array) -> Array:
    """The output [n,width] of hidden units [n,f] and the matrix [f,width] of the part down."""
    with np.errstate(all="ignore"):
        return limited(weights.spec, projected(weights, expert, "down", hidden, matrix))
