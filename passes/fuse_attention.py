"""Spelled-out attention becomes one operator."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from moec.ir.graphs import add_constant
from moec.passes.framework.base import Exactness, Report
from moec.passes.graph.edits import FreshNames, constant, constant_number, is_op, replace_value
from moec.passes.shapes.symbolic import shape_of

_SWAP_LAST = [0, 1, 3, 2]


@dataclasses.dataclass(frozen=True)
class FuseAttention:
    """Fuses ``softmax(q @ k^T * scale + mask) @ v`` over four axes [batch, head, position, element].

    1. Scores are MatMul(q, t), t being k with its last axes swapped. Multiplication or division by a constant number,
       of q, of t or of the scores, becomes ``scale``.
    2. An addition to the scores that does not enlarge them is the mask; its last axis is that of the keys.
    3. Key and value heads that are repeated (Unsqueeze, Expand, Reshape) for grouped queries are taken unrepeated, if
       the shapes prove that each head is repeated for neighbouring query heads.
    4. The swap of the keys' axes may be done on a view [batch * head, position, element].
    5. A query whose every key is masked by -inf yields zeros, by the rules of Attention. Exporters say so with
       ``Where(IsNaN(p), 0, p)`` after the softmax, which is taken in; without it such a query gave NaN. (The guard
       would also hide the NaN of a score that is NaN by itself; after the fusion it shows.)
    6. The head size is static, batch and head counts of q, k and v are equal, and the weights of the softmax have no
       other use.
    7. Attention sinks, a last column of the scores whose weights are cut off after the softmax, become a key of zeros
       before the others, to which the mask adds the sinks. The scores may be taken relative to their largest one first.

    ::

        (float[B,2,S,4] q, float[B,2,P,4] k, float[B,2,P,3] v, float[S,P] mask) => (float[B,2,S,3] y)
           <float half = {0.5}> {
           t = Transpose <perm = [0, 1, 3, 2]> (k)
           products = MatMul (q, t)
           scaled = Mul (products, half)
           scores = Add (scaled, mask)
           p = Softmax <axis = -1> (scores)
           y = MatMul (p, v)
        }
            infer-shapes,fuse-attention,remove-dead-nodes ->
        (float[B,2,S,4] q, float[B,2,P,4] k, float[B,2,P,3] v, float[S,P] mask) => (float[B,2,S,3] y) {
           y = Attention <scale = 0.5> (q, k, v, mask)
        }
    """

    name: ClassVar[str] = "fuse-attention"
    exactness: ClassVar[Exactness] = "reassociating"

    def apply(self, model: ir.Model, report: Report) -> bool:
        changed, names = False, FreshNames(model.graph)
        for node in list(model.graph):
            attention = _match(node) if is_op(node, "MatMul") else None
            if attention is not None:
                changed |= _replace(model.graph, node, attention, names)
        return changed


@dataclasses.dataclass(frozen=True)
class _Attention:
    """``keys`` is [B, H, P, D], or [B, H, D, P] if ``transposed``; ``sinks`` are [B|1, H|1, S|1, 1]."""

    query: ir.Value
    keys: ir.Value
    transposed: bool
    value: ir.Value
    mask: ir.Value | None
    scale: float
    sinks: ir.Value | None = None


def _match(node: ir.Node) -> _Attention | None:
    weights, value = node.inputs
    if weights is None or value is None or not _has_uses(weights, 1):
        return None
    all_weights = _with_last_column(weights)
    softmax = (_unguarded(weights) if all_weights is None else all_weights).producer()
    if not is_op(softmax, "Softmax"):
        return None
    if softmax.attributes.get_int("axis", -1) not in (-1, 3) or softmax.inputs[0] is None:
        return None
    scores, sinks = (softmax.inputs[0], None) if all_weights is None else _split_sinks(softmax.inputs[0])
    if all_weights is not None and sinks is None:
        return None
    scores, mask = _split_mask(scores)
    scores, scale = _split_scale(scores)
    product = scores.producer()
    if not is_op(product, "MatMul") or product.inputs[0] is None or product.inputs[1] is None:
        return None
    query, query_scale = _split_scale(product.inputs[0])
    keys, key_scale = _split_scale(product.inputs[1])
    if not _shapes_agree(query, keys, value, mask):
        return None
    scale *= query_scale * key_scale
    return _without_repetition(_Attention(query, keys, True, value, mask, scale, sinks))


def _with_last_column(weights: ir.Value) -> ir.Value | None:
    """The value of which the weights are all but the last column, if nothing else uses it."""
    cut = weights.producer()
    if not is_op(cut, "Slice") or len(cut.inputs) < 4 or cut.inputs[0] is None:
        return None
    slices = [None if (data := constant(value)) is None else data.ravel().tolist() for value in cut.inputs[1:]]
    rank = len(_dims(cut.inputs[0]) or [])
    if slices not in [[[0], [-1], [axis], *steps] for axis in (-1, rank - 1) for steps in ([], [[1]])]:
        return None
    return cut.inputs[0] if _has_uses(cut.inputs[0], 1) else None


def _split_sinks(scores: ir.Value) -> tuple[ir.Value, ir.Value | None]:
    """Scores [B, H, S, P] before a column of sinks is appended, and that column before it was expanded."""
    node = scores.producer()
    if is_op(node, "Sub"):
        joined, largest = node.inputs
        reduced = largest.producer() if largest is not None else None
        if not is_op(reduced, "ReduceMax") or reduced.inputs[0] is not joined or not _keeps_last_axis(reduced):
            return scores, None
        node = joined.producer() if joined is not None else None
    if not is_op(node, "Concat") or len(node.inputs) != 2 or node.attributes.get_int("axis", 0) not in (-1, 3):
        return scores, None
    before, column = node.inputs
    shape = _dims(column)
    if before is None or column is None or shape is None or len(shape) != 4 or shape[3] != 1:
        return scores, None
    single = _input_of(column, "Expand")
    sizes = _dims(single)
    return before, single if sizes is not None and len(sizes) == 4 else column


def _keeps_last_axis(reduction: ir.Node) -> bool:
    """Whether it reduces the last of four axes, and no other, to one element."""
    operand = reduction.inputs[1] if len(reduction.inputs) > 1 else None
    listed = None if operand is None else constant(operand)
    axes = reduction.attributes.get_ints("axes", ()) if listed is None else listed.ravel().tolist()
    return list(axes) in ([-1], [3]) and reduction.attributes.get_int("keepdims", 1) == 1


def _has_uses(value: ir.Value, count: int) -> bool:
    """Whether the value is used so many times, all inside the graph."""
    return len(list(value.uses())) == count and not value.is_graph_output()


def _unguarded(weights: ir.Value) -> ir.Value:
    """p where the value is ``Where(IsNaN(p), 0, p)`` and nothing else uses p; any other value itself."""
    where = weights.producer()
    if not is_op(where, "Where"):
        return weights
    condition, replacement, guarded = where.inputs
    test = condition.producer() if condition is not None else None
    if (
        guarded is None
        or not is_op(test, "IsNaN")
        or test.inputs[0] is not guarded
        or constant_number(replacement) != 0.0
    ):
        return weights
    return guarded if _has_uses(guarded, 2) else weights


def _split_mask(scores: ir.Value) -> tuple[ir.Value, ir.Value | None]:
    """Scores before the addition of a mask, and the mask."""
    node = scores.producer()
    if not is_op(node, "Add"):
        return scores, None
    for before, mask in (node.inputs, reversed(node.inputs)):
        if before is None or mask is None or _dims(before) is None or _dims(before) != _dims(scores):
            continue
        if is_op(_split_scale(before)[0].producer(), "MatMul"):
            return before, mask
    return scores, None


def _split_scale(value: ir.Value) -> tuple[ir.Value, float]:
    """The value before multiplications and divisions by constant numbers, and their product."""
    scale = 1.0
    while is_op(node := value.producer(), "Mul", "Div"):
        first, second = node.inputs
        number = constant_number(second)
        if number is None and node.op_type == "Mul":
            first, number = second, constant_number(first)
        if first is None or number is None or number == 0.0:
            break
        value, scale = first, scale * number if node.op_type == "Mul" else scale / number
    return value, scale


def _shapes_agree(query: ir.Value, keys: ir.Value, value: ir.Value, mask: ir.Value | None) -> bool:
    """Whether all are [batch, head, ...] of the same batch and heads, with static head sizes and no broadcasting."""
    query_shape, key_shape, value_shape = _dims(query), _dims(keys), _dims(value)
    if query_shape is None or key_shape is None or value_shape is None:
        return False
    if any(len(shape) != 4 for shape in (query_shape, key_shape, value_shape)):
        return False
    batch, heads, _, size = query_shape
    if any(shape[0] != batch or shape[1] != heads for shape in (key_shape, value_shape)):
        return False
    if not all(isinstance(number, int) for number in (heads, size, value_shape[3])) or key_shape[2] != size:
        return False
    if mask is None:
        return True
    mask_shape = _dims(mask)
    return mask_shape is not None and 2 <= len(mask_shape) <= 4 and mask_shape[-1] == key_shape[3]


def _without_repetition(attention: _Attention) -> _Attention:
    """Undo the swap of the keys' axes and the repetition of heads, where they are visible."""
    source = _swapped(attention.keys) or _swapped_in_a_view(attention.keys)
    if source is None:
        return attention
    attention = dataclasses.replace(attention, keys=source, transposed=False)
    keys, value = _unrepeated(attention.keys), _unrepeated(attention.value)
    if keys is None or value is None:
        return attention
    key_shape, value_shape = _dims(keys), _dims(value)
    if key_shape is None or value_shape is None or key_shape[1] != value_shape[1]:
        return attention
    return dataclasses.replace(attention, keys=keys, value=value)


