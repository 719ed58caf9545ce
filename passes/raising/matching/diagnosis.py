"""Explanations, for readers of remarks, why a block cannot be raised as a mixture of experts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from moec.common.names import node_name
from moec.ir.interpreter import EvaluationError
from moec.passes.graph.edits import is_op
from moec.passes.raising.block import Block
from moec.passes.raising.failure import NotUnderstoodError
from moec.passes.raising.router import RoutingProposal

TOKENS = 4
"""Number of tokens that are changed, one after another."""


def diagnosed(block: Block, routings: Sequence[RoutingProposal], reason: NotUnderstoodError) -> NotUnderstoodError:
    """The reason why a block is not raised, given the nearest miss. If its selection selects tokens, or a token's
    result depends on other tokens, every proposal had to fail, and that is the reason. ``routings`` agree with its
    router."""
    if reason.undecided:
        return reason
    if not routings and _chooses_tokens(block.anchor):
        return NotUnderstoodError("it chooses tokens for experts, not experts for tokens", reason.difference)
    node = _mixing_node(block)
    if node is None:
        return reason
    router = f"its router chooses {routings[0].spec.k} experts by {routings[0].spec.score}, but " if routings else ""
    cause = f"{router}what experts make of a token depends on other tokens ({node.op_type} node {node_name(node)})"
    return NotUnderstoodError(cause, reason.difference, is_mixture=reason.is_mixture)


def _chooses_tokens(anchor: ir.Node) -> bool:
    """Whether a selection is among a number of values that is not fixed, as tokens are and experts are not."""
    scores = anchor.inputs[0] if is_op(anchor, "ArgMax", "TopK") else None
    if scores is None or scores.shape is None:
        return False
    axis = anchor.attributes.get_int("axis", 0 if anchor.op_type == "ArgMax" else -1)
    return not isinstance(scores.shape[axis], int)


def _mixing_node(block: Block) -> ir.Node | None:
    """The first node that computes a number from two tokens, if y depends on several; None if none is found."""
    step = max(block.row_step, 1)
    T = step if block.rows_are_fixed else -(-TOKENS // step) * step
    random = np.random.default_rng(0)
    x, logits = random.normal(size=(T, block.d)), random.normal(size=(T, block.E)) * 2
    values = [value for node in block.expert_nodes() for value in node.outputs if value.name]
    try:
        before = block.evaluate(x, logits, values)
        counts = {value: np.zeros(array.shape, np.int64) for value, array in zip(values, before, strict=True)}
        for token in range(min(T, TOKENS)):
            moved = x.copy()
            moved[token] += random.normal(size=block.d)
            for value, old, new in zip(values, before, block.evaluate(moved, logits, values), strict=True):
                counts[value] += old != new
    except (EvaluationError, ValueError):  # how many rows there are depends on what is moved
        return None
    if (counts[block.y] <= 1).all():
        return None
    return next(value.producer() for value, count in counts.items() if (count > 1).any())
