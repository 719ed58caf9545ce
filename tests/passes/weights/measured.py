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


def moment_of(rows: Array) -> Array:
    return rows.T @ rows


def errors_of(weight: Array, stored: StoredMatrix, form: WeightFormat, rows: Array) -> Array:
    """The error of each output [out] on the rows, as the norm of the difference."""
    return np.linalg.norm(rows.astype(np.float64) @ (decode(stored, form, 0) - weight), axis=0)
