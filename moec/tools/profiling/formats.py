"""The error of an expert, and of a linear, when one weight alone is stored in another format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from moec.ir.weights.encode import decode, encode
from moec.ir.weights.experts import ExpertWeights, Part
from moec.ir.weights.format import WeightFormat
from moec.ir.weights.outputs import down_projected, hidden_units, projected

Array = np.ndarray[Any, Any]


def expert_errors(
    weights: ExpertWeights,
    expert: int,
    inputs: tuple[Array, Array],
    others: tuple[Array, Array],
    own: Mapping[Part, Array],
    forms: Sequence[WeightFormat],
) -> tuple[float, Array, Array]:
    """The energy of ``inputs``, and errors [F,P] in the order of formats and parts: the sums over ``inputs``, and the
    means over ``others``. Both are rows [n,d] and the weights [n] of what comes out; ``own``: the expert's matrices
    [in,out]. What a part does not change is computed once."""
    kept, (rows, gates) = len(inputs[0]), map(np.concatenate, zip(inputs, others, strict=True))
    before: dict[Part, Array] = {part: projected(weights, expert, part, rows, own[part]) for part in weights.before}
    hidden = hidden_units(weights, expert, before)
    expected = down_projected(weights, expert, hidden, own["down"])
    errors, of_others = (np.zeros((len(forms), len(weights.parts))) for _ in range(2))
    for row, form in enumerate(forms):
        for column, part in enumerate(weights.parts):
            changed = rounded(own[part], form)
            if part == "down":
                found = down_projected(weights, expert, hidden, changed)
            else:
                moved = hidden_units(weights, expert, {**before, part: projected(weights, expert, part, rows, changed)})
                found = down_projected(weights, expert, moved, own["down"])
            difference = (found - expected) * gates[:, None]
            errors[row, column] = _energy(difference[:kept])
            of_others[row, column] = _energy(difference[kept:]) / max(1, len(difference) - kept)
    return _energy(expected[:kept] * gates[:kept, None]), errors, of_others


def linear_errors(weight: Array, rows: Array, forms: Sequence[WeightFormat]) -> dict[str, Array]:
    """``energy`` and ``error/<format>`` of rows [n,K] and a weight [K,N]."""
    errors = {f"error/{form}": np.array(_energy(rows @ (rounded(weight, form) - weight))) for form in forms}
    return {"energy": np.array(_energy(rows @ weight)), **errors}


def rounded(matrix: Array, form: WeightFormat) -> Array:
    """What is read back of a matrix [in, out] that was stored in a format; NaN where it cannot be."""
    try:
        return decode(encode(matrix, form, 0), form, 0)
    except ValueError:
        return np.full_like(matrix, np.nan)


def _energy(array: Array) -> float:
    return float(np.square(array, dtype=np.float64).sum())
