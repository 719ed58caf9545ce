"""Operators that extend a random graph: one function for each family."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .graph_drafts import Draft, Impossible, Proposal
from .graphs import Value

_NUMBERS = "fiu"
"""The kinds of their element types."""
_ROUNDED = ("Exp", "Log", "Sqrt", "Sigmoid", "Tanh", "Erf", "Softplus", "Softsign", "Elu", "Gelu", "Reciprocal")
_EXACT = ("Neg", "Abs", "Relu", "Identity")
_STEPPED = ("Floor", "Ceil", "Round", "Sign", "IsNaN", "IsInf")


def unary(draft: Draft) -> Proposal:
    op_type = draft.one_of(*_ROUNDED, *_EXACT, *_STEPPED, "LeakyRelu", "HardSigmoid", "Not", "Not")
    if op_type == "Not":
        return Proposal(op_type, [draft.pick("b")])
    x = draft.pick("f" if op_type not in ("Neg", "Abs", "Identity", "Sign") else _NUMBERS)
    return Proposal(op_type, [x], exact=op_type in (*_EXACT, *_STEPPED), steps=op_type in _STEPPED)


def binary(draft: Draft) -> Proposal:
    op_type = draft.one_of("Add", "Sub", "Mul", "Mul", "Div", "Max", "Min", "Pow", "PRelu")
    x = draft.pick(_NUMBERS if op_type not in ("PRelu", "Pow") else "f")
    y = draft.pick(like=x)
    if op_type == "Div":  # of integers towards zero, and a divisor that is nearly zero says nothing of rounding
        numbers = [np.abs(array.astype(np.float64)) for array in y.arrays]
        if any((array[~np.isnan(array)] < 0.25).any() for array in numbers):
            raise Impossible
    if op_type == "Pow":
        y = draft.constant(draft.one_of(2.0, 3.0, 0.5, 1.0, 0.0, -1.0), x.dtype)
    return Proposal(op_type, [x, y], exact=op_type not in ("Div", "Pow"))


def variadic(draft: Draft) -> Proposal:
    op_type = draft.one_of("Max", "Min", "Sum", "Mean")
    x = draft.pick("f")
    return Proposal(op_type, [x, draft.pick(like=x), draft.pick(like=x)], exact=op_type != "Mean")


def modulo(draft: Draft) -> Proposal:
    x = draft.pick("if")
    divisor = draft.constant(draft.one_of(2, 3, -3, 5), x.dtype)
    return Proposal("Mod", [x, divisor], {"fmod": 1 if x.dtype.kind == "f" else draft.one_of(0, 1)}, steps=True)


def comparison(draft: Draft) -> Proposal:
    x = draft.pick(_NUMBERS)
    op_type = draft.one_of("Equal", "Greater", "Less", "GreaterOrEqual", "LessOrEqual")
    return Proposal(op_type, [x, draft.pick(like=x)], steps=True)


def logical(draft: Draft) -> Proposal:
    return Proposal(draft.one_of("And", "Or", "Xor"), [draft.pick("b"), draft.pick("b")])


def where(draft: Draft) -> Proposal:
    x = draft.pick()
    return Proposal("Where", [draft.pick("b"), x, draft.pick(like=x)])


def cast(draft: Draft) -> Proposal:
    from onnx import TensorProto

    x = draft.pick()
    target = draft.one_of("FLOAT", "FLOAT", "INT64", "INT32", "BOOL", "FLOAT16", "DOUBLE", "UINT8", "INT8")
    to_float = target in ("FLOAT", "FLOAT16", "DOUBLE")
    if x.dtype.kind == "f" and not to_float and any(not np.isfinite(array).all() for array in x.arrays):
        raise Impossible  # no integer is right
    if target in ("UINT8", "INT8") and any(((array < 0) | (array > 127)).any() for array in x.arrays):
        raise Impossible
    return Proposal("Cast", [x], {"to": getattr(TensorProto, target)}, steps=not to_float)


def clip(draft: Draft) -> Proposal:
    x = draft.pick(_NUMBERS)
    low = draft.constant(draft.one_of(-2, 0, 3), x.dtype) if draft.chance(0.7) else None
    high = draft.constant(draft.one_of(-1, 1, 4), x.dtype) if draft.chance(0.7) else None
    return Proposal("Clip", [x, low, high])


def concat(draft: Draft) -> Proposal:
    x = draft.pick(rank=1)
    axis = draft.axis(x)
    return Proposal("Concat", [x, draft.pick(like=x), *([x] if draft.chance(0.3) else [])], {"axis": axis})


def split(draft: Draft) -> Proposal:
    x = draft.pick(rank=1)
    axis = draft.axis(x)
    size = x.shape[axis]
    if isinstance(size, int) and draft.chance(0.5):
        first = int(draft.generator.integers(size + 1))
        return Proposal("Split", [x, draft.constant([first, size - first])], {"axis": axis}, outputs=2)
    return Proposal("Split", [x, None], {"axis": axis, "num_outputs": 2}, outputs=2)


def slice_(draft: Draft) -> Proposal:
    """Bounds from far before to far behind, constant or given in each run."""
    x = draft.pick(rank=1)
    axis = draft.axis(x)
    step = draft.one_of(1, 1, 1, 2, -1, -1, -2, 3)
    far = np.iinfo(np.int64).max if step > 0 else 1000  # backwards, onnxruntime takes the largest for the very front
    bounds = [-far, -100, -3, -2, -1, 0, 1, 2, 3, 100, far]
    start, end = ([int(draft.one_of(*bounds)) for _ in range(draft.runs)] for _ in range(2))
    if draft.chance(0.5):
        starts, ends = draft.fed(lambda run: [start[run]]), draft.fed(lambda run: [end[run]])
    else:
        starts, ends = draft.constant(start[:1]), draft.constant(end[:1])
    return Proposal("Slice", [x, starts, ends, draft.constant([axis]), draft.constant([step])])


def _indices(draft: Draft, sizes: Sequence[int], shape: Callable[[int], Sequence[int]]) -> Value:
    """Indices below the sizes of each run, negative ones among them; where there is no element, zeros."""

    def make(run: int) -> Any:
        size = max(1, sizes[run])
        return draft.generator.integers(-size, size, tuple(shape(run)))

    return draft.fed(make, draft.one_of(np.int64, np.int64, np.int32))


def gather(draft: Draft) -> Proposal:
    x = draft.pick(rank=1)
    axis = draft.axis(x)
    sizes = [array.shape[axis] for array in x.arrays]
    shape = draft.one_of((), (1,), (3,), (2, 2), (0,))
    if draft.chance(0.3):
        index = draft.constant(draft.generator.integers(-1, 1, shape))
        return Proposal("Gather", [x, index], {"axis": axis})
    return Proposal("Gather", [x, _indices(draft, sizes, lambda _: shape)], {"axis": axis})


def gather_elements(draft: Draft) -> Proposal:
    x = draft.pick(rank=1)
    axis = draft.axis(x)
    sizes = [array.shape[axis] for array in x.arrays]
    return Proposal("GatherElements", [x, _along(draft, x, axis, sizes)], {"axis": axis})


def _along(draft: Draft, x: Value, axis: int, sizes: Sequence[int]) -> Value:
    """Indices as many as x has elements, or two along the axis."""
    whole = draft.chance(0.5)

    def shape(run: int) -> list[int]:
        results = list(x.arrays[run].shape)
        return results if whole else [*results[: axis % x.rank], 2, *results[axis % x.rank + 1 :]]

    return _indices(draft, sizes, shape)


def gather_nd(draft: Draft) -> Proposal:
    x = draft.pick(rank=1)
    smallest = [min(array.shape[:1]) for array in x.arrays]
    return Proposal("GatherND", [x, _indices(draft, smallest, lambda _: (2, 1))])


def scatter_elements(draft: Draft) -> Proposal:
    """No index twice, for onnxruntime does not say which update wins."""
    x = draft.pick(_NUMBERS, rank=1)
    axis = draft.axis(x)
    sizes = [array.shape[axis] for array in x.arrays]

    def one_each(run: int) -> Any:
        shape = list(x.arrays[run].shape)
        shape[axis] = min(1, shape[axis])
        return draft.generator.integers(-max(1, sizes[run]), max(1, sizes[run]), shape)

    index = draft.fed(one_each)
    updates = draft.fed(lambda run: draft.generator.integers(-4, 5, index.arrays[run].shape), x.dtype)
    return Proposal("ScatterElements", [x, index, updates], {"axis": axis, "reduction": _reduction(draft, x)})


def _reduction(draft: Draft, x: Value) -> str:
    """Select a reduction. With NaN, onnxruntime's max and min return something else than NaN."""
    return draft.one_of("none", "add", "mul", *(() if _has_nan(x) else ("max", "min")))


