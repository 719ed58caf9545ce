"""The sides of each operator's decisions.

A clamp, a comparison or a selection computes different things on its two sides. A run shows only the sides that its
data reaches. ``sides(node)`` returns the sides of a node, each as one of the kinds of :mod:`moec.ir.kinds`.

Operators without decisions (products, sums, smooth functions, moves of data) are listed by name. An operator in neither
table counts as one whose sides are never all seen.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from moec.ir.graphs import nested_graphs
from moec.ir.sides import OUTPUT, Array, Compares, Condition, Given, Never, Rounds, Varies


def _between(*places: int) -> tuple[Condition, ...]:
    pairs = itertools.pairwise(places)
    return tuple(Compares(left, relation, right) for left, right in pairs for relation in "<>")


def _at(*breaks: float) -> tuple[Condition, ...]:
    return tuple(Compares(0, relation, number, number=True) for number in breaks for relation in "<>")


_TRUTH = (Compares(OUTPUT, "==", 1, number=True), Compares(OUTPUT, "==", 0, number=True))
_CONDITION = (Compares(0, "==", 1, number=True), Compares(0, "==", 0, number=True))
_NONZERO = (Compares(0, "!=", 0, number=True), Compares(0, "==", 0, number=True))
_BELOW = (Compares(0, "<", 1), Compares(0, ">=", 1))
_ABOVE = (Compares(0, ">", 1), Compares(0, "<=", 1))


STEPS = 4
"""Number of different results that a rounding to steps has to show, if it has that many."""


def _result(inputs: Given, outputs: Given) -> Array | None:
    return outputs[0]


def _size_at(node: ir.Node, axis: int) -> int | None:
    """The size of the first input along an axis, if it is a number."""
    shape = node.inputs[0].shape if node.inputs and node.inputs[0] is not None else None
    size = shape[axis] if shape is not None and -len(shape) <= axis < len(shape) else None
    return size if isinstance(size, int) else None


def _top(node: ir.Node) -> tuple[Condition, ...]:
    axis = node.attributes.get_int("axis", -1)

    def first(inputs: Given, outputs: Given) -> Array | None:
        places = outputs[1]
        return None if places is None else np.take(places, [0] if places.shape[axis] else [], axis=axis)

    return () if _size_at(node, axis) == 1 else (Varies(first, "first place"),)


def _winners(largest: bool) -> Callable[[ir.Node], tuple[Condition, ...]]:
    def conditions(node: ir.Node) -> tuple[Condition, ...]:
        said = node.attributes.get_ints("axes", ())

        def outcome(inputs: Given, outputs: Given) -> Array | None:
            data, operand = inputs[0], inputs[1] if len(inputs) > 1 else None
            assert data is not None
            axes = [int(a) for a in (said if operand is None else operand.ravel())] or list(range(data.ndim))
            if not data.size:
                return None
            rows = np.moveaxis(data, axes, range(-len(axes), 0))
            rows = rows.reshape(*rows.shape[: data.ndim - len(axes)], -1)
            return (np.argmax if largest else np.argmin)(rows, axis=-1)

        static = bool(said) and all(_size_at(node, axis) == 1 for axis in said)
        return () if static else (Varies(outcome, "place of the extreme"),)

    return conditions


def _clamps(node: ir.Node) -> tuple[Condition, ...]:
    return tuple(Compares(0, relation, place) for place, relation in ((1, "<"), (2, ">")) if place < len(node.inputs))


def _extremes(node: ir.Node) -> tuple[Condition, ...]:
    return _between(*range(len(node.inputs)))


def _cast(node: ir.Node) -> tuple[Condition, ...]:
    """A cast decides where it rounds or clips to integers; to booleans it compares with zero."""
    target, source = node.attributes.get_int("to", 1), node.inputs[0]
    if ir.DataType(target).is_floating_point():
        return ()
    if target == ir.DataType.BOOL:
        return _TRUTH
    if source is not None and source.dtype is not None and not source.dtype.is_floating_point():
        return _narrowed(ir.DataType(target), source.dtype)
    return (Rounds(),)


def _narrowed(target: ir.DataType, source: ir.DataType) -> tuple[Condition, ...]:
    """An integer cast to a type of fewer bytes varies in its result; wrapping around is another kind of decision."""
    return (Varies(_result, "result"),) if 4 <= target.itemsize < source.itemsize else ()


def _division(node: ir.Node) -> tuple[Condition, ...]:
    """A division of integers rounds to steps. The first few have to be met: one and two alone may not differ in
    effect."""
    types = [value.dtype for value in node.inputs if value is not None]
    return () if any(t is not None and t.is_floating_point() for t in types) else _STEPS


def _slice(node: ir.Node) -> tuple[Condition, ...]:
    """Bounds beyond the size are clamped to it. With sizes that are numbers the result is known beforehand."""
    shape = node.inputs[0].shape if node.inputs[0] is not None else None
    if shape is not None and shape.is_static():
        return ()
    fixed = () if shape is None else tuple(axis for axis, size in enumerate(shape) if isinstance(size, int))

    def room(inputs: Given, outputs: Given) -> Array | None:
        """Whether the data reaches beyond (1) each bound that is neither 0 nor the end, or not (0)."""
        data, starts, ends = inputs[:3]
        assert data is not None and starts is not None and ends is not None
        axes = inputs[3] if len(inputs) > 3 and inputs[3] is not None else np.arange(starts.size)
        axes = np.tile(axes.ravel() % data.ndim, 2)
        far = np.abs(np.concatenate([starts.ravel(), ends.ravel()]).astype(float))
        real = (far > 0) & (far < np.iinfo(np.int32).max) & ~np.isin(axes, fixed)
        return (np.array(data.shape)[axes] > far)[real].astype(int) if real.any() else np.array([0, 1])

    return (Varies(room, "side of the data's end for its bounds"),)


def _triangle(node: ir.Node) -> tuple[Condition, ...]:
    """The kept and the cleared side of the diagonal: two sides, unless all elements lie on one of them."""

    def outcome(inputs: Given, outputs: Given) -> Array | None:
        data, offset = inputs[0], inputs[1] if len(inputs) > 1 else None
        assert data is not None
        kept = np.triu if node.attributes.get_int("upper", 1) else np.tril
        return kept(np.ones(data.shape[-2:], int), 0 if offset is None else int(offset.reshape(())))

    return (Varies(outcome, "side of the diagonal"),)


def _scatter(node: ir.Node) -> tuple[Condition, ...]:
    return (Never(),) if node.attributes.get_string("reduction", "none") in ("max", "min") else ()


def _linear(node: ir.Node) -> tuple[Condition, ...]:
    return (
        (Compares(OUTPUT, ">", 0, number=True), Compares(OUTPUT, "==", 0, number=True))
        if (node.attributes.get_string("activation", "identity").startswith("relu"))
        else ()
    )


def _branches(node: ir.Node) -> tuple[Condition, ...]:
    """The condition has two sides. Decisions inside the branches are not watched, so that they are never all seen."""
    decide = any(sides(inner) for graph in nested_graphs(node) for inner in graph)
    return (*_CONDITION, Never("its branches decide, too, and are not watched")) if decide else _CONDITION


def _same(*sides: Condition) -> Callable[[ir.Node], tuple[Condition, ...]]:
    return lambda node: sides


def _of_attribute(name: str, default: float, *signs: int) -> Callable[[ir.Node], tuple[Condition, ...]]:
    return lambda node: _at(*(sign * node.attributes.get_float(name, default) for sign in signs))


def _hard_sigmoid(node: ir.Node) -> tuple[Condition, ...]:
    alpha, beta = node.attributes.get_float("alpha", 0.2), node.attributes.get_float("beta", 0.5)
    return _at(-beta / alpha, (1 - beta) / alpha) if alpha else ()


def _first_choice(logits: Array | None) -> Array | None:
    """The expert that each token prefers."""
    return None if logits is None or logits.size == 0 else logits.argmax(axis=-1)


_ROUTED = Varies(lambda inputs, outputs: _first_choice(inputs[1]), "expert")
_STEPS = (Varies(_result, "quotient", STEPS),)
_VARIES = _same(Varies(_result, "result"))
_SIGN = _same(*_at(0.0))
DECIDING: dict[str, Callable[[ir.Node], tuple[Condition, ...]]] = {
    **dict.fromkeys(("Abs", "Celu", "Elu", "LeakyRelu", "PRelu", "Relu", "Selu", "Sign"), _SIGN),
    **dict.fromkeys(("And", "IsInf", "IsNaN", "Not", "Or", "Xor"), _same(*_TRUTH)),
    **dict.fromkeys(("GreaterOrEqual", "Less", "Mod", "OneHot"), _same(*_BELOW)),
    **dict.fromkeys(("Greater", "LessOrEqual"), _same(*_ABOVE)),
    **dict.fromkeys(("Ceil", "Floor", "Round"), _same(Rounds())),
    **dict.fromkeys(("ArgMax", "ArgMin", "BitwiseAnd", "BitwiseNot", "BitwiseOr", "BitwiseXor"), _VARIES),
    **dict.fromkeys(("Max", "Min"), _extremes),
    "If": _branches,
    "Where": _same(*_CONDITION),
    "BitShift": _same(*_STEPS),
    "Cast": _cast,
    "Clip": _clamps,
    "Compress": _same(Compares(1, "==", 1, number=True), Compares(1, "==", 0, number=True)),
    "Div": _division,
    "Equal": _same(*_TRUTH),
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _same(*_at(-3.0, 3.0)),
    **dict.fromkeys(("MoE", "QMoE"), _same(_ROUTED)),
    "Route": _same(Varies(lambda inputs, outputs: _first_choice(inputs[0]), "expert")),
    "Linear": _linear,
    "NonZero": _same(*_NONZERO),
    "ReduceMax": _winners(True),
    "ReduceMin": _winners(False),
    "ScatterElements": _scatter,
    "ScatterND": _scatter,
    "Shrink": _of_attribute("lambd", 0.5, -1, 1),
    "Slice": _slice,
    "ThresholdedRelu": _of_attribute("alpha", 1.0, 1),
    "TopK": _top,
    "Trilu": _triangle,
}
_PLAIN = (
    "Absent Acos Acosh Add Asin Asinh Atan Atanh Attention AveragePool BatchNormalization BiasGelu BiasSplitGelu "
    "CastLike CausalConvWithState Combine Concat Constant ConstantOfShape Conv Cos Cosh CumSum DequantizeLinear "
    "Dispatch Einsum Erf Exp Expand Expect Experts EyeLike FastGelu Flatten FusedGemm FusedMatMul Gather "
    "GatherElements GatherND Gelu Gemm GlobalAveragePool GroupNormalization GroupQueryAttention GroupedMatMul Identity "
    "InstanceNormalization LayerNormalization LinearAttention Log LogSoftmax LpNormalization LpPool MatMul "
    "MatMulNBits Mean Mish Mul MultiHeadAttention Neg Pad Pow QuickGelu RMSNormalization Range ReceiveRows Reciprocal "
    "ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMean ReduceProd ReduceSum ReduceSumSquare Reshape "
    "ReturnRows RotaryEmbedding RoundRows SendRows Shape Sigmoid SimplifiedLayerNormalization Sin Sinh Size "
    "SkipLayerNormalization SkipSimplifiedLayerNormalization Softmax Softplus Softsign Split Sqrt Squeeze Sub Sum "
    "Swish Tan Tanh TensorScatter Tile Transpose Unsqueeze"
)
PLAIN = frozenset(_PLAIN.split())
"""Operators whose result is one formula in their inputs, whatever these are."""


def sides(node: ir.Node) -> tuple[Condition, ...]:
    """The sides of a node's decisions; none for a node that decides nothing."""
    if node.op_type in PLAIN:
        return ()
    return DECIDING[node.op_type](node) if node.op_type in DECIDING else (Never(),)
