"""Attention with sinks (:mod:`moec.ir.sinks`) for kernels that begin with their logits.

Such a kernel needs neither the key of zeros nor a mask per head. Where the rest of the mask is the causal order, with a
window or without, it needs no mask at all. A number that hides keys need not be -inf for that: next to a sink whose
logit is no such number, a hidden key has weight 0 even where all keys are hidden.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np
import onnx_ir as ir
from tvm import relax, te

from moec.ir.masks.visibility import Window, read_order
from moec.ir.sinks import SinkOperands
from moec.targets.tvm.lowering.context import LoweringContext
from moec.targets.tvm.lowering.nodes import reshape

_LARGEST_LOGIT = 1e4
"""The magnitude below which a sink's logit is far from the numbers that hide keys, which are at most -65504."""


@contextlib.contextmanager
def without_sinks(node: ir.Node, sinks: SinkOperands) -> Iterator[ir.Node]:
    """Context with a copy of the attention ``node`` that has no sinks."""
    inputs = [node.inputs[0], sinks.key, sinks.value, sinks.mask]
    rest = ir.Node("", "Attention", inputs, list(node.attributes.values()), name=node.name)
    try:
        yield rest
    finally:
        for position in range(len(inputs)):
            rest.replace_input_with(position, None)


def order_beside(lowering: LoweringContext, sinks: SinkOperands, rest: ir.Node) -> Window | None:
    """The window of a mask that is the causal order; None where it is another or not known. ``rest``: the attention
    without sinks."""
    logits = lowering.constant(sinks.logits)
    if sinks.mask is None or logits is None or not (np.abs(logits.astype(np.float64)) < _LARGEST_LOGIT).all():
        return None
    return read_order(rest, lowering.elements)


def logits_by_head(lowering: LoweringContext, values: ir.Value) -> relax.Expr:
    """Logits [1, H, 1, 1] of sinks as float32 [H]."""

    def build(tensor: te.Tensor) -> te.Tensor:
        return te.compute((tensor.shape[1],), lambda h: tensor(0, h, 0, 0).astype("float32"), name="sinks")

    tensor = lowering.tensor(values)
    if str(tensor.ty.dtype) == "float32":
        return reshape(lowering, tensor, [tensor.ty.shape[1]])
    return lowering.compute(build, [tensor], "sinks")[0]