def _has_nan(x: Value) -> bool:
    return any(np.isnan(array).any() for array in x.arrays)


def scatter_nd(draft: Draft) -> Proposal:
    x = draft.pick(_NUMBERS, rank=1)
    sizes = [array.shape[0] for array in x.arrays]
    index = _indices(draft, sizes, lambda _: (1, 1))
    updates = draft.fed(lambda run: draft.generator.integers(-4, 5, (1, *x.arrays[run].shape[1:])), x.dtype)
    return Proposal("ScatterND", [x, index, updates], {"reduction": _reduction(draft, x)})


def reshape(draft: Draft) -> Proposal:
    """To constants with 0 and -1, or to sizes that arrive when the model runs."""
    x = draft.pick()
    targets = [[-1], [0, -1], [-1, 1], [1, -1], [-1, 2], [0, 0, -1], [2, -1, 2], [0, 1, -1], [-1, 4]]
    target = draft.one_of(*targets)
    if draft.chance(0.3):
        shapes = [[size if size > 0 or draft.chance(0.5) else -1 for size in array.shape[::-1]] for array in x.arrays]
        return Proposal("Reshape", [x, draft.fed(lambda run: shapes[run])], {"allowzero": draft.one_of(0, 1)})
    shape = draft.fed(lambda _: target) if draft.chance(0.3) else draft.constant(target)
    return Proposal("Reshape", [x, shape])


