"""The dense operators on a GPU, as tensor expressions that TVM schedules."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import onnx_ir as ir
from tvm import relax, te, tirx

from moec.errors import UnsupportedError
from moec.targets.tvm.attention import (
    AttentionInputs,
    AttentionProblem,
    attention_inputs,
    attention_problem,
    joined_heads,
)
from moec.targets.tvm.attributes import attribute, optional_input, required_input
from moec.targets.tvm.batches import as_batches, broadcast_shapes
from moec.targets.tvm.einsum import lower_einsum
from moec.targets.tvm.heavy import HeavyConverter, LoweringContext
from moec.targets.tvm.nodes import refuse_outputs, reshape, static_size, transpose

_LOWEST = -3.4028234e38
"""The score of a key that is not seen: finite, so that a row that sees none has no NaN."""


def lower_matmul(lowering: LoweringContext, node: ir.Node) -> relax.Expr:
    """ONNX MatMul: numpy's ``matmul``, vectors and broadcast batches included."""
    left, right = (lowering.tensor(required_input(node, position)) for position in (0, 1))
    return multiply(lowering, left, right)


def multiply(lowering: LoweringContext, left: relax.Expr, right: relax.Expr) -> relax.Expr:
    """``left[..., M, K] @ right[..., K, N]``, with sums in float32."""
    left_shape, right_shape = list(left.ty.shape), list(right.ty.shape)
    rows, columns = left_shape[:-1][-1:], right_shape[-1:] if len(right_shape) > 1 else []
    if len(left_shape) == 1:
        left = reshape(lowering, left, [1, *left_shape])
    if len(right_shape) == 1:
        right = reshape(lowering, right, [*right_shape, 1])
    batch = broadcast_shapes(left_shape[:-2], right_shape[:-2])
    factors = [as_batches(lowering, factor, batch) for factor in (left, right)]
    result = multiply_batches(lowering, *factors)
    return reshape(lowering, result, [*batch, *rows, *columns])


def multiply_batches(lowering: LoweringContext, left: relax.Expr, right: relax.Expr) -> relax.Var:
    """``left[B|1, M, K] @ right[B|1, K, N]``. Sizes are taken to be equal where ONNX demands it.

    TVM's own operator wants that proved."""
    dtype = str(left.ty.dtype)
    wide = "float32" if dtype in ("float16", "bfloat16") else dtype

    def build(x: te.Tensor, y: te.Tensor) -> te.Tensor:
        x_alone, y_alone = (static_size(factor.shape[0]) == 1 for factor in (x, y))
        inner = te.reduce_axis((0, x.shape[2]), name="inner")
        batches = y.shape[0] if x_alone else x.shape[0]
        sums = te.compute(
            (batches, x.shape[1], y.shape[2]),
            lambda b, m, n: te.sum(
                x[0 if x_alone else b, m, inner].astype(wide) * y[0 if y_alone else b, inner, n].astype(wide),
                axis=[inner],
            ),
            name="sums",
        )
        return te.compute(sums.shape, lambda *at: sums(*at).astype(dtype), name="product") if wide != dtype else sums

    return lowering.compute(build, [left, right], "matmul")[0]


def lower_gemm(lowering: LoweringContext, node: ir.Node) -> relax.Expr:
    """ONNX Gemm: ``alpha * A' @ B' + beta * C``, each of A' and B' transposed or not."""
    factors = []
    for position, flag in enumerate(("transA", "transB")):
        order = [1, 0] if attribute(node, flag, 0) else [0, 1]
        factors.append(transpose(lowering, lowering.tensor(required_input(node, position)), order))
    left, right = factors
    result = lowering.emit(multiply(lowering, left, right))
    given = optional_input(node, 2)
    result = _scaled(result, float(attribute(node, "alpha", 1.0)))
    if given is None:
        return result
    return relax.op.add(result, _scaled(lowering.tensor(given), float(attribute(node, "beta", 1.0))))


def _scaled(tensor: relax.Expr, factor: float) -> relax.Expr:
    return tensor if factor == 1.0 else relax.op.multiply(tensor, relax.const(factor, str(tensor.ty.dtype)))


