"""Error of an expert, or of a linear, when only one of its weights is stored in another format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from moec.ir.expert_outputs import hidden_units, projected
from moec.ir.expert_weights import ExpertWeights, Part
from moec.ir.semantics import activated, limited
from moec.ir.weights.encode import decode, encode
from moec.ir.weights.format import WeightFormat
from moec.profiles.measures import evenly

Array = np.ndarray[Any, Any]

SAMPLED = 128
"""Number of outputs of a part that are rounded to estimate the error of all."""


def expert_errors(
    weights: ExpertWeights,
    expert: int,
    inputs: tuple[Array, Array],
    others: tuple[Array, Array],
    own: Mapping[Part, Array],
    forms: Sequence[WeightFormat],
) -> tuple[float, Array, Array]:
    """Compute the energy of an expert's results on ``inputs``, and the errors [F,P] by formats and parts: sums over
    ``inputs``, and means over ``others``.

    Both are rows [n,d] and the weights [n] of their results. ``own`` holds the expert's matrices [in,out]. Results that
    a part does not affect are computed once.

    Of a part with more than :data:`SAMPLED` outputs only that many are rounded. Their error is extrapolated to all,
    because rounding errors of different outputs are independent.
    """
    kept, (rows, gates) = len(inputs[0]), map(np.concatenate, zip(inputs, others, strict=True))
    before: dict[Part, Array] = {part: projected(weights, expert, part, rows, own[part]) for part in weights.before}
    hidden = hidden_units(weights, expert, before)
    sums = projected(weights, expert, "down", hidden, own["down"])
    expected = limited(weights.spec, sums)
    errors, of_others = (np.zeros((len(forms), len(weights.parts))) for _ in range(2))
    for column, part in enumerate(weights.parts):
        size = weights.width if part == "down" else weights.sizes[expert]
        chosen = evenly(np.arange(size), SAMPLED)
        for row, form in enumerate(forms):
            with np.errstate(all="ignore"):
                change = (hidden if part == "down" else rows) @ _rounding(own[part], form, chosen)
                if part == "down":
                    difference = limited(weights.spec, sums[:, chosen] + change) - expected[:, chosen]
                else:
                    units = {
                        name: values[:, chosen] + (change if name == part else 0) for name, values in before.items()
                    }
                    moved = activated(weights.spec, units.get("gate"), units["up"]) - hidden[:, chosen]
                    difference = limited(weights.spec, sums + moved @ own["down"][chosen]) - expected
                difference *= gates[:, None]
            share = len(chosen) / size if size else 1.0
            errors[row, column] = _energy(difference[:kept]) / share
            of_others[row, column] = _energy(difference[kept:]) / share / max(1, len(difference) - kept)
    return _energy(expected[:kept] * gates[:kept, None]), errors, of_others


def _rounding(matrix: Array, form: WeightFormat, chosen: Array) -> Array:
    """Compute what rounding to a format adds to the ``chosen`` outputs of a matrix [in, out]. The result is NaN where
    the matrix cannot be rounded, which shows in the output with the largest number."""
    if not matrix.size:
        return np.zeros((len(matrix), len(chosen)), np.float32)
    largest = int(np.abs(matrix).max(axis=0).argmax())
    some = matrix[:, [*chosen, largest]]
    return (rounded(some, form) - some)[:, :-1]


def linear_errors(weight: Array, rows: Array, forms: Sequence[WeightFormat]) -> dict[str, Array]:
    """Compute ``energy`` and ``error/<format>`` of rows [n,K] and a weight [K,N]."""
    errors = {f"error/{form}": np.array(_energy(rows @ (rounded(weight, form) - weight))) for form in forms}
    return {"energy": np.array(_energy(rows @ weight)), **errors}


def rounded(matrix: Array, form: WeightFormat) -> Array:
    """Store a matrix [in, out] in a format and read it back. The result is NaN where that is impossible."""
    try:
        return decode(encode(matrix, form, 0), form, 0)
    except ValueError:
        return np.full_like(matrix, np.nan)


def _energy(array: Array) -> float:
    return float(np.square(array, dtype=np.float64).sum())