def layout(draft: Draft) -> Proposal:
    op_type = draft.one_of("Flatten", "Squeeze", "Unsqueeze", "Transpose", "Transpose", "Tile", "Trilu")
    x = draft.pick(rank={"Trilu": 2, "Transpose": 1, "Tile": 1}.get(op_type, 0))
    if op_type == "Flatten":
        return Proposal(op_type, [x], {"axis": int(draft.generator.integers(-x.rank, x.rank + 1))})
    if op_type == "Squeeze":
        return Proposal(op_type, [x, draft.constant([draft.axis(x)]) if draft.chance(0.8) else None])
    if op_type == "Unsqueeze":
        return Proposal(op_type, [x, draft.constant([int(draft.generator.integers(-x.rank - 1, x.rank + 1))])])
    if op_type == "Transpose":
        return Proposal(op_type, [x], {"perm": [int(axis) for axis in draft.generator.permutation(x.rank)]})
    if op_type == "Trilu":
        return Proposal(op_type, [x, draft.constant(draft.one_of(0, 1, -1, 9))], {"upper": draft.one_of(0, 1)})
    repeats = [draft.one_of(1, 1, 2, 0) for _ in range(x.rank)]
    return Proposal(op_type, [x, draft.constant(np.array(repeats))])


def expand(draft: Draft) -> Proposal:
    x = draft.pick()
    other = draft.pick()
    if draft.chance(0.4):
        return Proposal("Expand", [x, draft.fed(lambda run: other.arrays[run].shape)])
    return Proposal("Expand", [x, draft.constant(draft.one_of([2, 1], [3, 1, 1], [1], [4], [0, 1]))])


def pad(draft: Draft) -> Proposal:
    """Also by less than nothing, and by numbers that arrive when the model runs."""
    x = draft.pick(_NUMBERS, rank=1)
    mode = draft.one_of("constant", "constant", "constant", "edge", "reflect", "wrap")
    low = -1 if mode == "constant" else 0
    amounts = [draft.generator.integers(low, 3, 2 * x.rank) for _ in range(draft.runs)]
    pads = draft.fed(lambda run: amounts[run]) if draft.chance(0.3) else draft.constant(amounts[0])
    value = draft.constant(draft.one_of(0, 3, -1), x.dtype) if mode == "constant" and draft.chance(0.5) else None
    return Proposal("Pad", [x, pads, value], {"mode": mode})


