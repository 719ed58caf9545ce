"""Comparison of outputs with expected ones, and the tolerances that apply."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import onnx_ir as ir

# Largest accepted difference, as a share of max(1, the largest expected magnitude), by the narrowest float in the model
TOLERANCES = {"float64": 1e-4, "float32": 1e-4, "float16": 2e-2, "bfloat16": 1e-1}


@dataclasses.dataclass(frozen=True)
class Difference:
    """Comparison of one output of one case. Differences are None where shape or dtype already differ. ``norm``: the
    Frobenius norm of the difference from the original model, as a share of that of its output."""

    output: str
    shape: tuple[int, ...]
    absolute: float | None
    relative: float | None
    matches: bool
    note: str = ""
    norm: float | None = None


def compare(name: str, actual: np.ndarray, expected: np.ndarray, tolerance: float) -> Difference:
    """Compare one output. NaN equals NaN, and infinities equal themselves."""
    if actual.shape != expected.shape or actual.dtype != expected.dtype:
        note = f"is {actual.dtype}{list(actual.shape)}; expected {expected.dtype}{list(expected.shape)}"
        return Difference(name, actual.shape, None, None, False, note)
    if not actual.size:
        return Difference(name, actual.shape, 0.0, 0.0, True, norm=0.0)
    exact = actual.dtype.kind in "iub"
    actual, expected = actual.astype(np.float64), expected.astype(np.float64)
    same = (actual == expected) | (np.isnan(actual) & np.isnan(expected))
    with np.errstate(invalid="ignore", divide="ignore"):
        gap = np.where(same, 0.0, np.abs(actual - expected))
        relative = np.where(same, 0.0, gap / np.abs(expected))
    finite = np.abs(expected[np.isfinite(expected)])
    scale = max(1.0, float(finite.max(initial=0.0)))
    absolute = float(gap.max())
    matches = absolute <= (0.0 if exact else tolerance * scale)  # False for NaN
    return Difference(name, actual.shape, absolute, float(relative.max()), bool(matches), norm=_norm(gap, finite))


def _norm(gap: np.ndarray, expected: np.ndarray) -> float:
    """Norm of ``gap`` as a share of that of ``expected``."""
    error, size = float(np.linalg.norm(gap)), float(np.linalg.norm(expected))
    return error / size if size else 0.0 if error == 0 else float("inf")


def tolerance_of(model: ir.Model) -> float:
    """Select the tolerance by the narrowest float type of the model's weights, inputs and outputs."""
    values: Sequence[Any] = [*model.graph.initializers.values(), *model.graph.inputs, *model.graph.outputs]
    names = {value.dtype.numpy().name for value in values if value.dtype is not None}
    return max((limit for name, limit in TOLERANCES.items() if name in names), default=TOLERANCES["float32"])