def lower_softmax(lowering: LoweringContext, node: ir.Node) -> relax.Expr:
    """Softmax over any axis, in float32."""
    x = lowering.tensor(required_input(node, 0))
    return _in_float32(lowering, x, lambda wide: relax.op.nn.softmax(wide, axis=attribute(node, "axis", -1)))


def lower_layer_norm(lowering: LoweringContext, node: ir.Node) -> relax.Expr:
    """Opset 17 LayerNormalization in float32; only the first output is computed."""
    refuse_outputs(node, 1)
    x, scale, bias = lowering.tensor(required_input(node, 0)), required_input(node, 1), optional_input(node, 2)
    axes = _normalized_axes(node, x)
    epsilon = float(attribute(node, "epsilon", 1e-5))
    gamma = _parameter(lowering, scale, x, axes)
    beta = lowering.emit(relax.op.zeros_like(gamma)) if bias is None else _parameter(lowering, bias, x, axes)
    return _in_float32(lowering, x, lambda wide: relax.op.nn.layer_norm(wide, gamma, beta, axes, epsilon))


def lower_rms_norm(lowering: LoweringContext, node: ir.Node) -> relax.Expr:
    """Opset 23 RMSNormalization in float32."""
    x = lowering.tensor(required_input(node, 0))
    axes = _normalized_axes(node, x)
    epsilon = float(attribute(node, "epsilon", 1e-5))
    scale = _parameter(lowering, required_input(node, 1), x, axes)
    return _in_float32(lowering, x, lambda wide: relax.op.nn.rms_norm(wide, scale, axes, epsilon))


def _normalized_axes(node: ir.Node, x: relax.Expr) -> list[int]:
    rank = len(x.ty.shape)
    return list(range(int(attribute(node, "axis", -1)) % rank, rank))


def _parameter(lowering: LoweringContext, value: ir.Value, x: relax.Expr, axes: list[int]) -> relax.Expr:
    """A scale or bias in float32, with the shape of the normalised axes."""
    tensor = lowering.tensor(value)
    if str(tensor.ty.dtype) != "float32":
        tensor = lowering.emit(relax.op.astype(tensor, "float32"))
    shape = [x.ty.shape[axis] for axis in axes]
    if len(tensor.ty.shape) == len(shape):
        sizes = zip(tensor.ty.shape, shape, strict=True)
        if all(static_size(own) == static_size(wanted) != 1 for own, wanted in sizes):
            return tensor
    return lowering.emit(relax.op.broadcast_to(tensor, shape))


def _in_float32(lowering: LoweringContext, x: relax.Expr, compute: Any) -> relax.Expr:
    dtype = str(x.ty.dtype)
    if dtype == "float32":
        return compute(x)
    wide = lowering.emit(relax.op.astype(x, "float32"))
    return relax.op.astype(lowering.emit(compute(wide)), dtype)


def lower_attention(lowering: LoweringContext, node: ir.Node) -> list[relax.Expr]:
    """Result, present keys and present values; scores of all queries and keys are a tensor of their own."""
    refuse_outputs(node, 3)
    inputs = attention_inputs(lowering, node)
    problem = attention_problem(node, inputs)
    given = [one for one in (inputs.query, inputs.key, inputs.mask, inputs.lengths) if one is not None]
    (scores,) = lowering.compute(functools.partial(_scores, problem, inputs), given, "attention_scores")
    weights = lowering.emit(relax.op.nn.softmax(scores, axis=-1))
    dtype = str(inputs.query.ty.dtype)
    weighted = functools.partial(_weighted_values, problem, dtype)
    (result,) = lowering.compute(weighted, [weights, inputs.value], "attention_values")
    return [joined_heads(lowering, node, result), inputs.key, inputs.value]


