"""How far apart two results may be that are both right: as far as the reference interpreter's own are.

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

A model in float32 that **rounds activations** (:func:`moec.ir.rounding.arithmetics_of`), rows to int8 for one, decides
as often as it rounds a number: what lies between two of them becomes either, by the last bit of the sum before, and
what follows rounds otherwise, too. Products in float32 are then moved by what is nothing in an output, the tolerance of
float32, as a share of their rows; inputs by as much of themselves, and so are values that are rounded and that no
product made, as a normalisation's. In the interpreter's own types few or no numbers may be rounded otherwise where many
are in a result, so the second rule takes the farthest of all runs for the spread.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from moec.ir.interpreter import Change, runner
from moec.ir.rounding import arithmetics_of, rounded_values
from moec.tools.comparison import TOLERANCES

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
ROW_UNIT = TOLERANCES["float32"] / UNITS
"""Of float32 before activations are rounded, as a share of the largest element of a row: sums of many numbers are off
by shares of the largest ones."""
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
        self._rounds = bool(arithmetics_of(model))
        self._rounded = rounded_values(model)

    def of(self, inputs: Arrays) -> Spread:
        """Raises ValueError or EvaluationError for inputs that the interpreter cannot run the model on."""
        return Spread(self._exact, self._own, inputs, self._rounds, self._rounded)


class Spread:
    """The reference interpreter's results for one set of inputs: ``exact`` in float64, and others around it, which are
    computed when they are asked for. ``rounds``: whether the model rounds activations; ``rounded``: the values that it
    rounds, by name."""

    def __init__(self, exact: Run, own: Run, inputs: Arrays, rounds: bool, rounded: Collection[str]) -> None:
        self._rounded = rounded
        self._run, self._own, self._inputs, self._rounds = exact, own, inputs, rounds
        self.exact = exact(inputs)

    def why_not(self, found: Arrays, expected: Arrays, floor: float) -> dict[str, str]:
        """What is wrong with outputs that are not near enough to ``expected``, by name. ``floor``: a difference of
        this share of the largest element is nothing in any row."""
        results, wrong = [], {}
        for result in self._results():
            results.append(result)
            reasons = {
                name: why_not(found[name], value, self.exact[name], [r[name] for r in results], floor, self._rounds)
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
                yield self.moved(seed, units)

    def moved(self, seed: int, units: float) -> Arrays:
        """What products that are moved at random by up to ``units`` make; the opposite for -``units``. Of a model that
        rounds activations inputs are moved, too: it may round these first."""
        inputs = _moved_inputs(self._inputs, seed, units) if self._rounds else self._inputs
        return self._run(inputs, None, rounding_otherwise(seed, units, self._rounds, self._rounded))


def rounding_otherwise(seed: int, units: float, rounds: bool = False, rounded: Collection[str] = ()) -> Change:
    """What moves results of products in 16 bits by up to ``units`` of their rounding, and of a model that ``rounds``
    activations those in float32 by up to ``units`` of :data:`ROW_UNIT`, and by as much of themselves the ``rounded``
    values, by name, that others compute (a normalisation, for one); the opposite for -``units``."""
    random = np.random.default_rng(seed)

    def change(node: ir.Node, outputs: Sequence[Any]) -> Sequence[Any]:
        if node.op_type in PRODUCTS:
            return list(itertools.starmap(moved, zip(outputs, node.outputs, strict=False)))
        return [
            _moved(array, random, units) if value.name in rounded and _is_float32(array, value) else array
            for array, value in zip(outputs, node.outputs, strict=False)
        ]

    def moved(array: Any, value: ir.Value) -> Any:
        if value.dtype is None or not isinstance(array, np.ndarray) or array.dtype.kind != "f":
            return array
        if value.dtype in ROUNDING_UNITS:
            return array * (1 + units * ROUNDING_UNITS[value.dtype] * random.uniform(-1, 1, array.shape))
        if rounds and value.dtype == ir.DataType.FLOAT and np.any(array % 1):  # sums of whole numbers are exact
            return array + units * ROW_UNIT * _largest(array) * random.uniform(-1, 1, array.shape)
        return array

    return change


def _moved_inputs(inputs: Arrays, seed: int, units: float) -> Arrays:
    """Floats moved by shares of themselves, so that zeros and what masks hide stay so."""
    random = np.random.default_rng([seed])

    return {
        name: _moved(array, random, units).astype(array.dtype) if array.dtype == np.float32 else array
        for name, array in inputs.items()
    }


def _moved(array: np.ndarray, random: np.random.Generator, units: float) -> np.ndarray:
    return array * (1 + units * ROW_UNIT * random.uniform(-1, 1, array.shape))


def _is_float32(array: Any, value: ir.Value) -> bool:
    """By the model's types, whatever the interpreter computes in."""
    return value.dtype == ir.DataType.FLOAT and isinstance(array, np.ndarray) and array.dtype.kind == "f"


def _largest(array: np.ndarray) -> np.ndarray:
    """The largest finite magnitude of each row, [..., 1]."""
    finite = np.abs(np.where(np.isfinite(array), array, 0))
    return finite.max(axis=-1, keepdims=True, initial=0) if array.ndim else finite


def why_not(
    found: np.ndarray,
    expected: np.ndarray,
    center: np.ndarray,
    results: Sequence[np.ndarray],
    floor: float,
    rounds: bool = False,
) -> str:
    """What is wrong with one output, or nothing. ``results`` are the interpreter's around ``center``, the first of them
    in the model's own types; ``rounds``: of a model that rounds activations. What is no float has to be as one of them
    has it."""
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
        rows = f"{outside.sum()} of {outside.size} rows"
        return f"{rows} are outside of the spread of right results, by {times:.1f} times"
    if np.sum(~undecided) < ENOUGH_ROWS:
        return ""
    steady = gap[~undecided]
    spread = max(_root_mean_square(one[~undecided]) for one in (gaps if rounds else gaps[:1]))
    mean = _root_mean_square(steady)
    if mean > max(ROOM_OF_ALL * spread, nothing):
        return f"off by {mean / spread:.1f} times the spread of right results on average"
    columns = _root_mean_square(steady, 0) > np.maximum(ROOM * spread, nothing)
    return f"column {np.argmax(columns)} is outside of the spread of right results" if columns.any() else ""


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
