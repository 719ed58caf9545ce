"""Attention sinks as ONNX spells them, in a graph: a key of zeros before the others, whose score the mask makes.

::

    keys = Pad (k, [1, 0], , [2])
    values = Pad (v, [1, 0], , [2])
    mask = Add (Pad (m, [1, 0], , [3]), Pad (logits, [0, P], , [3]))   # or the second alone; logits [1, H, 1, 1]
    y = Attention (q, keys, values, mask)
"""

from __future__ import annotations

from typing import NamedTuple

import onnx_ir as ir

from moec.ir.graphs import is_op
from moec.ir.sequence_cuts import known_shape
from moec.ir.weights.stored import constant

_INPUTS = 4
"""Query, key, value and mask; beside a past or lengths, which count keys, there are no sinks."""


class SinkOperands(NamedTuple):
    """Logits [1, H, 1, 1] of an Attention's sinks, and its keys, values and mask without sinks."""

    logits: ir.Value
    key: ir.Value
    value: ir.Value
    mask: ir.Value | None


def sinks_of(node: ir.Node) -> SinkOperands | None:
    """Find the sinks of an Attention; None where it has none, or not in this form."""
    operands = [*node.inputs, *[None] * _INPUTS]
    if any(value is not None for value in node.inputs[_INPUTS:]) or node.attributes.get_int("is_causal", 0):
        return None
    key, value = (_unpadded(operand, -2, front=True) for operand in operands[1:3])
    mask = operands[3]
    adding = None if mask is None else mask.producer()
    parts = list(adding.inputs) if is_op(adding, "Add") else [mask]
    for number, part in enumerate(parts):
        logits = _unpadded(part, -1, front=False)
        others = [_unpadded(other, -1, front=True) for other in parts[:number] + parts[number + 1 :]]
        shape = known_shape(logits) or []
        is_by_head = len(shape) == 4 and shape[0] == shape[2] == shape[3] == 1
        if key is not None and value is not None and logits is not None and is_by_head and None not in others:
            return SinkOperands(logits, key, value, others[0] if others else None)
    return None


def _unpadded(value: ir.Value | None, axis: int, *, front: bool) -> ir.Value | None:
    """The tensor that a Pad extends by zeros along ``axis`` alone: by one before all others, or else at the end."""
    node, shape = None if value is None else value.producer(), known_shape(value)
    if not is_op(node, "Pad") or shape is None or node.attributes.get_string("mode", "constant") != "constant":
        return None
    source, pads, fill, axes = (*node.inputs, None, None)[:4]
    numbers = [None if operand is None else constant(operand) for operand in (fill, axes, pads)]
    is_zero = fill is None or (numbers[0] is not None and not numbers[0].numpy().any())
    if numbers[1] is None or not is_zero or numbers[1].numpy().tolist() not in ([axis], [axis + len(shape)]):
        return None
    if front:
        return source if numbers[2] is not None and numbers[2].numpy().tolist() == [1, 0] else None
    return source if _begins_with_zero(pads) else None


def _begins_with_zero(value: ir.Value | None) -> bool:
    stored, node = constant(value), None if value is None else value.producer()
    if stored is not None:
        return bool(stored.size) and int(stored.numpy().ravel()[0]) == 0
    return is_op(node, "Concat") and _begins_with_zero(node.inputs[0])
