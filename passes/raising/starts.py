"""Starts of y: values computed without the logits to which the experts' results are added.

Loops that add to the result of a shared expert, or to the residual, have one. So has a shared expert among others that
every token gets with a weight of 1. The nodes that compute it are not part of the block. A few tokens test here whether
y is such a sum; all trials test it again when the block is checked (:meth:`Block.y_of`).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from moec.ir.interpreter import EvaluationError
from moec.passes.raising.block import Block, rank, width
from moec.passes.raising.dataflow import Array

MOST_STARTS = 1024
TOLERANCE = 1e-9


def starts(block: Block) -> Iterator[ir.Value]:
    """Possible starts of y; if there are many candidates, only their last operators are computed."""
    candidates = _last_rows(block)
    if candidates in ([], [block.x]) or len(candidates) > MOST_STARTS:
        return
    T = max(block.row_step, 1) * (1 if block.rows_are_fixed else -(-4 // max(block.row_step, 1)))
    random = np.random.default_rng(0)
    x, logits = random.normal(size=(T, block.d)), random.normal(size=(T, block.E)) * 3
    try:
        shapes = block.shapes_on(x, logits, candidates)
        rows = {v: random.normal(size=s) for v, s in zip(candidates, shapes, strict=True) if np.prod(s) == x.size}
        at_first, y_for = block.y_by_value(x, logits, rows)
        for value, array in rows.items():
            step = random.normal(size=array.shape)
            if _moves_by(y_for(value, array + step) - at_first, step, at_first):
                yield value
    except (EvaluationError, ValueError):  # a traced loop that cannot do without some expert's tokens
        return


def _moves_by(change: Array, step: Array, scale: Array) -> bool:
    size = np.abs(scale).max(initial=1.0) + np.abs(step).max(initial=1.0)
    return change.size == step.size and bool((np.abs(change.ravel() - step.ravel()) <= TOLERANCE * size).all())


def _last_rows(block: Block) -> list[ir.Value]:
    """The last values on all paths from x to values that depend on the logits, if they may have one row per token as y
    does."""
    pending = [
        value
        for node in block.nodes
        if node.op_type != "Shape" and node.outputs[0] in block.selected
        for value in node.inputs
        if value is not None and value not in block.selected and value in block.from_x
    ]
    last, seen = dict[ir.Value, None](), set[ir.Value]()
    while pending:
        value = pending.pop()
        if value in seen:
            continue
        seen.add(value)
        if value is block.x or _may_be_start(block, value):
            last[value] = None
            continue
        node = value.producer()
        pending += [v for v in node.inputs if v in block.from_x] if node is not None and node.op_type != "Shape" else []
    return list(last)


def _may_be_start(block: Block, value: ir.Value) -> bool:
    return width(value) == block.d and rank(value) in (2, rank(block.x)) and value.dtype == block.y.dtype