def _swapped(value: ir.Value) -> ir.Value | None:
    """k where the value is k with its last axes swapped."""
    node = value.producer()
    if not is_op(node, "Transpose"):
        return None
    order = list(node.attributes.get_ints("perm", []))
    last = len(order) - 1
    return node.inputs[0] if order == [*range(last - 1), last, last - 1] else None


def _swapped_in_a_view(value: ir.Value) -> ir.Value | None:
    """k [B, H, P, D] where the value is k seen as [B * H, P, D], with its last axes swapped, seen as [B, H, D, P]."""
    view = _input_of(value, "Reshape")
    before = _swapped(view) if view is not None else None
    source = _input_of(before, "Reshape")
    own, wide, final = _dims(source), _dims(before), _dims(value)
    if own is None or wide is None or final is None or len(own) != 4 or len(wide) != 3:
        return None
    batch, heads, keys, size = own
    return source if wide[1:] == [keys, size] and final == [batch, heads, size, keys] else None


def _unrepeated(repeated: ir.Value) -> ir.Value | None:
    """[B, G, P, D] where the value is it with every head repeated: via [B, G, 1, P, D] and [B, G, R, P, D]."""
    expanded = _input_of(repeated, "Reshape")
    single = _input_of(expanded, "Expand")
    source = _input_of(single, "Unsqueeze")
    own, wide = _dims(source), _dims(expanded)
    if own is None or wide is None or len(own) != 4 or len(wide) != 5:
        return None
    batch, groups, keys, size = own
    repeats = wide[2]
    if not isinstance(groups, int) or not isinstance(repeats, int):
        return None
    shapes = [_dims(single), wide, _dims(repeated)]
    expected = [[batch, groups, 1, keys, size], [batch, groups, repeats, keys, size]]
    return source if shapes == [*expected, [batch, groups * repeats, keys, size]] else None


