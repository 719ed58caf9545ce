"""How far apart two results in 16 bits may be that are both right: as far as the reference interpreter's own are.

A model that computes in 16 bits has no one right result. The interpreter computes it in float64 and in the model's own
types; how far these lie apart, row by row (along an output's last axis), is its **spread**, and a result may lie
:data:`ROOM` times as far from what is expected. Most of that room is not used: rows of right results lie 0.7 to 1.1
times as far on average, no row more than 2.7 times. So a second rule asks for more of many rows together
(:data:`ROOM_OF_ALL`, and :data:`ROOM` of each column), which finds what moves every row a little, as a lost bias does.

Where a choice is nearly undecided, as a router's between two experts, a row jumps, and with it those that attend to it,
whichever way that choice falls. Two results do not show every such row. So where rows lie too far away, the interpreter
runs again with every product in 16 bits moved by up to :data:`UNITS` units of its rounding, at random, and once more by
the opposite: Monte Carlo arithmetic (D. S. Parker, 1997). A row may be :data:`ROOM_OF_MOVED` times as far off as it
moved in any of these runs; one that moved farther than :data:`JUMP` times what half of the rows did is undecided, and
the second rule leaves it out. A row that is wrong however the choices fall is found, after :data:`MOST_RUNS` such runs.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from moec.ir.interpreter import Change, runner

ROOM = 4.0
ROOM_OF_ALL = 2.0
ROOM_OF_MOVED = 2.0
ENOUGH_ROWS = 32
"""An average of fewer says little."""
JUMP = 4.0
UNITS = 4.0
MOST_RUNS = 16
ROUNDING_UNITS = {ir.DataType.FLOAT16: 2.0**-11, ir.DataType.BFLOAT16: 2.0**-8}
"""The largest relative error of rounding to nearest."""
PRODUCTS = frozenset(
    {"MatMul", "Gemm", "Einsum", "Conv", "Attention", "GroupQueryAttention", "FusedMatMul", "MatMulNBits"}
    | {"QMoE", "MoE", "Experts", "Linear", "GroupedMatMul", "Combine"}
)
"""Operators that add up many rounded numbers, whatever their domain. Choices are made from what they compute; what
compares and copies is left alone, so that numbers that were equal stay equal."""

Arrays = Mapping[str, np.ndarray]
Run = Callable[..., dict[str, np.ndarray]]


class Spreads:
    """The spreads of one model. Raises ValueError or EvaluationError for a model that the interpreter cannot take."""

    def __init__(self, model: ir.Model) -> None:
        self._exact, self._own = runner(model, dtype=np.float64), runner(model)

    def of(self, inputs: Arrays) -> Spread:
        """Raises ValueError or EvaluationError for inputs that the interpreter cannot run the model on."""
        return Spread(self._exact, self._own, inputs)


class Spread:
    """The reference interpreter's results for one set of inputs: ``exact`` in float64, and others around it, which are
    computed when they are asked for."""

    def __init__(self, exact: Run, own: Run, inputs: Arrays) -> None:
        self._run, self._own, self._inputs = exact, own, inputs
        self.exact = exact(inputs)

    def why_not(self, found: Arrays, expected: Arrays, floor: float) -> dict[str, str]:
        """What is wrong with outputs that are not near enough to ``expected``, by name. ``floor``: a difference of
        this share of the largest element is nothing in any row."""
        results, wrong = [], {}
        for result in self._results():
            results.append(result)
            reasons = {
                name: why_not(found[name], value, self.exact[name], [one[name] for one in results], floor)
                for name, value in expected.items()
            }
            wrong = {name: reason for name, reason in reasons.items() if reason}
            if not wrong:
                break
        return wrong

    def _results(self) -> Iterator[Arrays]:
        yield self._own(self._inputs)
        for seed in range(MOST_RUNS // 2):
            for units in (UNITS, -UNITS):
                yield self._run(self._inputs, None, rounding_otherwise(seed, units))


def rounding_otherwise(seed: int, units: float) -> Change:
    """What moves results of products in 16 bits by up to ``units`` of their rounding; the opposite for -``units``."""
    random = np.random.default_rng(seed)

    def change(node: ir.Node, outputs: Sequence[Any]) -> Sequence[Any]:
        if node.op_type not in PRODUCTS:
            return outputs
        return list(itertools.starmap(moved, zip(outputs, node.outputs, strict=False)))

    def moved(array: Any, value: ir.Value) -> Any:
        unit = ROUNDING_UNITS.get(value.dtype) if value.dtype is not None else None
        if unit is None or not isinstance(array, np.ndarray) or array.dtype.kind != "f":
            return array
        return array * (1 + units * unit * random.uniform(-1, 1, array.shape))

    return change


def why_not(
    found: np.ndarray, expected: np.ndarray, center: np.ndarray, results: Sequence[np.ndarray], floor: float
) -> str:
    """What is wrong with one output, or nothing. ``results`` are the interpreter's around ``center``, the first of them
    in the model's own types. What is no float has to be as one of them has it."""
    if not found.size:
        return ""
    if found.dtype.kind in "iub":
        known = np.any([found == one for one in (expected, center, *results)], axis=0)
        return "" if known.all() else f"{np.sum(~known)} elements are as no reference has them"
    wide = _rows(expected)
    nothing = floor * max(1.0, float(np.abs(wide[np.isfinite(wide)]).max(initial=0.0)))
    gaps = [_gaps(one, center) for one in results]
    spreads = [gap.max(axis=1) for gap in gaps]
    typical = _median(spreads[0])
    undecided = np.any([spread > max(JUMP * _median(spread), nothing) for spread in spreads], axis=0)
    moved = np.max([np.zeros_like(spreads[0]), *spreads[1:]], axis=0)
    allowed = np.maximum.reduce([ROOM * np.maximum(spreads[0], typical), ROOM_OF_MOVED * moved])
    allowed = np.maximum(allowed, nothing)
    gap = _gaps(found, expected)
    outside = gap.max(axis=1) > allowed
    if outside.any():
        times = float((gap.max(axis=1)[outside] / allowed[outside]).max())
        return f"{outside.sum()} of {outside.size} rows are outside of the spread of 16 bits, by {times:.1f} times"
    if np.sum(~undecided) < ENOUGH_ROWS:
        return ""
    steady, spread = gap[~undecided], _root_mean_square(gaps[0][~undecided])
    mean = _root_mean_square(steady)
    if mean > max(ROOM_OF_ALL * spread, nothing):
        return f"off by {mean / spread:.1f} times the spread of 16 bits on average"
    columns = _root_mean_square(steady, 0) > np.maximum(ROOM * spread, nothing)
    return f"column {np.argmax(columns)} is outside of the spread of 16 bits" if columns.any() else ""


def _rows(array: np.ndarray) -> np.ndarray:
    """In float64, as a matrix of what lies along the last axis."""
    return array.astype(np.float64).reshape(-1, array.shape[-1] if array.ndim else 1)


def _gaps(found: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Absolute differences [rows, columns]; infinite where one of them is not finite and the other not the same."""
    one, other = _rows(found), _rows(expected)
    with np.errstate(invalid="ignore"):
        gap = np.where((one == other) | (np.isnan(one) & np.isnan(other)), 0.0, np.abs(one - other))
    return np.where(np.isnan(gap), np.inf, gap)


def _median(spread: np.ndarray) -> float:
    finite = spread[np.isfinite(spread)]
    return float(np.median(finite)) if finite.size else np.inf


def _root_mean_square(gap: np.ndarray, axis: int | None = None) -> np.ndarray:
    return np.sqrt(np.mean(np.square(gap), axis=axis)) if gap.size else np.zeros(() if axis is None else gap.shape[1])
