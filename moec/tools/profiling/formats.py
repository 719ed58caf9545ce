"""The error of each expert, and of each linear, when one weight alone is stored in another format."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from moec.ir.mapped_files import release_pages
from moec.ir.weights.encode import decode, encode
from moec.ir.weights.format import WeightFormat
from moec.ir.weights.outputs import expert_output
from moec.tools.profiling.sums import ExpertsSums

Array = np.ndarray[Any, Any]


def experts_errors(sums: ExpertsSums, forms: Sequence[WeightFormat]) -> Iterator[tuple[str, Array]]:
    """``energy`` [E] and ``error/<format>`` [E,P] over the rows that were kept, in the order of the parts."""
    weights = sums.weights
    energy = np.zeros(weights.experts)
    errors = {form: np.zeros((weights.experts, len(weights.parts))) for form in forms}
    for expert in range(weights.experts):
        rows, gates = sums.rows(expert)
        if not len(rows):
            continue
        if weights.spec.weight_on_input:
            rows, gates = rows * gates[:, None], np.ones_like(gates)
        own: dict[str, Array] = {part: weights.decoded(part, expert) for part in weights.parts}
        expected = expert_output(weights, expert, rows, own)[1] * gates[:, None]
        energy[expert] = _energy(expected)
        for form in forms:
            for column, part in enumerate(weights.parts):
                changed = {**own, part: rounded(own[part], form)}
                found = expert_output(weights, expert, rows, changed)[1] * gates[:, None]
                errors[form][expert, column] = _energy(found - expected)
        release_pages()
    yield "energy", energy
    yield from ((f"error/{form}", error) for form, error in errors.items())


def linear_errors(weight: Array, rows: Array, forms: Sequence[WeightFormat]) -> Iterator[tuple[str, Array]]:
    """``energy`` and ``error/<format>`` of rows [n,K] and a weight [K,N]."""
    yield "energy", np.array(_energy(rows @ weight))
    for form in forms:
        yield f"error/{form}", np.array(_energy(rows @ (rounded(weight, form) - weight)))


def rounded(matrix: Array, form: WeightFormat) -> Array:
    """What is read back of a matrix [in, out] that was stored in a format; NaN where it cannot be."""
    try:
        return decode(encode(matrix, form, 0), form, 0)
    except ValueError:
        return np.full_like(matrix, np.nan)


def _energy(array: Array) -> float:
    return float(np.square(array, dtype=np.float64).sum())