def _input_of(value: ir.Value | None, op_type: str) -> ir.Value | None:
    """The first input of the node that makes the value, if it is such a node."""
    node = value.producer() if value is not None else None
    return node.inputs[0] if is_op(node, op_type) else None


def _replace(graph: ir.Graph, node: ir.Node, attention: _Attention, names: FreshNames) -> bool:
    keys, added = attention.keys, []
    if attention.transposed:
        swap = ir.node("Transpose", [keys], attributes={"perm": _SWAP_LAST})
        keys = swap.outputs[0]
        keys.name = f"{node.outputs[0].name}_keys"
        keys.type = attention.keys.type
        shape = attention.keys.shape
        keys.shape = None if shape is None else ir.Shape([shape[axis] for axis in _SWAP_LAST])
        added.append(swap)
    inputs: Sequence[ir.Value] = [attention.query, keys, attention.value]
    if attention.mask is not None:
        inputs = [*inputs, attention.mask]
    if attention.sinks is not None:
        inputs = [attention.query, *_behind_sinks(graph, keys, attention, added, names)]
    fused = ir.node("Attention", inputs, attributes={"scale": attention.scale})
    fused.outputs[0].name = f"{node.outputs[0].name}_fused"
    fused.outputs[0].shape, fused.outputs[0].type = node.outputs[0].shape, node.outputs[0].type
    added.append(fused)
    graph.insert_before(node, added)
    if not replace_value(node.outputs[0], fused.outputs[0]):
        for new in reversed(added):
            graph.remove(new, safe=True)
        return False
    graph.remove(node, safe=True)
    return True


def _behind_sinks(
    graph: ir.Graph, keys: ir.Value, attention: _Attention, added: list[ir.Node], names: FreshNames
) -> list[ir.Value]:
    """Keys and values with a first one of zeros, and a mask that adds the sinks to its scores; nodes for them are
    ``added``."""
    assert attention.sinks is not None

    def add(label: str, operator: str, *inputs: ir.Value | None, **attributes: int) -> ir.Value:
        node = ir.node(operator, inputs, attributes=attributes)
        node.outputs[0].name = names.new(f"{attention.value.name}_{label}")
        added.append(node)
        return node.outputs[0]

    def numbers(*values: int) -> ir.Value:
        return add_constant(graph, ir.tensor(np.array(values, np.int64)), names.new("numbers"))

    front, positions = numbers(1, 0), numbers(2)
    padded = [
        add(f"{label}_behind_sink", "Pad", tensor, front, None, positions)
        for label, tensor in (("keys", keys), ("values", attention.value))
    ]
    count = add("key_count", "Shape", keys, start=2, end=3)
    pads = add("behind_sinks", "Concat", numbers(0), count, axis=0)
    mask = add("sinks", "Pad", attention.sinks, pads, None, numbers(3))
    if attention.mask is not None:
        last = len(_dims(attention.mask) or []) - 1
        mask = add("biases", "Add", add("mask", "Pad", attention.mask, front, None, numbers(last)), mask)
    return [*padded, mask]


def _dims(value: ir.Value | None) -> list[Any] | None:
    """Sizes as numbers and expressions, in which the order of a sum does not count; None if any is unknown."""
    sizes = shape_of(value) if value is not None else None
    return None if sizes is None else [int(size) if size.is_Integer else size for size in sizes]
