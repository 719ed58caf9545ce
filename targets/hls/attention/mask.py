"""Masks that mask nothing, which exporters make from the shapes of images."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from moec.targets.hls.graph.affine import random_inputs
from moec.targets.hls.graph.calibrate import evaluate

_BATCHES = (1, 3)
"""Sizes that masks are computed for."""


def masks_nothing(model: ir.Model, mask: ir.Value) -> bool:
    """Whether a mask is made of constants and shapes alone, and lets every query see every key: True, or 0."""
    if _is_made_of_numbers(mask):
        return False
    for batch in _BATCHES:
        try:
            (found,) = evaluate(model, random_inputs(model, batch), [mask])
        except ValueError:  # a size that only the caller knows
            return False
        if not np.array_equal(found, np.ones_like(found) if found.dtype == bool else np.zeros_like(found)):
            return False
    return True


def _is_made_of_numbers(value: ir.Value) -> bool:
    """Whether it depends on more of the graph's inputs than their shapes."""
    seen: set[ir.Value] = set()
    pending = [value]
    while pending:
        needed = pending.pop()
        node = needed.producer()
        if needed in seen or (node is not None and node.op_type == "Shape"):
            continue
        seen.add(needed)
        if node is None and needed.const_value is None:
            return True
        pending += [] if node is None else [operand for operand in node.inputs if operand is not None]
    return False
