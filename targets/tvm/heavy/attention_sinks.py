"""Attention sinks as ONNX spells them: a zero key before the others, to whose score the mask adds the sink's logit.

::

    keys = Pad (k, [1, 0], , [2])
    values = Pad (v, [1, 0], , [2])
    mask = Add (Pad (m, [1, 0], , [3]), Pad (logits, [0, P], , [3]))   # or the second alone; logits [1, H, 1, 1]
    y = Attention (q, keys, values, mask)

A kernel that starts from the logits needs neither this key nor a mask per head. Where the rest of the mask is the
causal order, with a window or without, it needs no mask at all. A number that hides keys need not be -inf for that:
next to a sink whose logit is no such number, a hidden key has weight 0 even where all keys are hidden.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator

import numpy as np
import onnx_ir as ir
from tvm import relax, te

from moec.common.names import operator_name
from moec.ir.masks.visibility import Window, read_order
from moec.targets.tvm.lowering.attributes import attribute, optional_input, required_input
from moec.targets.tvm.lowering.context import LoweringContext
from moec.targets.tvm.sizes.shapes import static_size

_LARGEST_LOGIT = 1e4
"""The magnitude below which a sink's logit is far from the numbers that hide keys, which are at most -65504."""
_INPUTS = 4
"""Query, key, value and mask; sinks are not looked for beside a past or lengths, which count keys."""


@dataclasses.dataclass(frozen=True)
class Sinks:
    """The logits ``values`` [1, H, 1, 1] of an attention, and its keys, values and mask without sinks."""

    values: ir.Value
    key: ir.Value
    value: ir.Value
    mask: ir.Value | None

    @contextlib.contextmanager
    def alone(self, node: ir.Node) -> Iterator[ir.Node]:
        """Context with a copy of the attention ``node`` that has no sinks."""
        inputs = [required_input(node, 0), self.key, self.value, self.mask]
        rest = ir.Node("", "Attention", inputs, list(node.attributes.values()), name=node.name)
        try:
            yield rest
        finally:
            for position in range(len(inputs)):
                rest.replace_input_with(position, None)

    def order(self, lowering: LoweringContext, rest: ir.Node) -> Window | None:
        """The window of a mask that is the causal order; None where it is another or not known. ``rest``: the attention
        without sinks."""
        logits = lowering.constant(self.values)
        if self.mask is None or logits is None or not (np.abs(logits.astype(np.float64)) < _LARGEST_LOGIT).all():
            return None
        return read_order(rest, lowering.elements)


def logits_by_head(lowering: LoweringContext, values: ir.Value) -> relax.Expr:
    """Logits [1, H, 1, 1] of sinks as float32 [H]."""

    def build(tensor: te.Tensor) -> te.Tensor:
        return te.compute((tensor.shape[1],), lambda h: tensor(0, h, 0, 0).astype("float32"), name="sinks")

    return lowering.compute(build, [lowering.tensor(values)], "sinks")[0]


def split_sinks(lowering: LoweringContext, node: ir.Node) -> Sinks | None:
    """The sinks of an attention; None where it has none, or not in this form."""
    if any(value is not None for value in node.inputs[_INPUTS:]) or attribute(node, "is_causal", 0):
        return None
    key, value = (_padded(lowering, required_input(node, position), -2, front=True) for position in (1, 2))
    mask = optional_input(node, 3)
    if key is None or value is None or mask is None:
        return None
    adding = mask.producer()
    is_sum = adding is not None and operator_name(adding) == "Add"
    parts = [required_input(adding, 0), required_input(adding, 1)] if adding is not None and is_sum else [mask]
    for number, part in enumerate(parts):
        logits = _padded(lowering, part, -1, front=False)
        rest = [_padded(lowering, other, -1, front=True) for other in parts[:number] + parts[number + 1 :]]
        if logits is not None and _is_by_head(lowering, logits) and None not in rest:
            return Sinks(logits, key, value, rest[0] if rest else None)
    return None


def _padded(lowering: LoweringContext, value: ir.Value, axis: int, *, front: bool) -> ir.Value | None:
    """The tensor that a Pad extends by zeros along ``axis`` alone to make the value; None if no such Pad makes it.

    With ``front`` it adds exactly one zero, before the others; else it adds zeros at the end only."""
    node = value.producer()
    if node is None or operator_name(node) != "Pad" or attribute(node, "mode", "constant") != "constant":
        return None
    fill, axes, pads = optional_input(node, 2), optional_input(node, 3), lowering.static(required_input(node, 1))
    numbers = None if axes is None else lowering.constant(axes)
    if numbers is None or pads is None or numbers.tolist() not in ([axis], [axis + len(lowering.shape(value))]):
        return None
    if fill is not None and lowering.constant(fill) != 0:
        return None
    listed = [static_size(size) for size in pads.elements.flat]
    return required_input(node, 0) if (listed == [1, 0] if front else listed[0] == 0) else None


def _is_by_head(lowering: LoweringContext, value: ir.Value) -> bool:
    sizes = [static_size(size) for size in lowering.shape(value)]
    return len(sizes) == 4 and sizes[0] == sizes[2] == sizes[3] == 1