def _scores(problem: AttentionProblem, inputs: AttentionInputs, query: Any, key: Any, *others: Any) -> te.Tensor:
    """[B, H, S, P] in float32: ``query @ key^T * scale``, capped and masked."""
    rest = list(others)
    mask = rest.pop(0) if inputs.mask is not None else None
    lengths = rest.pop(0) if inputs.lengths is not None else None
    batch, heads, queries, size = query.shape
    keys = key.shape[2]
    inner = te.reduce_axis((0, size), name="inner")
    products = te.compute(
        (batch, heads, queries, keys),
        lambda b, h, s, p: te.sum(
            query[b, h, s, inner].astype("float32") * key[b, h // problem.heads_per_group, p, inner].astype("float32"),
            axis=[inner],
        ),
        name="products",
    )

    def score(b: Any, h: Any, s: Any, p: Any) -> Any:
        value = products[b, h, s, p] * tirx.const(problem.scale, "float32")
        if problem.softcap > 0:
            cap = tirx.const(problem.softcap, "float32")
            value = cap * tirx.tanh(value / cap)
        seen = _seen(problem, lengths, queries, keys, b, s, p)
        if mask is not None:
            at = [0 if alone else index for alone, index in zip(problem.mask_broadcast, (b, h, s), strict=True)]
            if problem.mask == "bool":
                seen = tirx.all(seen, mask[(*at, p)]) if seen is not None else mask[(*at, p)]
            else:
                value = value + mask[(*at, p)].astype("float32")
        return value if seen is None else tirx.Select(seen, value, tirx.const(_LOWEST, "float32"))

    return te.compute((batch, heads, queries, keys), score, name="scores")


def _seen(problem: AttentionProblem, lengths: Any, queries: Any, keys: Any, b: Any, s: Any, p: Any) -> Any:
    """Whether query s sees key p; None where all see all."""
    in_use = None if lengths is None else lengths[b].astype("int64")
    offset = {"first": 0, "last": keys - queries, "lengths": None if in_use is None else in_use - queries}
    causal = p <= s + offset[problem.causal] if problem.causal else None
    used = p < in_use if in_use is not None else None
    conditions = [one for one in (causal, used) if one is not None]
    return functools.reduce(tirx.all, conditions) if conditions else None


def _weighted_values(problem: AttentionProblem, dtype: str, weights: Any, value: Any) -> te.Tensor:
    """[B, H, S, Dv]: ``weights @ value``."""
    batch, heads, queries, keys = weights.shape
    inner = te.reduce_axis((0, keys), name="inner")
    sums = te.compute(
        (batch, heads, queries, value.shape[3]),
        lambda b, h, s, d: te.sum(
            weights[b, h, s, inner] * value[b, h // problem.heads_per_group, inner, d].astype("float32"), axis=[inner]
        ),
        name="sums",
    )
    return te.compute(sums.shape, lambda *indices: sums(*indices).astype(dtype), name="values")


def _lower_einsum(lowering: LoweringContext, node: ir.Node) -> relax.Expr:
    return lower_einsum(lowering, node, functools.partial(multiply_batches, lowering))


def lower_convolution(lowering: LoweringContext, node: ir.Node) -> relax.Expr:
    """Conv with one or two spatial axes. Raises UnsupportedError for others, and for automatic padding."""
    x, weight = (lowering.tensor(required_input(node, position)) for position in (0, 1))
    spatial = len(x.ty.shape) - 2
    if spatial not in (1, 2) or attribute(node, "auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        raise UnsupportedError("expected one or two spatial axes, and explicit pads")
    options = {
        "strides": [int(stride) for stride in attribute(node, "strides", [1] * spatial)],
        "padding": [int(pad) for pad in attribute(node, "pads", [0] * 2 * spatial)],
        "dilation": [int(step) for step in attribute(node, "dilations", [1] * spatial)],
        "groups": int(attribute(node, "group", 1)),
    }
    convolve = relax.op.nn.conv1d if spatial == 1 else relax.op.nn.conv2d
    result = lowering.emit(convolve(x, weight, **options))
    bias = optional_input(node, 2)
    if bias is None:
        return result
    shape = [1, weight.ty.shape[0], *[1] * spatial]
    return relax.op.add(result, relax.op.reshape(lowering.tensor(bias), shape))


CONVERTERS: Mapping[str, HeavyConverter] = {
    "Attention": lower_attention,
    "Conv": lower_convolution,
    "Einsum": _lower_einsum,
    "Gemm": lower_gemm,
    "LayerNormalization": lower_layer_norm,
    "MatMul": lower_matmul,
    "RMSNormalization": lower_rms_norm,
    "Softmax": lower_softmax,
}
