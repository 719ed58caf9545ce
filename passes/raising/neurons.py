"""The hidden units of experts, found by the effect of the activation."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from moec.passes.raising.dataflow import Array
from moec.passes.raising.failure import NotUnderstoodError

NEAR = 1e-6
FAR = 0.7
"""Steps that probe the activation: one shows its slope, one crosses zero, where relu bends."""
SAME = 2e-4
"""Relative difference up to which two slopes count as equal."""
ATTEMPTS = 4


@dataclasses.dataclass(frozen=True)
class Units:
    """The projections behind each result of the activation: ``up`` [n], the number of a projection, -1 where there is
    none; ``gate`` [n] likewise, -1 everywhere if experts have no gate."""

    up: Array
    gate: Array


def find_units(activation: Callable[[Array], Array], projections: Array) -> Units:
    """Find the elements of an activation's input that each output is computed from, and the gate among two.

    ``activation`` maps an input [p] to an output [n]; ``projections`` [p] is the number of the projection that each
    element of the input holds, -1 for none. For each bit of these numbers, all projections with that bit are moved. An
    output that follows one projection spells its number; one that follows two spells both, because they differ in
    slope. Of two, the one in which the output is affine is ``up``.

    Raises NotUnderstoodError if an output follows neither one projection nor two.
    """
    count = int(projections.max(initial=-1)) + 1
    bits = [(projections >> bit & 1) * (projections >= 0) for bit in range(max(1, (count - 1).bit_length()))]
    up, gate, unclear = _decode(activation, 0, projections, bits)
    for seed in range(1, ATTEMPTS):  # from elsewhere, where other slopes are alike
        if not unclear.any():
            break
        again = _decode(activation, seed, projections, bits)
        up, gate = np.where(unclear, again[0], up), np.where(unclear, again[1], gate)
        unclear &= again[2]
    gated = gate >= 0
    if unclear.any() or (gated.any() and (gated != (up >= 0)).any()):
        raise NotUnderstoodError(
            "its activation is neither a function of one projection nor of a gate and a projection"
        )
    return Units(up, gate)


def _decode(
    activation: Callable[[Array], Array], seed: int, projections: Array, bits: list[Array]
) -> tuple[Array, Array, Array]:
    """Numbers of the up and the gate projection of each output, -1 for none, and flags of outputs whose slopes are too
    alike."""
    base = np.random.default_rng(seed).uniform(0.4, 1, len(projections)) * (projections >= 0)
    start = activation(base)

    def moved(by: float, mask: Array) -> Array:
        return activation(base + by * mask) - start

    whole = moved(NEAR, (projections >= 0).astype(float))
    slopes = np.stack([moved(NEAR, mask) for mask in bits])
    size = np.maximum(np.abs(slopes).max(axis=0), np.abs(whole))
    alike = SAME * size

    def equal(values: Array, other: Array | float) -> Array:
        return np.abs(values - other) <= alike

    apart = ~equal(slopes, whole) & ~equal(slopes, 0.0)
    two, highest = apart.any(axis=0), len(bits) - 1 - apart[::-1].argmax(axis=0)
    first = np.where(two, np.take_along_axis(slopes, highest[None], 0)[0], whole)
    second = whole - first
    unclear = two & (np.abs(first - second) <= 4 * alike)
    weights = 1 << np.arange(len(bits))[:, None]
    numbers = [((equal(slopes, s) | equal(slopes, whole)) * weights).sum(axis=0) for s in (first, second)]
    bends = np.zeros_like(slopes)
    for bit in np.unique(highest[two & (size > 0)]):
        bends[bit] = moved(-2 * FAR, bits[bit]) - 2 * moved(-FAR, bits[bit])
    is_up = np.abs(np.take_along_axis(bends, highest[None], 0)[0]) <= 1e-9 * np.maximum(1, size)
    up = np.where(two & ~is_up, numbers[1], numbers[0])
    gate = np.where(two, np.where(is_up, numbers[1], numbers[0]), -1)
    return np.where(size > 0, up, -1), np.where(size > 0, gate, -1), unclear & (size > 0)
