"""Other ways to write selections, masks and normalisations."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from ..edit import Writer, array_of, attribute, ints, nodes, rank, some, substitute
from ..registry import Rewrite, rewrite
from .products import Linear, linear_of

Spelling = Callable[[Writer, ir.Node], tuple[ir.Value | None, ...]]


def _of(op_type: str, spelling: Spelling, allowed: Callable[[ir.Node], bool] = lambda _node: True) -> Rewrite:
    def apply(model: ir.Model, random: np.random.Generator) -> ir.Model | None:
        chosen = some(random, filter(allowed, nodes(model, op_type)))
        for node in chosen:
            substitute(node, *spelling(Writer(model, node), node))
        return model if chosen else None

    apply.__name__ = spelling.__name__
    return rewrite(apply)


def _width(value: ir.Value | None) -> int | None:
    size = value.shape[-1] if value is not None and value.shape is not None and len(value.shape) == 2 else None
    return size if isinstance(size, int) else None


def _chosen(node: ir.Node) -> int:
    """k of a TopK along rows of a known width; 0 for others."""
    k = array_of(node.inputs[1])
    last = attribute(node, "axis", -1) in (-1, 1) and attribute(node, "largest", 1)
    return int(k.ravel()[0]) if k is not None and last and _width(node.inputs[0]) else 0


def top_k_as_sort(write: Writer, node: ir.Node) -> tuple[ir.Value | None, ...]:
    """Sort all entries and take the first."""
    width = _width(node.inputs[0])
    assert width is not None
    values, ids = write.ops("TopK", 2, node.inputs[0], ints(width), axis=-1)
    return tuple(write.op("Slice", value, ints(0), ints(_chosen(node)), ints(1)) for value in (values, ids))


def top_k_of_the_negative(write: Writer, node: ir.Node) -> tuple[ir.Value | None, ...]:
    """Take the smallest entries of the negative."""
    values, ids = write.ops("TopK", 2, write.op("Neg", node.inputs[0]), ints(_chosen(node)), axis=-1, largest=0)
    return write.op("Neg", values), ids


def top_1_as_argmax(write: Writer, node: ir.Node) -> tuple[ir.Value | None, ...]:
    ids = write.op("ArgMax", node.inputs[0], axis=-1, keepdims=1)
    return write.op("GatherElements", node.inputs[0], ids, axis=1), ids


def top_k_by_rounds_of_argmax(write: Writer, node: ir.Node) -> tuple[ir.Value | None, ...]:
    """Mask each selected entry before the next is selected."""
    scores, values, ids = node.inputs[0], [], []
    for _ in range(_chosen(node)):
        chosen = write.op("ArgMax", scores, axis=-1, keepdims=1)
        values.append(write.op("ReduceMax", scores, ints(-1), keepdims=1))
        ids.append(chosen)
        lowest = write.op("Expand", float("-inf"), write.op("Shape", chosen))
        scores = write.op("ScatterElements", scores, chosen, lowest, axis=1)
    return write.op("Concat", *values, axis=1), write.op("Concat", *ids, axis=1)


def values_of_top_k_gathered(write: Writer, node: ir.Node) -> tuple[ir.Value | None, ...]:
    _, ids = write.ops("TopK", 2, node.inputs[0], ints(_chosen(node)), axis=-1)
    return write.op("GatherElements", node.inputs[0], ids, axis=1), ids


def arg_max_as_top_1(write: Writer, node: ir.Node) -> tuple[ir.Value | None, ...]:
    _, ids = write.ops("TopK", 2, node.inputs[0], ints(1), axis=-1)
    return (ids if attribute(node, "keepdims", 1) else write.op("Squeeze", ids, ints(1)),)


_of("TopK", top_k_as_sort, lambda node: _chosen(node) > 0)
_of("TopK", top_k_of_the_negative, lambda node: _chosen(node) > 0)
_of("TopK", top_1_as_argmax, lambda node: _chosen(node) == 1)
_of("TopK", top_k_by_rounds_of_argmax, lambda node: _chosen(node) in (1, 2, 3))
_of("TopK", values_of_top_k_gathered, lambda node: _chosen(node) > 0)
_of(
    "ArgMax",
    arg_max_as_top_1,
    lambda node: attribute(node, "axis", 0) in (-1, 1) and _width(node.inputs[0]) is not None,
)


def _sums_rows(node: ir.Node) -> bool:
    axes = array_of(node.inputs[1]) if len(node.inputs) > 1 else None
    return axes is not None and [int(axis) for axis in axes.ravel()] in ([-1], [1]) and rank(node.inputs[0]) == 2


def _sum_of_rows(node: ir.Node) -> bool:
    return _sums_rows(node) and attribute(node, "keepdims", 1) == 1 and _width(node.inputs[0]) is not None


def sum_of_rows_as_product_with_ones(write: Writer, node: ir.Node) -> tuple[ir.Value | None, ...]:
    return (write.op("MatMul", node.inputs[0], np.ones((_width(node.inputs[0]) or 0, 1), np.float32)),)


def sum_of_rows_as_einsum(write: Writer, node: ir.Node) -> tuple[ir.Value | None, ...]:
    return (write.op("Unsqueeze", write.op("Einsum", node.inputs[0], equation="tk->t"), ints(1)),)


def sum_of_rows_as_mean(write: Writer, node: ir.Node) -> tuple[ir.Value | None, ...]:
    mean = write.op("ReduceMean", node.inputs[0], ints(-1), keepdims=1)
    return (write.op("Mul", mean, float(_width(node.inputs[0]) or 0)),)


def sum_of_rows_entry_by_entry(write: Writer, node: ir.Node) -> tuple[ir.Value | None, ...]:
    parts = [write.op("Gather", node.inputs[0], ints(place), axis=1) for place in range(_width(node.inputs[0]) or 0)]
    total = parts[0]
    for part in parts[1:]:
        total = write.op("Add", total, part)
    return (total,)


def sum_of_rows_without_keeping_the_axis(write: Writer, node: ir.Node) -> tuple[ir.Value | None, ...]:
    return (write.op("Unsqueeze", write.op("ReduceSum", node.inputs[0], ints(1), keepdims=0), ints(-1)),)


for _spelling in (
    sum_of_rows_as_product_with_ones,
    sum_of_rows_as_einsum,
    sum_of_rows_as_mean,
    sum_of_rows_entry_by_entry,
    sum_of_rows_without_keeping_the_axis,
):
    _of("ReduceSum", _spelling, _sum_of_rows)


def _compares_ids(node: ir.Node) -> bool:
    """Whether it compares integers with one constant."""
    value, constant = node.inputs
    array = array_of(constant)
    return array is not None and array.size == 1 and array.dtype == np.int64 and value is not None


def equal_as_cast_difference(write: Writer, node: ir.Node) -> tuple[ir.Value | None, ...]:
    difference = write.op("Cast", write.op("Sub", *node.inputs), to=ir.DataType.BOOL)
    return (write.op("Not", difference),)


def equal_as_two_comparisons(write: Writer, node: ir.Node) -> tuple[ir.Value | None, ...]:
    return (write.op("And", write.op("GreaterOrEqual", *node.inputs), write.op("LessOrEqual", *node.inputs)),)


def equal_of_floats(write: Writer, node: ir.Node) -> tuple[ir.Value | None, ...]:
    return (write.op("Equal", *(write.op("Cast", value, to=ir.DataType.FLOAT) for value in node.inputs)),)


for _spelling in (equal_as_cast_difference, equal_as_two_comparisons, equal_of_floats):
    _of("Equal", _spelling, _compares_ids)


@rewrite
def comparisons_as_slices_of_one_hot(model: ir.Model, random: np.random.Generator) -> ir.Model | None:
    """Comparisons of one value with ids become columns of its one-hot mask."""
    results = [node for node in nodes(model, "Equal") if _compares_ids(node)]
    if not results:
        return None
    largest = max(int(array_of(node.inputs[1])) for node in results)  # type: ignore[arg-type]
    for node in results:
        write, ids = Writer(model, node), node.inputs[0]
        hot = write.op("OneHot", ids, np.array(largest + 1), np.array([0, 1], np.int64), axis=-1)
        expert = array_of(node.inputs[1])
        assert expert is not None
        column = write.op("Gather", hot, np.array(int(expert.ravel()[0])), axis=-1)
        substitute(node, write.op("Cast", column, to=ir.DataType.BOOL))
    return model


def _mixes(node: ir.Node) -> bool:
    """Whether it scatters floats along rows."""
    return attribute(node, "axis", 0) in (1, -1) and attribute(node, "reduction", "none") == "none"


def _mixture(node: ir.Node) -> bool:
    zeros = node.inputs[0].producer() if node.inputs[0] is not None else None
    return (
        _mixes(node)
        and _width(node.outputs[0]) is not None
        and zeros is not None
        and zeros.op_type == "ConstantOfShape"
    )


def mixture_by_one_hot_and_sum(write: Writer, node: ir.Node) -> tuple[ir.Value | None, ...]:
    _, ids, weights = node.inputs
    width = _width(node.outputs[0]) or 0
    hot = write.op("OneHot", ids, np.array(width), np.array([0, 1], np.float32), axis=-1)
    return (write.op("ReduceSum", write.op("Mul", hot, write.op("Unsqueeze", weights, ints(-1))), ints(1), keepdims=0),)


def mixture_by_one_hot_and_product(write: Writer, node: ir.Node) -> tuple[ir.Value | None, ...]:
    _, ids, weights = node.inputs
    hot = write.op("OneHot", ids, np.array(_width(node.outputs[0]) or 0), np.array([0, 1], np.float32), axis=-1)
    row = write.op("MatMul", write.op("Unsqueeze", weights, ints(1)), hot)
    return (write.op("Squeeze", row, ints(1)),)


def mixture_by_equal_and_where(write: Writer, node: ir.Node) -> tuple[ir.Value | None, ...]:
    _, ids, weights = node.inputs
    hits = write.op("Equal", write.op("Unsqueeze", ids, ints(-1)), np.arange(_width(node.outputs[0]) or 0))
    each = write.op("Where", hits, write.op("Unsqueeze", weights, ints(-1)), 0.0)
    return (write.op("ReduceSum", each, ints(1), keepdims=0),)


def mixture_by_scatter_that_adds(write: Writer, node: ir.Node) -> tuple[ir.Value | None, ...]:
    return (write.op("ScatterElements", *node.inputs, axis=1, reduction="add"),)


for _spelling in (
    mixture_by_one_hot_and_sum,
    mixture_by_one_hot_and_product,
    mixture_by_equal_and_where,
    mixture_by_scatter_that_adds,
):
    _of("ScatterElements", _spelling, _mixture)


@rewrite
def transposed_non_zero(model: ir.Model, random: np.random.Generator) -> ir.Model | None:
    """Places in the transpose come in another order. All NonZero nodes change, because two of one mask belong
    together."""
    results = [node for node in nodes(model, "NonZero") if rank(node.inputs[0]) == 2]
    if not results or any(node.op_type == "NonZero" for function in model.functions.values() for node in function):
        return None
    for node in results:
        write = Writer(model, node)
        turned = write.op("NonZero", write.op("Transpose", node.inputs[0], perm=[1, 0]))
        substitute(node, write.op("Gather", turned, ints(1, 0), axis=0))
    return model


@rewrite
def logits_of_experts_by_tokens(model: ir.Model, random: np.random.Generator) -> ir.Model | None:
    """Logits as [E,T]: the router's product, its scores and its selection go down columns."""
    results = []
    for node in nodes(model, "TopK"):
        chain, value = [], node.inputs[0]
        while _chosen(node) and value is not None and (producer := value.producer()) is not None:
            linear = linear_of(producer) if producer.op_type in ("MatMul", "Gemm") else None
            if linear is not None and linear.bias is None:
                results.append((node, chain, linear))
                break
            if producer.op_type not in ("Softmax", "Sigmoid") or len(producer.inputs) != 1:
                break
            chain.append(producer)
            value = producer.inputs[0]
    chosen = some(random, results)[:1]
    for node, chain, linear in chosen:
        _turn(Writer(model, linear.node), node, chain, linear)
    return model if chosen else None


def _turn(write: Writer, top: ir.Node, chain: list[ir.Node], linear: Linear) -> None:
    matrix = np.ascontiguousarray(linear.matrix.T)
    value = write.op("MatMul", matrix, write.op("Transpose", linear.x, perm=[1, 0]))
    turned: list[tuple[ir.Node, ir.Value]] = [(linear.node, value)]
    for node in reversed(chain):
        value = write.op(node.op_type, value, **({"axis": 0} if node.op_type == "Softmax" else {}))
        turned.append((node, value))
    results = write.ops("TopK", 2, value, ints(_chosen(top)), axis=0)
    substitute(top, *(write.op("Transpose", result, perm=[1, 0]) for result in results))
    for node, value in reversed(turned):
        substitute(node, write.op("Transpose", value, perm=[1, 0]))
