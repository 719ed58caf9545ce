"""Numpy operators that the interpreter adds to, or puts in place of, those of ``onnx.reference``.

One table, (domain, operator) → function. Three kinds of entries: the moec dialect, onnxruntime's own operators, and
ONNX operators whose reference implementation is wrong, missing or hopelessly slow for what expert loops do (thousands
of gathered and scattered rows, none at all for an expert without tokens).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from onnx.reference.op_run import OpRun

from moec.ir import contrib, contrib_attention, contrib_quantized, dialect, semantics, semantics_dispatch
from moec.ir.attention import attention
from moec.ir.linear_attention import linear_attention
from moec.ir.loops import Loop, Scan
from moec.ir.products import product, round_rows
from moec.ir.recurrent import recurrent

Array = np.ndarray[Any, Any]


def _spec(kind: type, attributes: dict[str, Any]) -> Any:
    names = {field.name for field in dataclasses.fields(kind)}
    fields = {name: value for name, value in attributes.items() if name in names}
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()})


def _route(*inputs: Array | None, **attributes: Any) -> tuple[Array, Array]:
    return semantics.route(_spec(dialect.RouteSpec, attributes), *inputs)


def _experts(*inputs: Array | None, **attributes: Any) -> Array:
    return semantics.experts(_spec(dialect.ExpertsSpec, attributes), *inputs)


def _moe(*inputs: Array | None, **attributes: Any) -> Array:
    specs = (_spec(kind, attributes) for kind in dialect.SPECS["MoE"])
    return semantics.moe(*specs, *inputs)


def _dispatch(*inputs: Array, **attributes: Any) -> tuple[Array, ...]:
    return semantics_dispatch.dispatch(_spec(dialect.DispatchSpec, attributes), *inputs)


def _grouped_matmul(*inputs: Array | None, **attributes: Any) -> Array:
    return semantics_dispatch.grouped_matmul(_spec(dialect.ProductSpec, attributes), *inputs)


def _linear(*inputs: Array | None, **attributes: Any) -> Array:
    return semantics.linear(_spec(dialect.LinearSpec, attributes), *inputs)


def gather_nd(data: Array, indices: Array, *, batch_dims: int = 0) -> Array:
    """Slices of ``data`` at the tuples in the last axis of ``indices``."""
    batch = np.indices(indices.shape[:-1], sparse=True)[:batch_dims]
    return data[(*batch, *np.moveaxis(indices, -1, 0))]


_REDUCTIONS: dict[str, np.ufunc] = {"add": np.add, "mul": np.multiply, "max": np.maximum, "min": np.minimum}


def _scatter(data: Array, position: tuple[Array, ...], updates: Array, reduction: str | None) -> Array:
    output = data.copy()
    if reduction in (None, "none"):
        output[position] = updates
    else:
        _REDUCTIONS[reduction].at(output, position, updates)
    return output


def scatter_nd(data: Array, indices: Array, updates: Array, *, reduction: str | None = None) -> Array:
    """``data`` with slices replaced by, or combined with, ``updates``."""
    return _scatter(data, tuple(np.moveaxis(indices, -1, 0)), updates, reduction)


def _along(indices: Array, axis: int) -> tuple[Array, ...]:
    """The position of every element of ``indices``, whose own value is the coordinate along ``axis``."""
    position = list(np.indices(indices.shape, sparse=True))
    position[axis] = indices
    return tuple(position)


def matmul(a: Array, b: Array) -> Array:
    """The product of ``a`` and ``b``. Where one is narrower, it is converted piece by piece: numpy would convert all of
    it at once, and stacked weights may be most of a model."""
    if a.dtype == b.dtype or min(a.ndim, b.ndim) < 2:
        return np.matmul(a, b).astype(np.result_type(a, b), copy=False)
    leading = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    left, right = (np.broadcast_to(matrix, (*leading, *matrix.shape[-2:])) for matrix in (a, b))
    result = np.empty((*leading, a.shape[-2], b.shape[-1]), np.result_type(a, b))
    for index in np.ndindex(*leading):
        if a.dtype == result.dtype:
            result[index] = product(left[index], right[index])
        else:
            result[index] = product(right[index].T, left[index].T).T
    return result


def scatter_elements(
    data: Array, indices: Array, updates: Array, *, axis: int = 0, reduction: str | None = None
) -> Array:
    return _scatter(data, _along(indices, axis), updates, reduction)


def gather_elements(data: Array, indices: Array, *, axis: int = 0) -> Array:
    return data[_along(indices, axis)]


def top_k(x: Array, k: Array, *, axis: int = -1, largest: int = 1, sorted: int = 1) -> tuple[Array, Array]:
    """Values and ids of the k largest (or smallest) entries, ordered, equal ones by id; NaN is never preferred."""
    keys = x if x.dtype.kind in "iu" else np.where(np.isnan(x), -np.inf if largest else np.inf, x)
    if not largest:
        order = np.argsort(keys, axis=axis, kind="stable")
    else:  # a stable descending order: sort the reversed array ascending, then read both backwards
        size = x.shape[axis]
        order = size - 1 - np.flip(np.argsort(np.flip(keys, axis), axis=axis, kind="stable"), axis)
    ids = np.take(order, np.arange(int(k.item())), axis=axis)
    return np.take_along_axis(x, ids, axis=axis), ids.astype(np.int64)


def one_hot(indices: Array, depth: Array, values: Array, *, axis: int = -1) -> Array:
    """``values[1]`` at the index, ``values[0]`` elsewhere; indices outside [-depth, depth) select nothing."""
    size = int(depth.item())
    wrapped = np.expand_dims(np.where(indices < 0, indices + size, indices), axis)
    shape = [1] * wrapped.ndim
    shape[axis] = size
    return np.where(wrapped == np.arange(size).reshape(shape), values[1], values[0])


def slice_(data: Array, starts: Array, ends: Array, axes: Array | None = None, steps: Array | None = None) -> Array:
    """Ranges along some axes. Where numpy walks back from before the front it takes nothing, ONNX the first element:
    bounds are clamped to [0, size - 1] for the start of a negative step, [-1, size - 1] for its end."""
    given_axes = range(len(starts)) if axes is None else [int(axis) for axis in axes]
    given_steps = [1] * len(starts) if steps is None else [int(step) for step in steps]
    index = [slice(None)] * data.ndim
    for start, end, axis, step in zip(starts.tolist(), ends.tolist(), given_axes, given_steps, strict=True):
        size = data.shape[axis]
        if step < 0:
            start = min(max(start + size if start < 0 else start, 0), size - 1)
            end = min(max(end + size if end < 0 else end, -1), size - 1)
            index[axis] = slice(start, None if end < 0 else end, step) if size else slice(0)
        else:
            index[axis] = slice(start, end, step)
    return data[tuple(index)]


def lp_normalization(x: Array, *, axis: int = -1, p: int = 2) -> Array:
    """Rows over their norm; rows of norm 0 become 0. (That of ``onnx.reference`` sums without absolute values.)"""
    norm = np.linalg.norm(x, p, axis, keepdims=True)
    return np.divide(x, norm, out=np.zeros_like(x), where=norm != 0)


def lrn(x: Array, *, size: int, alpha: float = 1e-4, beta: float = 0.75, bias: float = 1.0) -> Array:
    """Over neighbouring channels. (That of ``onnx.reference`` looks at as many channels as there are images.)"""
    squares = np.zeros_like(x)
    for channel in range(x.shape[1]):
        first = max(0, channel - (size - 1) // 2)
        squares[:, channel] = np.square(x[:, first : channel + size // 2 + 1]).sum(1)
    return (x / (bias + alpha / size * squares) ** beta).astype(x.dtype)


def _wide(x: Array) -> Array:
    """Floats narrower than 32 bits as float32, in which they are computed."""
    return x.astype(np.float32) if x.dtype.itemsize < 4 else x


def softmax(x: Array, *, axis: int = -1) -> Array:
    """Softmax, at least in float32. (``onnx.reference`` rounds its sums to float16.)"""
    return semantics.softmax(_wide(x), axis).astype(x.dtype)


def log_softmax(x: Array, *, axis: int = -1) -> Array:
    """Relative to the largest entry, which no exponential then exceeds. (That of ``onnx.reference`` takes the logarithm
    of Softmax, which is -inf where that is too small for a float.)"""
    if x.size == 0:
        return x
    wide = _wide(x)
    shifted = wide - wide.max(axis, keepdims=True)
    return (shifted - np.log(np.exp(shifted).sum(axis, keepdims=True))).astype(x.dtype)


def _reduced(x: Array, axes: Array | None, noop_with_empty_axes: int) -> tuple[int, ...]:
    if axes is None or len(axes) == 0:
        return () if noop_with_empty_axes else tuple(range(x.ndim))
    return tuple(int(axis) for axis in axes)


def reduce_log_sum_exp(
    x: Array, axes: Array | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0
) -> Array:
    """Relative to the largest entry, where that is finite. (That of ``onnx.reference`` makes NaN of -inf alone.)"""
    along, wide = _reduced(x, axes, noop_with_empty_axes), _wide(x)
    largest = wide.max(along, keepdims=True, initial=-np.inf)
    largest = np.where(np.isfinite(largest), largest, 0).astype(wide.dtype)
    result = np.log(np.exp(wide - largest).sum(along, keepdims=True)) + largest
    return (result if keepdims else result.squeeze(along)).astype(x.dtype)


def reduce_sum_square(
    x: Array, axes: Array | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0
) -> Array:
    """The sum of squares, in the element type. (That of ``onnx.reference`` makes int64 of int32.)"""
    along = _reduced(x, axes, noop_with_empty_axes)
    return np.asarray(np.square(x).sum(along, x.dtype, keepdims=bool(keepdims)))


def power(base: Array, exponent: Array) -> Array:
    """Power in float64 if the base is a float. For a single exponent of 0.5 numpy would otherwise take the square root,
    which is wrong for -inf and -0."""
    if base.dtype.kind in "iu":
        return np.power(base, exponent).astype(base.dtype)
    return np.float_power(base.astype(np.float64), exponent.astype(np.float64)).astype(base.dtype)


def prelu(x: Array, slope: Array) -> Array:
    """PRelu. (``onnx.reference`` broadcasts x too, and multiplies numbers that are not negative by the slope, which may
    be NaN.)"""
    return np.where(x < 0, x * np.broadcast_to(slope, x.shape), x).astype(x.dtype)


def layer_normalization(
    x: Array, scale: Array, bias: Array | None = None, *, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1
) -> tuple[Array, Array, Array]:
    """Statistics in float32 at least. (That of ``onnx.reference`` rounds every step to float16.)"""
    return contrib.normalize(x, scale, bias, epsilon, axis, centred=True)


def rms_normalization(x: Array, scale: Array, *, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1) -> Array:
    """Statistics in float32 at least. (Squares overflow in that of ``onnx.reference`` in float16.)"""
    return contrib.normalize(x, scale, None, epsilon, axis, centred=False)[0]


def gelu(x: Array, *, approximate: str = "none") -> Array:
    return semantics.gelu_tanh(x) if approximate == "tanh" else semantics.gelu(x)


OPERATORS: dict[tuple[str, str], Callable[..., Any]] = {
    ("moec", "Route"): _route,
    ("moec", "Experts"): _experts,
    ("moec", "Dispatch"): _dispatch,
    ("moec", "GroupedMatMul"): _grouped_matmul,
    ("moec", "Combine"): semantics_dispatch.combine,
    ("moec", "Linear"): _linear,
    ("moec", "Expect"): lambda x, experts, weights: x,
    ("moec", "Absent"): lambda logits, weights: np.zeros(logits.shape[1], np.float32),
    ("moec", "MoE"): _moe,
    ("moec", "RoundRows"): round_rows,
    ("moec", "SendRows"): lambda x, experts, weights=None, *, layer: np.zeros(1, np.int32),
    ("moec", "ReceiveRows"): lambda sent, x, experts, weights=None, *, layer: semantics_dispatch.receive_rows(
        x, experts, weights
    ),
    ("moec", "ReturnRows"): lambda results, experts, *, layer: semantics_dispatch.return_rows(results, experts),
    ("com.microsoft", "BiasGelu"): contrib.bias_gelu,
    ("com.microsoft", "CausalConvWithState"): contrib.causal_conv_with_state,
    ("com.microsoft", "FastGelu"): contrib.fast_gelu,
    ("com.microsoft", "FusedMatMul"): contrib.fused_matmul,
    ("com.microsoft", "Gelu"): semantics.gelu,
    ("com.microsoft", "GroupQueryAttention"): contrib_attention.group_query_attention,
    ("com.microsoft", "LinearAttention"): linear_attention,
    ("com.microsoft", "MatMulNBits"): contrib_quantized.matmul_n_bits,
    ("com.microsoft", "MoE"): contrib.moe,
    ("com.microsoft", "QMoE"): contrib_quantized.qmoe,
    ("com.microsoft", "QuickGelu"): contrib.quick_gelu,
    ("com.microsoft", "SkipLayerNormalization"): contrib.skip_layer_normalization,
    ("com.microsoft", "SkipSimplifiedLayerNormalization"): contrib.skip_simplified_layer_normalization,
    ("", "SimplifiedLayerNormalization"): contrib.simplified_layer_normalization,
    ("", "Attention"): attention,
    ("", "Erf"): semantics.erf,
    ("", "GRU"): functools.partial(recurrent, "GRU"),
    ("", "GatherElements"): gather_elements,
    ("", "GatherND"): gather_nd,
    ("", "Gelu"): gelu,
    ("", "LRN"): lrn,
    ("", "LSTM"): functools.partial(recurrent, "LSTM"),
    ("", "LayerNormalization"): layer_normalization,
    ("", "LinearAttention"): linear_attention,
    ("", "LogSoftmax"): log_softmax,
    ("", "LpNormalization"): lp_normalization,
    ("", "MatMul"): matmul,
    ("", "OneHot"): one_hot,
    ("", "PRelu"): prelu,
    ("", "RNN"): functools.partial(recurrent, "RNN"),
    ("", "RMSNormalization"): rms_normalization,
    ("", "Pow"): power,
    ("", "ReduceLogSumExp"): reduce_log_sum_exp,
    ("", "ReduceSumSquare"): reduce_sum_square,
    ("", "ScatterElements"): scatter_elements,
    ("", "ScatterND"): scatter_nd,
    ("", "Slice"): slice_,
    ("", "Softmax"): softmax,
    ("", "TopK"): top_k,
}


def _as_python(value: Any) -> Any:
    """A float32 attribute as a Python float, which does not widen the arrays it meets."""
    return float(value) if isinstance(value, np.floating) else value


def _operator_class(domain: str, name: str, function: Callable[..., Any]) -> type[OpRun]:
    def run(self: OpRun, *inputs: Array | None, **attributes: Any) -> tuple[Any, ...]:
        attributes_given = {key: _as_python(value) for key, value in attributes.items() if value is not None}
        results = function(*inputs, **attributes_given)
        return results if isinstance(results, tuple) else (results,)

    members: dict[str, Any] = {"op_domain": domain, "_run": run}
    if domain != "":  # onnx.reference looks schemas up by name alone and would find ONNX's operator of the same name
        members["op_schema"] = None
    return type(name, (OpRun,), members)


OPERATOR_CLASSES: list[type[OpRun]] = [
    *(_operator_class(*key, function) for key, function in OPERATORS.items()),
    Loop,
    Scan,
]
"""The table in the form that ``onnx.reference.ReferenceEvaluator`` takes as ``new_ops``."""