_SUMS = ("ReduceSum", "ReduceMax", "ReduceMin", "ReduceSumSquare", "ReduceL1")
_REDUCTIONS = (*_SUMS, "ReduceMean", "ReduceProd", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp")


def reduction(draft: Draft) -> Proposal:
    op_type = draft.one_of(*_REDUCTIONS)
    x = draft.pick(_NUMBERS if op_type in _SUMS else "f")
    count = int(draft.generator.integers(x.rank + 1))
    axes = [int(axis) for axis in draft.generator.choice(x.rank, count, replace=False)] if x.rank else []
    attributes = {"keepdims": draft.one_of(0, 1), "noop_with_empty_axes": draft.one_of(0, 0, 0, 1)}
    if op_type == "ReduceMean" and any(array.size == 0 for array in x.arrays):
        raise Impossible  # the mean of nothing: zero to onnxruntime, not a number to others
    if op_type in ("ReduceMax", "ReduceMin", "ReduceLogSumExp") and _has_nan(x):
        raise Impossible  # NaN among others: onnxruntime returns it or not by where it stands, or what else there is
    given = draft.constant(np.array(axes, np.int64)) if axes or draft.chance(0.5) else None
    return Proposal(op_type, [x, given], attributes, exact=op_type in _SUMS)


def arg(draft: Draft) -> Proposal:
    x = _ordered(draft)
    attributes = {"axis": draft.axis(x), "keepdims": draft.one_of(0, 1), "select_last_index": draft.one_of(0, 0, 1)}
    return Proposal(draft.one_of("ArgMax", "ArgMin"), [x], attributes, steps=True)


def top_k(draft: Draft) -> Proposal:
    x = _ordered(draft)
    axis = draft.axis(x)
    most = min(array.shape[axis] for array in x.arrays)
    count = int(draft.generator.integers(most + 1))
    k = draft.fed(lambda _: [count]) if draft.chance(0.3) else draft.constant([count])
    return Proposal("TopK", [x, k], {"axis": axis, "largest": draft.one_of(1, 1, 0)}, outputs=2, steps=True)


def _ordered(draft: Draft) -> Value:
    """Without what is not a number, whose place ONNX does not say."""
    x = draft.pick(_NUMBERS, rank=1)
    if _has_nan(x):
        raise Impossible
    return x


def running(draft: Draft) -> Proposal:
    x = draft.pick(_NUMBERS, rank=1)
    attributes = {"exclusive": draft.one_of(0, 1), "reverse": draft.one_of(0, 1)}
    return Proposal("CumSum", [x, draft.constant(draft.axis(x))], attributes)


def softmax(draft: Draft) -> Proposal:
    x = draft.pick("f", rank=1)
    if x.dtype.itemsize == 8 and any((np.isnan(array) | (array == np.inf)).any() for array in x.arrays):
        raise Impossible  # to onnxruntime, in float64 alone, a row with NaN or infinity is not all NaN
    return Proposal(draft.one_of("Softmax", "Softmax", "LogSoftmax"), [x], {"axis": draft.axis(x)}, exact=False)


def normalization(draft: Draft) -> Proposal:
    x = draft.pick("f", rank=1)
    scale = draft.constant([1.0], x.dtype)
    return Proposal("LayerNormalization", [x, scale], {"axis": -1, "epsilon": 0.1}, exact=False)


def product(draft: Draft) -> Proposal:
    x = draft.pick("f", rank=1)
    if x.dtype.itemsize != 4:
        raise Impossible
    y = draft.pick(like=x, rank=1)
    if draft.chance(0.5):  # with a matrix that fits
        inner = x.shape[-1]
        if not isinstance(inner, int):
            inner = 1
        y = draft.constant(draft.generator.integers(-2, 3, (inner, draft.one_of(3, 1, 5))), x.dtype)
    elif draft.chance(0.5):  # with its own transpose
        order = [*range(x.rank - 2), x.rank - 1, x.rank - 2] if x.rank > 1 else [0]
        if draft.apply(Proposal("Transpose", [x], {"perm": order})):
            y = draft.values[-1]
    return Proposal("MatMul", [x, y])


def gemm(draft: Draft) -> Proposal:
    x = draft.pick("f", rank=2)
    if x.dtype.itemsize != 4 or x.rank != 2:
        raise Impossible
    swapped = draft.one_of(0, 1)
    inner = x.shape[0 if swapped else 1]
    y = draft.constant(draft.generator.integers(-2, 3, (inner, 3)), x.dtype) if isinstance(inner, int) else x
    attributes = {"transA": swapped, "transB": 0 if isinstance(inner, int) else 1 - swapped, "alpha": 0.5, "beta": 2.0}
    return Proposal("Gemm", [x, y, draft.constant([1.0], x.dtype) if draft.chance(0.5) else None], attributes)


def shapes(draft: Draft) -> Proposal:
    x = draft.pick()
    if draft.chance(0.3):
        return Proposal("Size", [x])
    start = int(draft.generator.integers(-x.rank - 1, x.rank + 1))
    return Proposal("Shape", [x], {"start": start} if draft.chance(0.5) else {})


def made(draft: Draft) -> Proposal:
    op_type = draft.one_of("ConstantOfShape", "Range", "OneHot", "Range")
    if op_type == "ConstantOfShape":
        other = draft.pick()
        return Proposal(op_type, [draft.fed(lambda run: other.arrays[run].shape)])
    if op_type == "OneHot":
        index = draft.pick("iu")
        depth = draft.constant(draft.one_of(3, 1, 5))
        return Proposal(op_type, [index, depth, draft.constant([0, 1], np.float32)], {"axis": draft.one_of(-1, 0)})
    dtype = draft.one_of(np.int64, np.float32)
    start, step = draft.one_of(0, 3, -2), draft.one_of(1, 2, -1)
    limits = [int(draft.one_of(0, 1, 5, -4)) for _ in range(draft.runs)]
    limit = draft.fed(lambda run: limits[run], dtype)
    return Proposal("Range", [draft.constant(start, dtype), limit, draft.constant(step, dtype)])


FAMILIES: list[Callable[[Draft], Proposal]] = [
    unary, unary, *[binary] * 8, variadic, modulo, comparison, logical, where, where, cast, cast, clip,
    concat, concat, split, slice_, slice_, gather, gather, gather_elements, gather_nd, scatter_elements, scatter_nd,
    reshape, reshape, layout, layout, layout, expand, pad, pad, reduction, reduction, reduction, arg, top_k, running,
    softmax, normalization, product, product, gemm, shapes, made,
]  # fmt: skip
