"""Tolerance for results that are all right: the spread of the reference interpreter's own results.

A model that computes in 16 bits has no one right result. The interpreter computes it in float64 and in the model's own
types. Their distance, row by row (along an output's last axis), is the **spread**, and a result may differ from the
expected one by :data:`ROOM` times as much. Most of that room is unused: rows of right results differ by 0.7 to 1.1
times the spread on average, and no row by more than 2.7 times. A second rule therefore limits many rows together
(:data:`ROOM_OF_ALL`, and :data:`ROOM` of each column). It finds errors that move every row a little, such as a lost
bias.

Where a selection is nearly undecided, as a router's between two experts, a row jumps, and so do rows that attend to it.
Two results do not show all such rows. So where rows differ too much, the interpreter runs again with every product in
float16 or bfloat16 moved at random by up to :data:`UNITS` units of its rounding, and once more by the opposite: Monte
Carlo arithmetic (D. S. Parker, 1997). A row may differ by :data:`ROOM_OF_MOVED` times as much as it moved in any of
these runs. A row that moved farther than :data:`JUMP` times the median is undecided, and the second rule ignores it. A
row that is still outside after :data:`MOST_RUNS` such runs is wrong.

A model in float32 that **rounds activations** (:func:`moec.ir.rounding.arithmetics_of`), for example rows to int8,
decides wherever it rounds a number: the last bit of a sum selects one of two neighbours, and later roundings change,
too. Products in float32 are then moved by the tolerance of float32, as a share of their rows. Inputs are moved by the
same share of themselves, and so are rounded values that no product made, such as a normalisation's. In the
interpreter's own types few numbers may be rounded differently where a right result has many, so the second rule takes
the largest distance of all runs for the spread.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from moec.checking.comparison import TOLERANCES
from moec.ir.interpreter import Change, runner
from moec.ir.rounding import arithmetics_of, rounded_values

ROOM = 4.0
ROOM_OF_ALL = 2.0
ROOM_OF_MOVED = 2.0
ENOUGH_ROWS = 32
"""Rows below which an average says little."""
JUMP = 4.0
UNITS = 4.0
MOST_RUNS = 16
ROUNDING_UNITS = {ir.DataType.FLOAT16: 2.0**-11, ir.DataType.BFLOAT16: 2.0**-8}
"""Largest relative errors of rounding to nearest."""
ROW_UNIT = TOLERANCES["float32"] / UNITS
"""Unit of float32 before activations are rounded, as a share of the largest element of a row: sums of many numbers have
errors that are shares of the largest ones."""
PRODUCTS = frozenset(
    {"MatMul", "Gemm", "Einsum", "Conv", "Attention", "GroupQueryAttention", "FusedMatMul", "MatMulNBits"}
    | {"QMoE", "MoE", "Experts", "Linear", "GroupedMatMul", "Combine"}
)
"""Operators that add up many rounded numbers, in any domain. Selections depend on their results. Operators that compare
and copy are not moved, so that equal numbers stay equal."""

Arrays = Mapping[str, np.ndarray]
Run = Callable[..., dict[str, np.ndarray]]


class Spreads:
    """Spreads of one model. Raises ValueError or EvaluationError for a model that the interpreter cannot run."""

    def __init__(self, model: ir.Model) -> None:
        self._exact, self._own = runner(model, dtype=np.float64), runner(model)
        self._rounds = bool(arithmetics_of(model))
        self._rounded = rounded_values(model)

    def of(self, inputs: Arrays) -> Spread:
        """Compute the spread for inputs. Raises ValueError or EvaluationError where the interpreter cannot run the
        model on them."""
        return Spread(self._exact, self._own, inputs, self._rounds, self._rounded)


class Spread:
    """Results of the reference interpreter for one set of inputs: ``exact`` in float64, and others around it, which are
    computed on demand. ``rounds``: whether the model rounds activations; ``rounded``: names of the values that it
    rounds."""

    def __init__(self, exact: Run, own: Run, inputs: Arrays, rounds: bool, rounded: Collection[str]) -> None:
        self._rounded = rounded
        self._run, self._own, self._inputs, self._rounds = exact, own, inputs, rounds
        self.exact = exact(inputs)

    def why_not(self, actual: Arrays, expected: Arrays, floor: float) -> dict[str, str]:
        """Explain, by name, why outputs are not near enough to ``expected``. ``floor``: share of the largest element up
        to which any difference is allowed."""
        results, wrong = [], {}
        for result in self._results():
            results.append(result)
            reasons = {
                name: why_not(actual[name], value, self.exact[name], [r[name] for r in results], floor, self._rounds)
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
        """Run the model with products moved at random by up to ``units``, or by the opposite for -``units``. In a model
        that rounds activations inputs are moved, too, because it may round these first."""
        inputs = _moved_inputs(self._inputs, seed, units) if self._rounds else self._inputs
        return self._run(inputs, None, rounding_otherwise(seed, units, self._rounds, self._rounded))


def rounding_otherwise(seed: int, units: float, rounds: bool = False, rounded: Collection[str] = ()) -> Change:
    """Make a function that moves the results of products at random, by the opposite for -``units``.

    Results in 16 bits move by up to ``units`` of their rounding. In a model that ``rounds`` activations, results in
    float32 move by up to ``units`` of :data:`ROW_UNIT`, and the ``rounded`` values that other operators compute, such
    as a normalisation, by the same share of themselves.
    """
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
    """Move floats by shares of themselves, so that zeros, and whatever masks hide, stay."""
    random = np.random.default_rng([seed])

    return {
        name: _moved(array, random, units).astype(array.dtype) if array.dtype == np.float32 else array
        for name, array in inputs.items()
    }


def _moved(array: np.ndarray, random: np.random.Generator, units: float) -> np.ndarray:
    return array * (1 + units * ROW_UNIT * random.uniform(-1, 1, array.shape))


def _is_float32(array: Any, value: ir.Value) -> bool:
    """Whether the model declares float32, whatever type the interpreter computes in."""
    return value.dtype == ir.DataType.FLOAT and isinstance(array, np.ndarray) and array.dtype.kind == "f"


def _largest(array: np.ndarray) -> np.ndarray:
    """Largest finite magnitude of each row, [..., 1]."""
    finite = np.abs(np.where(np.isfinite(array), array, 0))
    return finite.max(axis=-1, keepdims=True, initial=0) if array.ndim else finite


def why_not(
    actual: np.ndarray,
    expected: np.ndarray,
    center: np.ndarray,
    results: Sequence[np.ndarray],
    floor: float,
    rounds: bool = False,
) -> str:
    """Explain why one output is not near enough to ``expected``. Returns an empty text where it is.

    ``results`` are the interpreter's around ``center``, the first of them in the model's own types; ``rounds``: whether
    the model rounds activations. An element that is no float has to equal that of one of these results.
    """
    if not actual.size:
        return ""
    if actual.dtype.kind in "iub":
        matches = np.any([actual == result for result in (expected, center, *results)], axis=0)
        return "" if matches.all() else f"{np.sum(~matches)} elements are as no reference has them"
    wide = _rows(expected)
    nothing = floor * max(1.0, float(np.abs(wide[np.isfinite(wide)]).max(initial=0.0)))
    gaps = [_gaps(result, center) for result in results]
    spreads = [gap.max(axis=1) for gap in gaps]
    typical = _median(spreads[0])
    undecided = np.any([scatter > max(JUMP * _median(scatter), nothing) for scatter in spreads], axis=0)
    moved = np.max([np.zeros_like(spreads[0]), *spreads[1:]], axis=0)
    allowed = np.maximum.reduce([ROOM * np.maximum(spreads[0], typical), ROOM_OF_MOVED * moved])
    allowed = np.maximum(allowed, nothing)
    gap = _gaps(actual, expected)
    outside = gap.max(axis=1) > allowed
    if outside.any():
        times = float((gap.max(axis=1)[outside] / allowed[outside]).max())
        rows = f"{outside.sum()} of {outside.size} rows"
        return f"{rows} are outside of the spread of right results, by {times:.1f} times"
    if np.sum(~undecided) < ENOUGH_ROWS:
        return ""
    steady = gap[~undecided]
    scatter = max(_root_mean_square(gap_of[~undecided]) for gap_of in (gaps if rounds else gaps[:1]))
    mean = _root_mean_square(steady)
    if mean > max(ROOM_OF_ALL * scatter, nothing):
        return f"off by {mean / scatter:.1f} times the spread of right results on average"
    columns = _root_mean_square(steady, 0) > np.maximum(ROOM * scatter, nothing)
    return f"column {np.argmax(columns)} is outside of the spread of right results" if columns.any() else ""


def _rows(array: np.ndarray) -> np.ndarray:
    """Convert to float64, as a matrix of rows along the last axis."""
    return array.astype(np.float64).reshape(-1, array.shape[-1] if array.ndim else 1)


def _gaps(actual: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Absolute differences [rows, columns]; infinite where only one is finite, or they are not the same infinity or
    NaN."""
    left, other = _rows(actual), _rows(expected)
    with np.errstate(invalid="ignore"):
        gap = np.where((left == other) | (np.isnan(left) & np.isnan(other)), 0.0, np.abs(left - other))
    return np.where(np.isnan(gap), np.inf, gap)


def _median(scatter: np.ndarray) -> float:
    finite = scatter[np.isfinite(scatter)]
    return float(np.median(finite)) if finite.size else np.inf


def _root_mean_square(gap: np.ndarray, axis: int | None = None) -> np.ndarray:
    return np.sqrt(np.mean(np.square(gap), axis=axis)) if gap.size else np.zeros(() if axis is None else gap.shape[1])
