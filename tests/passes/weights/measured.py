"""Weights and inputs that are like those of a layer: few directions, and channels of different sizes."""

from __future__ import annotations

from typing import Any

import numpy as np

from moec.ir.weights.encode import StoredMatrix, decode
from moec.ir.weights.format import WeightFormat

Array = np.ndarray[Any, Any]

FORMATS = (
    *(WeightFormat(name, group, zero) for name in ("int8", "int4") for group in (0, 32) for zero in (False, True)),
    *(WeightFormat(name, group, zero) for name in ("int3", "int2") for group in (64, 32) for zero in (False, True)),
    *(WeightFormat("mxfp4", 32), WeightFormat("fp8"), WeightFormat("fp8", 128)),
)


def weight_of(inputs: int, outputs: int) -> Array:
    return np.random.default_rng(0).normal(size=(inputs, outputs)).astype(np.float32)


def rows_of(inputs: int, count: int, seed: int = 1) -> Array:
    """Inputs [count,in] in float32."""
    random, channels = np.random.default_rng(seed), np.random.default_rng(2)
    mixing, sizes = channels.normal(size=(inputs // 8, inputs)), np.exp(0.5 * channels.normal(size=inputs))
    hidden = random.normal(size=(count, inputs // 8)) @ mixing / np.sqrt(inputs // 8)
    return ((hidden + 0.3 * random.normal(size=(count, inputs))) * sizes).astype(np.float32)


def moment_of(rows: Array) -> Array:
    return rows.T @ rows


def errors_of(weight: Array, stored: StoredMatrix, form: WeightFormat, rows: Array) -> Array:
    """The error of each output [out] on the rows, as the norm of the difference."""
    return np.linalg.norm(rows.astype(np.float64) @ (decode(stored, form, 0) - weight), axis=0)
