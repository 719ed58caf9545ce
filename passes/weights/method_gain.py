"""The share of the errors of rounding to nearest that a method leaves, on some experts of a layer."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from moec.ir.weight_operands import input_axis
from moec.ir.weights.encode import decode, encode
from moec.ir.weights.format import WeightFormat
from moec.passes.weights.calibration import KnownInputs, Method
from moec.passes.weights.loss import Layer, layer_of, matrices_of, output_with
from moec.profiles import Profile

Array = np.ndarray[Any, Any]

EXPERTS = 4
"""Number of experts of a layer that are rounded to measure the gain of a method: those with the most tokens."""
BITS = 3
"""The format that they are rounded to is the one nearest to so many bits."""


def share_left(
    node: ir.Node, profile: Profile, operands: Sequence[str], forms: Sequence[WeightFormat], method: Method
) -> float:
    """The squared error of the experts' outputs where ``operands`` are rounded by a method, as a share of that by
    rounding to nearest, on rows that the experts saw; 1 where no expert saw any. Profiles hold errors of the latter.

    Raises MoecError as :class:`KnownInputs`.
    """
    quantized = [form for form in forms if form.quantized]
    if method == "rtn" or not quantized:
        return 1.0
    form = min(quantized, key=lambda candidate: abs(candidate.elements.bits - BITS))
    layer, inputs, count = layer_of(node), KnownInputs(profile, node, method), profile.experts(node).count
    left = whole = 0.0
    for expert in map(int, np.argsort(-count, kind="stable")[:EXPERTS]):
        rows = inputs.rows(expert)
        if rows is not None and not any(layer.weights[name].formats[expert].quantized for name in operands):
            with contextlib.suppress(ValueError):  # a number that the format cannot hold: the format is none for it
                by_method = _square(layer, expert, rows, _by_method(layer, inputs, expert, operands, form))
                left, whole = (
                    left + by_method,
                    whole + _square(layer, expert, rows, _nearest(layer, expert, operands, form)),
                )
    return left / whole if 0 < whole < np.inf and np.isfinite(left) else 1.0


def _nearest(layer: Layer, expert: int, operands: Sequence[str], form: WeightFormat) -> dict[str, Array]:
    decoded = {}
    for name in operands:
        matrix, axis = matrices_of(layer, expert)[name], input_axis(layer.node, name)
        decoded[name] = decode(encode(matrix, form, axis), form, axis)
    return decoded


def _by_method(
    layer: Layer, inputs: KnownInputs, expert: int, operands: Sequence[str], form: WeightFormat
) -> dict[str, Array]:
    decoded = {}
    for name in operands:
        matrix, axis, encoder = matrices_of(layer, expert)[name], input_axis(layer.node, name), inputs.encoder(name)
        encoded = encode(matrix, form, axis) if encoder is None else encoder(matrix, form, axis, expert)
        decoded[name] = decode(encoded, form, axis)
    return decoded


def _square(layer: Layer, expert: int, rows: Array, matrices: dict[str, Array]) -> float:
    """The sum of the squared errors of an expert's output for rows with some other matrices."""
    rows = rows.astype(np.float32)
    error = output_with(layer, expert, matrices, rows) - output_with(layer, expert, {}, rows)
    return float(np.square(error, dtype=np.float64).sum())
