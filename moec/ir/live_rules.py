"""Rules that lead from live elements of an operator's results to the elements of an operand that these depend on.

Each rule returns at least the elements that the results depend on. A factor of 0, a flag that settles a result, and a
branch that is not taken hide elements of the other operands. An operator without a rule is taken to read every element
for each of its results.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from moec.ir.kinds import ELEMENTWISE
from moec.ir.product_labels import labels_of
from moec.ir.sides import Array, over_repeats

Shape = tuple[int, ...]
PRODUCTS = frozenset({"Einsum", "Gemm", "MatMul"})
HIDING: Mapping[str, Collection[int] | None] = {
    **dict.fromkeys(PRODUCTS, None),
    "And": (0, 1),
    "Div": (0,),
    "Mul": (0, 1),
    "Or": (0, 1),
    "Where": (0,),
}
"""Operators of which operands hide elements of others, and which operands do; None for all."""


@dataclasses.dataclass(frozen=True)
class NodeRun:
    """Shapes of the operands and results of one run of a node. ``indices``: operands that hold places of elements.
    ``counting``: flags, by place, of the elements of hiding operands that are neither 0 nor false."""

    node: ir.Node
    operator: Callable[..., Sequence[Any]]
    shapes: Sequence[Shape | None]
    results: Sequence[Shape]
    indices: Sequence[Array | None]
    counting: Mapping[int, Array]


Found = Sequence[Array | None]
"""The elements that count of each result; None where none does."""
Rule = Callable[[NodeRun, int, Found, Collection[int]], Array]
"""A rule: from a step, the place of an operand, the live elements of the results, and the places of operands that may
hide elements."""


def reached(step: NodeRun, place: int, live: Found, hiding: Collection[int] = ()) -> Array:
    """The elements of the operand at ``place`` that the elements ``live`` of the results depend on."""
    rule = _RULES.get(step.node.op_type, _any) if step.node.domain == "" else _any
    return rule(step, place, live, hiding)


def keeps_positions(node: ir.Node) -> bool:
    """Whether the rule of a node reads the operands that say where elements are."""
    return node.domain == "" and _RULES.get(node.op_type) in (_moved, _reduced, _along, _written)


def is_pointwise(node: ir.Node) -> bool:
    """Whether an element of a result depends on one element of each operand."""
    return node.domain == "" and _RULES.get(node.op_type) in (_elementwise, _moved, _reshaped, _transposed)


def is_elementwise(node: ir.Node) -> bool:
    """Whether an element of a result depends on the elements of the operands at its place, counting axes from the last.
    CastLike and Expand read only type and shape of their second operand."""
    return node.domain == "" and _RULES.get(node.op_type) is _elementwise and node.op_type != "Expand"


def _shape(step: NodeRun, place: int) -> Shape:
    shape = step.shapes[place]
    assert shape is not None
    return shape


def _only(live: Found) -> Array:
    assert live[0] is not None
    return live[0]


def _any(step: NodeRun, place: int, live: Found, hiding: Collection[int]) -> Array:
    return np.full(_shape(step, place), any(flags is not None and flags.any() for flags in live))


def _elementwise(step: NodeRun, place: int, live: Found, hiding: Collection[int]) -> Array:
    counts = _only(live)
    if place and step.node.op_type in ("CastLike", "Expand"):
        return _any(step, place, live, hiding)
    for other in hiding:
        mask = step.counting[other]
        hides_others = step.node.op_type == "Or" or (step.node.op_type == "Where" and place == 2)
        counts = counts & (~mask if hides_others else mask)
    return over_repeats(counts, _shape(step, place))


def _reshaped(step: NodeRun, place: int, live: Found, hiding: Collection[int]) -> Array:
    return _only(live).reshape(_shape(step, 0)) if place == 0 else _any(step, place, live, hiding)


def _transposed(step: NodeRun, place: int, live: Found, hiding: Collection[int]) -> Array:
    order = step.node.attributes.get_ints("perm", range(len(_shape(step, 0)))[::-1])
    return np.transpose(_only(live), np.argsort(order))


def _axes(step: NodeRun) -> list[int]:
    """The axes along which an operator goes; none where a reduction goes along all."""
    attributes, rank, kind = step.node.attributes, len(_shape(step, 0)), step.node.op_type
    said: Any = attributes.get_ints("axes", ())
    second = step.indices[1] if len(step.indices) > 1 else None
    if second is not None and (kind == "CumSum" or kind.startswith("Reduce")):
        said = second.ravel()
    elif not kind.startswith("Reduce"):
        said = [attributes.get_int("axis", 0 if kind in ("ArgMax", "ArgMin") else -1)]
    return [int(axis) % rank for axis in said]


def _reduced(step: NodeRun, place: int, live: Found, hiding: Collection[int]) -> Array:
    if place:
        return _any(step, place, live, hiding)
    shape, counts, axes = _shape(step, 0), _only(live), _axes(step)
    if counts.ndim < len(shape):
        counts = np.expand_dims(counts, tuple(axes or range(len(shape))))
    return np.broadcast_to(counts, shape)


def _along(step: NodeRun, place: int, live: Found, hiding: Collection[int]) -> Array:
    """All elements along an axis count where a result along it does; from an axis on, for normalisations."""
    shape = _shape(step, place)
    if place:
        return _any(step, place, live, hiding)
    (axis,) = _axes(step)
    axes = tuple(range(axis, len(shape))) if step.node.op_type.endswith("Normalization") else (axis,)
    lines = np.zeros([1 if at in axes else size for at, size in enumerate(shape)], bool)
    for flags in live:
        if flags is not None and flags.ndim == lines.ndim:
            lines = lines | flags.any(axis=axes, keepdims=True)
        elif flags is not None and flags.any():
            lines = np.ones_like(lines)
    return np.broadcast_to(lines, shape)


def _moved(step: NodeRun, place: int, live: Found, hiding: Collection[int]) -> Array:
    """Run the operator on the numbers of elements, which it moves to where they count."""
    shape, kind = _shape(step, place), step.node.op_type
    if place and kind not in ("Concat", "ScatterElements", "ScatterND"):
        return _index(step, place, _only(live))
    if kind in ("ScatterElements", "ScatterND") and place == 1:
        return _any(step, place, live, hiding)
    numbers = np.arange(1, math.prod(shape) + 1).reshape(shape)
    operands = [
        numbers if at == place else index if own is None or not _is_data(kind, at) else np.zeros(own, np.int64)
        for at, (index, own) in enumerate(zip(step.indices, step.shapes, strict=True))
    ]
    counts = np.zeros(numbers.size + 1, bool)
    for result, flags in zip(step.operator(*operands), live, strict=False):
        if flags is not None:
            counts[result[flags]] = True
    return counts[1:].reshape(shape)


def _is_data(kind: str, place: int) -> bool:
    return place == 0 or kind == "Concat" or (place == 2 and kind in ("Pad", "ScatterElements", "ScatterND"))


def _index(step: NodeRun, place: int, counts: Array) -> Array:
    """Indices that are read for live elements."""
    shape, kind = _shape(step, place), step.node.op_type
    if kind == "GatherElements":
        return counts
    if kind == "Gather" and place == 1:
        axis = step.node.attributes.get_int("axis", 0) % len(_shape(step, 0))
        others = (*range(axis), *range(axis + len(shape), counts.ndim))
        return counts.any(axis=others).reshape(shape)
    return np.full(shape, counts.any())


def _written(step: NodeRun, place: int, live: Found, hiding: Collection[int]) -> Array:
    """Updates count where the element does that they are added to."""
    if step.node.attributes.get_string("reduction", "none") == "none":
        return _moved(step, place, live, hiding)
    counts, where = _only(live), step.indices[1]
    if place != 2 or where is None:
        return counts if place == 0 else _any(step, place, live, hiding)
    if step.node.op_type == "ScatterND":
        return counts[tuple(np.moveaxis(where, -1, 0))].reshape(_shape(step, 2))
    axis = step.node.attributes.get_int("axis", 0)
    places = list(np.indices(where.shape, sparse=True))
    places[axis] = where
    return counts[tuple(places)]


def _multiplied(step: NodeRun, place: int, live: Found, hiding: Collection[int]) -> Array:
    """An element counts where no other factor of a product is 0 that counts in the sum."""
    shape = _shape(step, place)
    if step.node.op_type == "Gemm" and place == 2:
        return over_repeats(_only(live), shape)
    terms = labels_of(step.node, [len(shape) for shape in step.shapes if shape is not None])
    if terms is None:
        return _any(step, place, live, hiding)
    own, left = terms[place], (_only(live), terms[-1])
    masks = [(step.counting[other], terms[other]) for other in hiding]
    for at, mask in enumerate(masks):
        left = _joined(left, mask, {*own, *(label for _, term in masks[at + 1 :] for label in term)})
    counts, labels = _summed(*left, set(own))
    counts = _placed(counts, labels, own)
    return over_repeats(np.broadcast_to(counts, np.broadcast_shapes(counts.shape, shape)), shape)


Labelled = tuple[Array, str]


def _summed(array: Array, labels: str, kept: Collection[str]) -> Labelled:
    """Any along axes whose labels are not ``kept``."""
    axes = tuple(axis for axis, label in enumerate(labels) if label not in kept)
    return np.asarray(array.any(axis=axes)), "".join(label for label in labels if label in kept)


def _placed(array: Array, labels: str, order: str) -> Array:
    """The axes of an array in this order, with axes of size 1 for labels that it lacks."""
    array = np.transpose(array, np.argsort([order.index(label) for label in labels]).tolist())
    return np.expand_dims(array, tuple(axis for axis, label in enumerate(order) if label not in labels))


def _joined(first: Labelled, other: Labelled, kept: Collection[str]) -> Labelled:
    """Whether both hold anywhere along the axes whose labels are not ``kept``, by element."""
    first = _summed(*first, {*kept, *other[1]})
    other = _summed(*other, {*kept, *first[1]})
    labels = first[1] + "".join(label for label in other[1] if label not in first[1])
    gone = [label for label in labels if label not in kept]
    for a, b in ((first, other), (other, first)):
        left = {label for label in a[1] if label not in gone}
        if gone and np.array_equal(_summed(*a, left)[0], _every(*a, left)):
            return _joined(_summed(*a, left), b, kept)
    if not gone:
        return _placed(*first, labels) & _placed(*other, labels), labels
    return _contracted(first, other, labels, gone)


def _every(array: Array, labels: str, kept: Collection[str]) -> Array:
    return np.asarray(array.all(axis=tuple(axis for axis, label in enumerate(labels) if label not in kept)))


def _contracted(left: Labelled, other: Labelled, labels: str, gone: Collection[str]) -> Labelled:
    """The same by a product of matrices: axes of both, axes of one, and axes that are summed over."""
    sizes = dict[str, int]()
    for array, term in (left, other):
        for label, size in zip(term, array.shape, strict=True):
            sizes[label] = max(size, sizes.get(label, 1))
    kept = [label for label in labels if label not in gone]
    both = "".join(label for label in kept if label in left[1] and label in other[1])
    first = "".join(label for label in kept if label not in other[1])
    second = "".join(label for label in kept if label not in left[1])
    summed = "".join(gone)

    def matrices(array: Array, term: str, order: str, *parts: str) -> Array:
        whole = np.broadcast_to(_placed(array, term, order), [sizes[label] for label in order])
        return whole.reshape([math.prod(sizes[label] for label in part) for part in parts]).astype(np.float32)

    a = matrices(*left, both + first + summed, both, first, summed)
    b = matrices(*other, both + summed + second, both, summed, second)
    nonzero = (a @ b) > 0
    return nonzero.reshape([sizes[label] for label in both + first + second]), both + first + second


_COMPARING = ("Equal", "Greater", "GreaterOrEqual", "IsInf", "IsNaN", "Less", "LessOrEqual", "Not", "Xor")
_FUNCTIONS = (
    "Acos Acosh Asin Asinh Atan Atanh BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor CastLike Celu Cos Cosh Elu "
    "Expand Gelu HardSigmoid HardSwish LeakyRelu Mean Mish Mod PRelu Selu Shrink Sign Sin Sinh Softsign Sum Swish Tan "
    "ThresholdedRelu"
)
_REDUCING = "L1 L2 LogSum LogSumExp Max Mean Min Prod Sum SumSquare"
_RULES: dict[str, Rule] = {
    **dict.fromkeys((*ELEMENTWISE, *_COMPARING, *_FUNCTIONS.split(), "And", "Or", "Where"), _elementwise),
    **dict.fromkeys(("Flatten", "Reshape", "Squeeze", "Unsqueeze"), _reshaped),
    **dict.fromkeys(("ArgMax", "ArgMin", *(f"Reduce{reduction}" for reduction in _REDUCING.split())), _reduced),
    **dict.fromkeys(("Compress", "Concat", "Gather", "GatherElements", "GatherND", "Pad", "Slice", "Split"), _moved),
    **dict.fromkeys(("Tile", "Trilu"), _moved),
    **dict.fromkeys(("CumSum", "LayerNormalization", "LogSoftmax", "RMSNormalization", "Softmax", "TopK"), _along),
    **dict.fromkeys(("ScatterElements", "ScatterND"), _written),
    **dict.fromkeys(PRODUCTS, _multiplied),
    "Transpose": _transposed,
}
